"""A workshop's folder: what is needed where, and one line on what is wrong (test_workshop_offline.py)."""

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.models.sources import default_model as packaged
from labkit.workshop import folder_check
from labkit.workshop.page import INSTALL_SH, page
from labkit.workshop.prepare import Prepared, _write_sums, prepare
from labkit.workshop.wheels import PLATFORMS, fetch, missing, needed, unmet

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def folder(tmp_path):
    """A small one, as prepared for this machine."""
    system, machine = folder_check.PLATFORMS[platform.system()], platform.machine()
    about = {"labkit": "0", "wheels": {system: [HERE]}, "machines": {system: [machine.lower()]}}
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/one.whl").write_bytes(b"one")
    shutil.copy(folder_check.__file__, tmp_path / "check.py")
    (tmp_path / folder_check.ABOUT).write_text(json.dumps(about))
    _write_sums(tmp_path)
    return tmp_path


def said(folder, target):
    """What the folder's own program says, with Python alone: no package and no environment of ours."""
    command = [sys.executable, "-I", "-S", str(folder / "check.py"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, done.stdout.strip()


def test_a_whole_folder_is_ready_to_install(folder, tmp_path):
    assert said(folder, tmp_path / "venv") == (0, "ready to install")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: (f / "wheels/one.whl").write_bytes(b"two"), "wheels/one.whl is damaged (its checksum differs)"),
        (lambda f: (f / "wheels/one.whl").unlink(), "wheels/one.whl is missing"),
        (lambda f: (f / folder_check.SUMS).unlink(), "not a whole workshop folder"),
        (lambda f: shutil.rmtree(f / "wheels"), "wheels/one.whl is missing"),
        (lambda f: _cut(f / folder_check.SUMS, 0.5), "SHA256SUMS in"),
        (lambda f: _cut(f / folder_check.SUMS, 0.99), "is cut short: copy the folder again"),
        (lambda f: _cut(f / folder_check.ABOUT, 0.5), "workshop.json is damaged"),
        (lambda f: (f / folder_check.SUMS).write_bytes(b"\xff\xfe\x00"), "SHA256SUMS is damaged (it is not text)"),
        (lambda f: (f / folder_check.ABOUT).write_text("[]"), "workshop.json is damaged"),
        (lambda f: (f / folder_check.ABOUT).write_text('{"wheels": {}}'), "workshop.json is damaged"),
        (lambda f: _about(f, wheels={}), "packages for no machine: ask the teacher to run `labkit workshop prepare`"),
        (lambda f: _about(f, wheels={"linux": ["3.2"], "macos": ["3.2"], "windows": ["3.2"]}), "install one of these"),
        (lambda f: _about(f, wheels={"plan9": ["3.12"]}), "has packages for plan9, not for"),
        (lambda f: _about(f, machines={name: ["vax"] for name in PLATFORMS}), "vax processors, not for"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, tmp_path, break_it, says):
    break_it(folder)
    status, line = said(folder, tmp_path / "venv")
    assert status == 1
    assert says in line


def _cut(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])


def test_too_little_room_is_said_in_one_line(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 20))
    assert "are needed: make room" in folder_check.wrong(folder, environment=folder.parent / "venv")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder that not even root can write to")
def test_a_place_that_cannot_be_written_is_said_in_one_line(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 40))
    assert "cannot be written: set LABKIT_VENV" in folder_check.wrong(folder, environment=Path("/proc/self/venv"))


def _about(folder, **changed):
    file = folder / folder_check.ABOUT
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_the_installed_check_says_where_the_model_should_be(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "empty"))
    assert main(["workshop", "check", str(folder)]) == 1
    assert f"set LABKIT_CACHE to {folder / 'cache'}" in capsys.readouterr().out


def test_the_installed_check_is_ready_where_all_is_well(lm4, folder, capsys):
    assert main(["workshop", "check", str(folder)]) == 0
    assert capsys.readouterr().out == "ready\n"


