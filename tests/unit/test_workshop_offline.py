"""A workshop's folder, made for this machine, installed and used in a new environment with the network unreachable;
and the most memory that a kernel takes meanwhile.

What takes minutes: the wheels come from the package index (about 350 MB), and notebooks 00 to 04 run in full.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_memory import BINDER, peak

from labkit.workshop.folder_check import PLATFORMS, platform
from labkit.workshop.prepare import prepare

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
RUN = """
import sys, nbformat
from nbclient import NotebookClient
status = "from pathlib import Path; s = Path('/proc/self/status'); print(s.read_text() if s.exists() else '')"
for name in sys.argv[1:]:
    notebook = nbformat.read(name, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(status))
    NotebookClient(notebook, timeout=600).execute()
    print("ran", name)
    print(notebook.cells[-1].outputs[0].text)
"""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("LABKIT_TEST_OFFLINE" not in os.environ, reason="minutes, 0.6 GB to fetch: make test-workshop"),
    pytest.mark.skipif(platform.system() == "Windows", reason="its install script is for PowerShell"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Made twice: the second time nothing is fetched or written. Not for Colab's environment."""
    pytest.importorskip("jupyterlab", reason="what is handed out is what is installed, with JupyterLab")
    place = Path(os.environ.get("LABKIT_TEST_WORKSHOP") or tmp_path_factory.mktemp("workshop") / "folder")
    asked = {"platforms": [PLATFORMS[platform.system()]], "pythons": [HERE]}
    made = prepare(place, **asked)
    assert not made.missing
    before = {file: file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}
    prepare(place, **asked)
    assert {file: file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()} == before
    return place


def unreachable() -> tuple[list[str], dict[str, str]]:
    """How to run a command without a network: in a namespace that has none, where that is allowed; else with an index
    and proxies that nobody answers at."""
    nowhere = "http://127.0.0.1:9"
    settings = {"PIP_INDEX_URL": nowhere, "PIP_EXTRA_INDEX_URL": "", "http_proxy": nowhere, "https_proxy": nowhere}
    loopback = ["unshare", "--net", "sh", "-c", 'ip link set lo up 2>/dev/null || true; exec "$@"', "sh"]
    if shutil.which("unshare") and subprocess.run([*loopback, "true"], capture_output=True).returncode == 0:
        return loopback, settings
    return [], settings | {"no_proxy": "127.0.0.1,localhost"}


def test_from_the_folder_a_fresh_machine_installs_and_runs_notebooks_without_a_network(folder, tmp_path):
    without, settings = unreachable()
    home, venv = tmp_path / "home", tmp_path / "venv"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LABKIT_CACHE")}
    environment = kept | settings | {"HOME": str(home), "PYTHON": sys.executable, "LABKIT_VENV": str(venv)}
    installed = subprocess.run(
        [*without, "sh", str(folder / "install.sh")], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert [line for line in installed.stdout.splitlines() if line.startswith("ready")] == ["ready to install", "ready"]
    environment |= {"LABKIT_CACHE": str(folder / "cache"), "PATH": f"{venv / 'bin'}{os.pathsep}{kept['PATH']}"}
    notebooks = sorted(str(file) for file in (venv / "notebooks").glob("*.ipynb"))
    ran = subprocess.run(
        [*without, str(venv / "bin/python"), "-c", RUN, *notebooks],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("ran ") == len(notebooks) == 5
    if sys.platform.startswith("linux"):
        peaks = [peak(status) for status in ran.stdout.split("ran ")[1:]]
        print("MB of each kernel at most:", [round(one / 1e6) for one in peaks])
        assert max(peaks) < BINDER
