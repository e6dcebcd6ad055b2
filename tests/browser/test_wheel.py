"""The wheel, as somebody has it who never saw the repository: built, installed into a fresh environment, opened."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SETTINGS, chromium
from driver import Lab, errors, open_notebook, run_all
from playwright.sync_api import Browser, expect

from labkit import __version__
from labkit._version import DISTRIBUTION

ROOT = Path(__file__).parents[2]


@dataclass
class Installed:
    """An environment with labkit from its wheel, and everything else from the environment of the tests."""

    python: Path
    home: Path
    environment: dict[str, str]

    def labkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.python.with_name("labkit")), *arguments]
        return subprocess.run(command, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    [wheel] = folder.glob("*.whl")
    assert wheel.name == f"{DISTRIBUTION.replace('-', '_')}-{__version__}-py3-none-any.whl"
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # What labkit needs comes from here; a path in a .pth file brings no editable labkit with it.
    (Path(site.strip()) / "tests.pth").write_text(sysconfig.get_path("purelib"))
    home = folder / "home"
    home.mkdir()
    share = Path(sys.prefix) / "share" / "jupyter"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LABKIT_NOTEBOOKS")}
    cache = subprocess.check_output(
        [sys.executable, "-c", "from labkit.models.cache import cache_folder as f; print(f())"], text=True
    )
    environment |= {
        "HOME": str(home), "LABKIT_CACHE": cache.strip(), "JUPYTER_PATH": str(share),
        "JUPYTERLAB_DIR": str(share / "lab"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    return Installed(python, home, environment)


@pytest.fixture(scope="module")
def lab(installed: Installed) -> Iterator[Lab]:
    """`labkit lab` in the empty home of somebody who has only the wheel."""
    chromium()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = installed.home / "log.txt"
    for name, settings in SETTINGS.items():  # no news from the network, all cells on the page
        file = installed.home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    flags = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=wheel", "--LabApp.news_url="]
    with log.open("w") as out:
        command = [str(installed.python.with_name("labkit")), "lab", *flags]
        server = subprocess.Popen(
            command, env=installed.environment, cwd=installed.home, stdout=out, stderr=out, start_new_session=True
        )
    running = Lab(f"http://127.0.0.1:{port}", "wheel", installed.home / "labkit-notebooks")
    try:
        for _ in range(480):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{running.address}/api/status?token=wheel", timeout=2)
                break
            except OSError:
                time.sleep(0.25)
        yield running
    finally:
        os.killpg(server.pid, 15)  # labkit, and JupyterLab below it
        server.wait(30)


def test_the_labkit_that_runs_is_the_one_of_the_wheel(installed: Installed) -> None:
    code = "import labkit, labkit.course; print(labkit.__file__); print(labkit.__version__)"
    found = subprocess.check_output(
        [installed.python, "-c", code], env=installed.environment, cwd=installed.home, text=True
    ).split()
    assert str(installed.python.parents[1]) in found[0]
    assert found[1] == __version__
    assert f"labkit        {__version__}" in installed.labkit("doctor").stdout


def test_labkit_lab_copies_the_notebooks_says_where_and_opens_the_first(lab: Lab, browser: Browser) -> None:
    log = (lab.root.parent / "log.txt").read_text()
    names = {file.name for file in (ROOT / "notebooks").glob("*.ipynb")}
    assert f"The notebooks are in {lab.root}, {len(names)} of them just copied." in log
    assert {file.name for file in lab.root.glob("*.ipynb")} == names
    with open_notebook(browser, lab, "00_start_here.ipynb") as page:
        run_all(page)
        assert errors(page) == []
        expect(page.get_by_text("Error displaying widget")).to_have_count(0)
        expect(page.locator(".labkit-tool").first).to_be_visible()


def test_what_was_changed_is_still_there_the_next_time(installed: Installed, lab: Lab) -> None:
    """With a flag that ends JupyterLab at once; the notebooks are seen to before."""
    mine = lab.root / "01_prompting.ipynb"
    mine.write_text("mine")
    done = installed.labkit("lab", "--show-config")
    assert re.search(r"The notebooks are in .*labkit-notebooks\.\n", done.stdout), done.stderr[-2000:]
    assert mine.read_text() == "mine"
