"""What a repository has besides its code: that it says what is true."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import yaml

import labkit as lk

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_code_in_contributing_is_python_and_its_imports_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                exec(ast.unparse(node), {})
    for path in re.findall(r"`(labkit/[\w/]+(?:\.py|/))`", text):
        assert (ROOT / path).exists(), path


def test_the_commands_that_the_pages_name_are_there() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        for command in re.findall(r"`make ([a-z0-9-]+)", page.read_text("utf-8")):
            assert command in targets, f"{page.name} names make {command}"


def test_the_citation_and_the_workflow_are_what_their_readers_expect() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == lk.__version__
    assert {"cff-version", "title", "authors", "message", "license"} <= set(citation)
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))["jobs"]
    assert any(step.get("run") == ".ci/run" for step in jobs["everything"]["steps"])
    assert {"macos-latest", "windows-latest"} <= set(jobs["unit"]["strategy"]["matrix"]["os"])
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        if form.name != "config.yml":
            asked = yaml.safe_load(form.read_text("utf-8"))["body"]
            assert any("labkit doctor" in str(one["attributes"]) for one in asked), form.name


def test_the_container_for_editors_sets_up_with_commands_that_are_there() -> None:
    about = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    made, pulled, looked = about["postCreateCommand"].split(" && ")
    assert made.removeprefix("make ").replace(".venv", "$(VENV)") + ":" in (ROOT / "Makefile").read_text("utf-8")
    commands = (ROOT / "labkit" / "cli.py").read_text("utf-8")
    for command in (pulled, looked):
        assert f'add_parser("{command.split()[-1]}"' in commands
    for name in about["customizations"]["codespaces"]["openFiles"]:
        assert (ROOT / name).exists(), name
    minor = int(about["image"].split(":")[1].split("-")[0].split(".")[1])
    assert minor >= 11
