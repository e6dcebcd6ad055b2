"""A workshop's folder: what is needed where, and one line on what is wrong (test_workshop_offline.py)."""

import json
import platform
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.workshop import folder_check
from labkit.workshop.page import page
from labkit.workshop.prepare import _write_sums, prepare
from labkit.workshop.wheels import PLATFORMS, missing, needed, unmet

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
