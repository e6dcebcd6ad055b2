"""A real JupyterLab and a real Chromium for the tests in this folder.

One server and one browser serve all tests. Jupyter's own folders are temporary, so nothing of the person's is read or
changed, and nothing is fetched from the network.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from driver import PATIENCE, Lab
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}  # fmt: skip


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.browser)


def chromium() -> str:
    """The browser to drive: LABKIT_CHROMIUM, else the Chromium or Chrome on the path."""
    if os.environ.get("LABKIT_SKIP_BROWSER") == "1":
        pytest.skip("LABKIT_SKIP_BROWSER=1")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("LABKIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.fail(
            "there is no Chromium for the browser tests: install it (Debian and Ubuntu: apt-get install chromium; "
            "macOS: brew install --cask chromium), or name one in LABKIT_CHROMIUM, or set LABKIT_SKIP_BROWSER=1 to go "
            "without"
        )
    return found


@contextmanager
def serve(home: Path, module: str = "jupyterlab") -> Iterator[Lab]:
    """A Jupyter server on a free port, with folders of its own: JupyterLab, or Notebook (`notebook`), 7 or 6."""
    chromium()  # without a browser there is no need to start it
    root = home / "root"
    root.mkdir()
    for name, settings in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment["PATH"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    log = (home / "log.txt").open("w")
    settings_of = ("ServerApp", "IdentityProvider", "root_dir")
    if module == "notebook" and version("notebook").startswith("6."):
        settings_of = ("NotebookApp", "NotebookApp", "notebook_dir")
    app, identity, folder = settings_of
    only_lab = ["--LabApp.extension_manager=readonly", "--LabApp.news_url="] if module == "jupyterlab" else []
    server = subprocess.Popen(
        [
            sys.executable, "-m", module, "--no-browser", "--allow-root", f"--{app}.port={port}",
            f"--{app}.port_retries=0", f"--{identity}.token={token}", f"--{app}.{folder}={root}",
            f"--{app}.ip=127.0.0.1", *only_lab,
        ],
        env=environment, cwd=root, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    running = Lab(f"http://127.0.0.1:{port}", token, root)
    try:
        for _ in range(PATIENCE // 250):
            if server.poll() is not None:
                pytest.fail(f"{module} ended at once:\n" + (home / "log.txt").read_text()[-3000:])
            try:
                urllib.request.urlopen(f"{running.address}/api/status?token={token}", timeout=20)
                break
            except OSError:
                time.sleep(0.25)
        else:
            pytest.fail(f"{module} does not answer:\n" + (home / "log.txt").read_text()[-3000:])
        yield running
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab, one for all tests."""
    with serve(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()
