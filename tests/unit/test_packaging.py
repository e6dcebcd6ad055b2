"""What is installed, under which name, beside what: the files at the root agree with the package and each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import labkit as lk
from labkit._version import DISTRIBUTION, install_command
from labkit.course.folder import notebooks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from left_alone import changed  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PROMISED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for name in ("lab", "scale", "probe") for line in PROJECT["optional-dependencies"][name]]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name: Version(next(iter(pin.specifier)).version) for pin in found}


def test_labkit_has_one_name_and_one_version():
    assert PROJECT["name"] == DISTRIBUTION
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", lk.__version__)
    assert install_command("scale") == f'pip install "{DISTRIBUTION}[scale]"'


def test_nobody_is_sent_to_the_package_that_is_called_labkit():
    """It is another project's. Every text file of the repository is looked at."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    stranger = re.compile(
        r"(?:pip install|--upgrade|uv add|pip wheel)(?: +-\S+)* +[\"'\\]*labkit(?![\w./-])|labkit\[(?!data)"
    )
    found = []
    for name in listed.stdout.splitlines():
        if name == "tests/unit/test_packaging.py" or not (ROOT / name).is_file():
            continue
        try:
            lines = (ROOT / name).read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture
        found += [
            f"{name}:{number}" for number, line in enumerate(lines, 1) if len(line) < 2000 and stranger.search(line)
        ]
    assert found == []


def test_what_colab_has_is_in_the_ranges_that_labkit_asks_for():
    colab = pins("tests/colab-constraints.txt")
    checked = [r.name for r in PROMISED if r.name in colab and r.specifier.contains(colab[r.name])]
    assert checked == [r.name for r in PROMISED if r.name in colab]
    assert {"torch", "transformers", "ipywidgets", "anywidget", "traitlets", "numpy", "pandas"} <= set(checked)


def test_a_ready_image_differs_from_what_labkit_is_tested_with_only_in_torch_and_transformers():
    ready, tested = pins("tests/ready-constraints.txt"), pins("constraints.txt")
    assert {name for name, version in ready.items() if tested[name] != version} == {"torch", "transformers"}
    found = {r.name: r.specifier.contains(ready[r.name]) for r in PROMISED if r.name in ready}
    assert all(found.values())
    assert {"torch", "transformers", "bitsandbytes", "accelerate"} <= set(found)


def test_the_oldest_versions_tested_are_those_promised():
    oldest = pins("tests/oldest-constraints.txt")
    every = [*PROMISED, *EXTRAS]
    promised = {r.name: min(Version(s.version) for s in r.specifier if s.operator == ">=") for r in every}
    assert {name: oldest.get(name) for name in promised} == promised


def test_what_labkit_is_tested_with_is_in_the_ranges_of_its_extras():
    tested, colab = pins("constraints.txt"), pins("tests/colab-constraints.txt")
    for r in EXTRAS:
        assert r.specifier.contains(tested[r.name]), r.name
        if r.name != "jupyterlab":  # Colab's own Jupyter is left alone
            assert r.specifier.contains(colab[r.name]), r.name


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages" / "notebooks"
    folder.mkdir(parents=True)
    for name in "abc":
        (folder / f"{name}.ipynb").write_text(f"first {name}")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_NOTEBOOKS", str(tmp_path / "course" / "mine"))
    return tmp_path / "course" / "mine"


def test_shipped_notebooks_are_copied_once_to_a_folder_of_the_users(shipped, home):
    assert notebooks(shipped=shipped).copied == ("a.ipynb", "b.ipynb", "c.ipynb")
    assert {file.name: file.read_text() for file in home.glob("*.ipynb")} == {f"{n}.ipynb": f"first {n}" for n in "abc"}
    again = notebooks(shipped=shipped)
    assert (again.folder, again.copied, again.kept) == (home, (), ())


def test_what_the_user_changed_is_kept_and_the_rest_follows_a_new_version(shipped, home):
    notebooks(shipped=shipped)
    (home / "a.ipynb").write_text("mine")
    (home / "b.ipynb").unlink()
    (home / "own.ipynb").write_text("own")
    assert notebooks(shipped=shipped).copied == ("b.ipynb",)  # what was deleted comes back; what was changed stays
    for name in "abc":
        (shipped / f"{name}.ipynb").write_text(f"second {name}")
    for _ in range(2):
        course = notebooks(shipped=shipped)
        assert course.kept == ("a.ipynb",)
        assert (home / "a.ipynb").read_text() == "mine"
        assert (home / "b.ipynb").read_text() == "second b"
        assert (home / "own.ipynb").read_text() == "own"
    (home / "a.ipynb").unlink()
    assert notebooks(shipped=shipped).copied == ("a.ipynb",)
    assert notebooks(shipped=shipped).kept == ()


def test_notebooks_that_were_there_before_are_not_overwritten(shipped, home):
    home.mkdir(parents=True)
    (home / "a.ipynb").write_text("from somewhere else")
    (home / ".labkit.json").write_text("{half a note")
    assert notebooks(shipped=shipped).kept == ("a.ipynb",)
    assert (home / "a.ipynb").read_text() == "from somewhere else"


def test_a_checkout_opens_its_own_notebooks_and_copies_nothing(home):
    course = notebooks()
    assert (course.folder, course.copied) == (ROOT / "notebooks", ())
    assert not home.exists()


def test_a_folder_that_cannot_be_written_is_an_error_and_a_missing_course_is_none(shipped, home, tmp_path):
    home.parent.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="course"):
        notebooks(shipped=shipped)
    assert notebooks(shipped=tmp_path / "none", checkout=tmp_path / "none") is None


def test_a_package_that_an_installation_replaced_is_named():
    before = "dask==2026.7.1\ntorch==2.11.0\ntraitlets==5.7.1"
    assert changed(before, f"bitsandbytes==0.50.2\n{before}") == []
    assert changed(before, before.replace("2026.7.1", "2026.8.0")) == ["dask==2026.7.1"]