def test_the_installed_check_takes_the_model_that_the_start_script_takes(lm4, folder, tmp_path, monkeypatch, capsys):
    at = folder / "cache" / packaged.checkpoint(4)
    at.parent.mkdir(parents=True)
    at.symlink_to(packaged.default_checkpoint(bits=4, progress=False))
    monkeypatch.delenv("LABKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert main(["workshop", "check", str(folder)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError("libtorch_cpu.so: no such file"), ImportError("no"), RuntimeError("no")])
def test_the_installed_check_says_that_the_installation_is_broken(folder, monkeypatch, capsys, error):
    def broken(_):
        raise error

    monkeypatch.setattr("labkit.workshop.check.problem", broken)
    assert main(["workshop", "check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert said == f"the installation is broken ({error}): delete it and run the install script again\n"


STUB = """#!/bin/sh
case "$*" in
  *" venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/labkit";;
  lab*) echo "cache $LABKIT_CACHE";;
esac
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a script for sh")
def test_the_script_installs_from_a_read_only_folder_and_brings_the_grids(tmp_path):
    folder = tmp_path / "a folder"
    for name in ("notebooks/00_start.ipynb", "grids/z.npz", "cache/model"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch(mode=0o444)
    (folder / "install.sh").write_text(INSTALL_SH)
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PYTHON": str(tmp_path / "python"), "LABKIT_VENV": "its own"}
    for _ in range(2):
        subprocess.run(["sh", str(folder / "install.sh")], cwd=tmp_path, env=environment, check=True)
    for name in ("notebooks/00_start.ipynb", "notebooks/grids/z.npz"):
        assert (tmp_path / "its own" / name).stat().st_mode & 0o200, name
    start = ["sh", str(tmp_path / "its own/start.sh")]
    assert subprocess.run(start, capture_output=True, text=True, cwd="/").stdout == f"cache {folder}/cache\n"
    folder.rename(tmp_path / "elsewhere")
    done = subprocess.run(start, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{folder} is not there: put it back, or run install.sh where it is now\n"


def test_what_the_build_of_a_wheel_needs_counts_not_that_of_what_is_installed(tmp_path):
    """PyTorch for CUDA, installed here, would bring gigabytes into a folder that has its build for the CPU."""
    name = f"torch-{version('torch').partition('+')[0]}"
    with zipfile.ZipFile(tmp_path / f"{name}-cp312-cp312-manylinux_2_28_x86_64.whl", "w") as archive:
        archive.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nRequires-Dist: only-of-this-build\n")
    assert "only-of-this-build" in needed(PLATFORMS["linux"], "3.12", folder=tmp_path)
    assert "only-of-this-build" not in needed(PLATFORMS["linux"], "3.13", folder=tmp_path)


def test_without_a_network_packages_are_not_asked_for_one_by_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("labkit.workshop.wheels._pip", lambda *a: asked.append(a) or "ERROR: nothing found")
    monkeypatch.setattr("labkit.workshop.wheels.unreachable", lambda _: "no network: connect")
    with pytest.raises(ConnectionError, match="no network: connect, then run the same command again"):
        fetch(tmp_path, {"a": "a==1", "b": "b==1"}, PLATFORMS["linux"], "3.12", index=None)
    assert len(asked) == 1


def test_one_more_index_that_is_not_there_is_named_before_gigabytes_come_from_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.workshop.wheels._pip", lambda *a: pytest.fail("pip was asked"))
    for index in ("http://127.0.0.1:9/simple", "cpu builds", tmp_path.as_uri()):
        with pytest.raises(ConnectionError, match=r"has no torch .*check the address given with --index"):
            fetch(tmp_path, {"a": "a==1"}, PLATFORMS["linux"], "3.12", index=index)


def test_a_folder_that_is_not_complete_is_not_said_to_be_ready(tmp_path, monkeypatch, capsys):
    made = Prepared(tmp_path, 1 << 20, {"a for linux, Python 3.12": "none"})
    monkeypatch.setattr("labkit.workshop.prepare.prepare", lambda *_, **__: made)
    assert main(["workshop", "prepare", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "run the same command again" in err


def test_notebooks_in_the_wrong_order_are_refused(tmp_path, capsys):
    assert main(["workshop", "prepare", str(tmp_path / "new"), "--notebooks", "04-00"]) == 1
    assert "takes the lower number first, 00-04; got '04-00'" in capsys.readouterr().err


def test_other_platforms_get_what_their_markers_ask_for():
    linux, windows = (needed(PLATFORMS[name], "3.12") for name in ("linux", "windows"))
    assert "colorama" in windows
    assert "colorama" not in linux
    assert linux["torch"].startswith("torch==")
    assert "+" not in linux["torch"]
    assert "labkit-lm" not in linux


def test_only_wheels_that_fit_count_as_there(tmp_path):
    for name in (
        "a-1.0-py3-none-any",
        "b-1.0-cp312-cp312-win_amd64",
        "c-1.0-cp38-abi3-manylinux2014_x86_64",
        "d-1-py3-none-any",
    ):
        (tmp_path / f"{name}.whl").touch()
    wanted = {"a": "a==1.0", "b": "b==1.0", "c": "c==1.0", "d": "d==2.0"}
    assert set(missing(tmp_path, wanted, PLATFORMS["linux"], "3.12")) == {"b", "d"}
    assert set(missing(tmp_path, wanted, PLATFORMS["windows"], "3.12")) == {"c", "d"}
    assert set(missing(tmp_path, wanted, PLATFORMS["windows"], "3.13")) == {"b", "c", "d"}


def test_what_the_wheels_themselves_ask_for_is_looked_for_with_the_markers_of_the_machine(tmp_path):
    def wheel(name, *requires):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as archive:
            lines = ["Metadata-Version: 2.1", *(f"Requires-Dist: {line}" for line in requires), "", "text"]
            archive.writestr(f"{'-'.join(name.split('-')[:2])}.dist-info/METADATA", "\n".join(lines))

    def unmet_on(name, python="3.12"):
        return unmet(tmp_path, PLATFORMS[name], python)

    wheel("labkit_lm-0.2-py3-none-any", "a>=1", 'b; extra == "lab"', 'd; extra == "test"')
    wheel("a-1.0-py3-none-any", 'on-windows; sys_platform == "win32"', 'backport; python_version < "3.12"')
    assert unmet_on("linux") == {"b": "labkit-lm 0.2 needs b"}
    wheel("b-2.0-cp312-cp312-manylinux2014_x86_64", "a<1")
    assert unmet_on("linux") == {"a": "b 2.0 needs a<1"}
    wheel("b-3.0-cp312-cp312-manylinux2014_x86_64", "a")
    assert unmet_on("linux") == {}
    assert unmet_on("linux", "3.11") == {"b": "labkit-lm 0.2 needs b", "backport": "a 1.0 needs backport"}
    assert unmet_on("windows") == {"b": "labkit-lm 0.2 needs b", "on-windows": "a 1.0 needs on-windows"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"platforms": ["amiga"]}, "there are packages for linux, macos, windows; got amiga"),
        ({"pythons": ["3.9"]}, "labkit needs Python 3.11 or newer"),
        ({"notebooks": ["77"]}, "there is no notebook 77"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, asked, says):
    with pytest.raises(ValueError, match=says):
        prepare(tmp_path / "new", **asked)
    assert not (tmp_path / "new").exists()


def test_too_little_room_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 20))
    with pytest.raises(ValueError, match=r"takes up to .* GB more"):
        prepare(tmp_path / "new", platforms=["linux"], pythons=["3.12"])
    assert not (tmp_path / "new").exists()


def test_the_page_asks_for_nothing_from_elsewhere_and_escapes_names():
    class Links(HTMLParser):
        found: list = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found += [value for name, value in attrs if name in ("src", "href")]

    text = page({"linux": ["3.12"], "windows": ["3.12"]}, notebooks=["<b>.ipynb"], size="1 GB")
    parser = Links()
    parser.feed(text)
    assert parser.found == []
    assert "http" not in text
    assert "&lt;b&gt;.ipynb" in text
    assert "prefers-color-scheme: dark" in text
