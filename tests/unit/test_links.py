"""`make links`: README, first cells and the settings in pyproject.toml say the same, whatever repository is named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from links import DISTRIBUTION, main, stored, written  # noqa: E402

NOTEBOOKS = sorted(file.name for file in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what `make links` writes to, with no repository named."""
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    assert main(["--repo", "none"], tmp_path) == 0
    return tmp_path


def texts(tree: Path) -> dict[str, str]:
    return {str(file.relative_to(tree)): file.read_text("utf-8") for file in tree.rglob("*") if file.is_file()}


def first_cells(tree: Path) -> dict[str, str]:
    cells = {}
    for file in sorted((tree / "notebooks").glob("*.ipynb")):
        code = [cell for cell in json.loads(file.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        cells[file.name] = "".join(code[0]["source"])
    return cells


def addresses(tree: Path) -> list[str]:
    section = (tree / "README.md").read_text("utf-8").split("<!-- links:")[1].split("<!-- /links -->")[0]
    return re.findall(r"\]\((https://[^)]+)\)", section)


def test_everything_is_written_as_the_settings_say():
    for file, text in written(stored()).items():
        assert file.read_text("utf-8") == text, f"{file.relative_to(ROOT)} is not what `make links` writes"


def test_without_a_repository_nothing_is_linked_or_installed(tree):
    assert addresses(tree) == []
    for name, source in first_cells(tree).items():
        assert "%pip" not in source, name
        assert "http" not in source, name


@pytest.mark.parametrize("notebook", ["00_start_here.ipynb", "10_scaling_out.ipynb"])
def test_without_a_repository_a_kernel_that_lacks_labkit_is_told_in_one_sentence(tree, notebook):
    """Run in a Python that has no labkit: nothing is fetched, and the last line says what to do."""
    source = first_cells(tree)[notebook]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: labkit is not installed in this kernel: run pip install ")
    assert last.endswith("then restart the kernel.")


def test_the_package_index_is_told_the_addresses_once_there_are_any(tree):
    def urls():
        return tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["project"].get("urls")

    before = (tree / "pyproject.toml").read_text("utf-8")
    assert urls() is None
    assert main(["--repo", "ada/looking-in", "--ref", "v0.2.0"], tree) == 0
    assert urls()["Repository"] == "https://github.com/ada/looking-in"
    assert urls()["Changelog"].endswith("/blob/main/CHANGELOG.md")
    assert main(["--repo", "none"], tree) == 0
    assert (tree / "pyproject.toml").read_text("utf-8") == before


def test_every_link_leads_to_a_file_of_the_repository_at_the_tag(tree):
    assert main(["--repo", "ada/looking-in", "--ref", "v0.2.0", "--hub", "https://hub.example.edu/"], tree) == 0
    colab, binder, hub = [], [], []
    for address in addresses(tree):
        parts = urlsplit(address)
        query = {name: value for name, [value] in parse_qs(parts.query).items()}
        if parts.netloc == "colab.research.google.com" and parts.path.startswith("/github/"):
            assert parts.path.startswith("/github/ada/looking-in/blob/v0.2.0/")
            colab.append(parts.path.removeprefix("/github/ada/looking-in/blob/v0.2.0/"))
        elif parts.netloc == "mybinder.org" and parts.path.startswith("/v2/"):
            assert parts.path == "/v2/gh/ada/looking-in/v0.2.0"
            binder.append(query["urlpath"].removeprefix("lab/tree/"))
        elif parts.netloc == "hub.example.edu":
            assert parts.path == "/hub/user-redirect/git-pull"
            assert query["repo"] == "https://github.com/ada/looking-in"
            assert query["branch"] == "main"  # it merges a branch, and cannot merge a tag
            hub.append(query["urlpath"].removeprefix("lab/tree/looking-in/"))
    everything = [f"notebooks/{name}" for name in NOTEBOOKS]
    assert colab == binder == everything
    assert hub == everything[:1]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--ref", "v0.2.0"], "{name} @ git+https://github.com/ada/looking-in@v0.2.0"),
        (["--ref", "v0.3.1", "--pypi", "1"], "{name}==0.3.1"),
    ],
)
def test_first_cells_install_labkit_from_the_same_place(tree, arguments, wanted):
    assert main(["--repo", "ada/looking-in", *arguments], tree) == 0
    for notebook, source in first_cells(tree).items():
        extra = "[scale]" if notebook.startswith("10") else ""
        requirement = wanted.format(name=DISTRIBUTION + extra)
        assert re.findall(r"%pip .*", source) == [f'%pip install -q "{requirement}"'], notebook
        assert source.count("    from labkit.course import check\n") + source.endswith("import check") == 2
    assert f'`pip install "{wanted.format(name=DISTRIBUTION)}"`' in (tree / "README.md").read_text("utf-8")


def test_naming_a_repository_and_taking_it_back_changes_nothing_else(tree):
    before = texts(tree)
    assert main(["--repo", "ada/looking-in", "--ref", "v0.2.0"], tree) == 0
    named = texts(tree)
    assert main([], tree) == 0  # from the settings alone
    assert texts(tree) == named != before
    assert main(["--repo", "none"], tree) == 0
    assert texts(tree) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--repo", "looking-in", "--ref", "v1"],
        ["--repo", "ada/looking-in"],
        ["--repo", "ada/looking-in", "--ref", "a b"],
        ["--repo", "ada/looking-in", "--ref", "main", "--pypi", "1"],
        ["--repo", "ada/looking-in", "--ref", "v1", "--hub", "hub.example.edu"],
    ],
)
def test_what_cannot_be_linked_is_refused_and_nothing_is_written(tree, arguments, capsys):
    before = texts(tree)
    assert main(arguments, tree) == 1
    assert texts(tree) == before
    assert re.match(r"(REPO|REF|HUB|with PYPI=1, REF) is ", capsys.readouterr().err)
