"""The command line: `labkit lab | doctor | models | card | pull | scan | course | serve | workshop`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit._version import install_command
from labkit.server import command as server
from labkit.workshop import command as workshop

GATE = {
    True: "; accept its conditions on the hub first",
    False: "",
    None: "; not known whether it has conditions to accept on the hub first",
}
LIBRARY = (126, 127, 193, 1114)  # Windows' numbers for a library that cannot be loaded
ROOT_FLAGS = ("--notebook-dir", "--ServerApp.root_dir", "--ServerApp.notebook_dir")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status says whether it worked."""
    parser = argparse.ArgumentParser(prog="labkit", description="Look inside open language models from a notebook.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("lab", help="open JupyterLab on the notebooks, with the default model ready", add_help=False)
    commands.add_parser("doctor", help="what this machine has, what is wrong, and how to mend it")
    commands.add_parser("models", help="list open models with their memory and licences")
    card = commands.add_parser("card", help="what a model's licence allows and how open it is, as Markdown")
    card.add_argument("name", nargs="?", help="hub id of `labkit models`; omit it for the default model")
    pull = commands.add_parser("pull", help="download and convert a model ahead of time")
    pull.add_argument("name", nargs="?", help="hub id or .gguf file; omit it for the default model")
    pull.add_argument("--bits", type=int, default=None, help="4 (default), 8, 16 or 32")
    pull.add_argument("--shared", action="store_true", help="and keep one copy of its weights for all processes here")
    looked = commands.add_parser("scan", help="say whether a checkpoint is safe to open, without opening it")
    looked.add_argument("name", help="hub id, folder or .gguf file")
    looked.add_argument("--revision", default=None, help="branch, tag or commit on the hub")
    looked.add_argument("--json", action="store_true", help="print JSON, for other programs")
    course = commands.add_parser("course", help="which exercises are right, yours or those of a class; assignments")
    parts = course.add_subparsers(dest="what", metavar="WHAT", required=True)
    report = parts.add_parser("report", help="how many exercises of each notebook are right")
    report.add_argument("files", nargs="*", help="progress files of a class, or folders that hold them; omit for yours")
    report.add_argument("--csv", action="store_true", help="print every exercise that was tried, for a spreadsheet")
    assignment = parts.add_parser("assignment", help="notebooks as assignments of nbgrader, one point per exercise")
    assignment.add_argument("folder", help="the folder of a course of nbgrader, or a new one")
    assignment.add_argument("notebooks", nargs="*", help="how their names begin, such as 00 04; omit for all")
    workshop.add_parser(commands)
    server.add_parser(commands)
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.command != "lab":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if parsed.command == "doctor":
        from labkit.doctor import doctor

        return doctor()
    try:
        return _run(parsed, rest)
    except (ImportError, OSError) as error:
        if not isinstance(error, ImportError) and getattr(error, "winerror", None) not in LIBRARY:
            raise
        print(f"labkit cannot run here: {error}. `labkit doctor` says how to mend it.", file=sys.stderr)
        return 1


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    if parsed.command == "lab":
        return _lab(rest)
    if parsed.command == "serve":
        return server.serve(parsed)
    if parsed.command == "card":
        return _card(parsed.name)
    if parsed.command == "course" and parsed.what == "assignment":
        return _assignment(parsed.folder, parsed.notebooks)
    if parsed.command == "course":
        return _course(parsed.files, as_csv=parsed.csv)
    if parsed.command == "workshop":
        return workshop.run(parsed)
    if parsed.command == "scan":
        return _scan(parsed.name, revision=parsed.revision, as_json=parsed.json)
    return _models() if parsed.command == "models" else _pull(parsed.name, bits=parsed.bits, shared=parsed.shared)


def _lab(arguments: list[str]) -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        print(f"JupyterLab is not installed here. Install it with: {install_command('lab')}", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "jupyterlab", *arguments]
    if not {"-h", "--help", "--help-all", "--version"} & set(arguments):
        if failed := _pull(None, bits=None):
            return failed
        if not any(argument.startswith(ROOT_FLAGS) for argument in arguments):
            try:
                command += _root()
            except OSError as error:
                print(
                    f"The notebooks could not be copied: {error}. Name another folder in LABKIT_NOTEBOOKS, or open a "
                    "folder in place with --ServerApp.root_dir=FOLDER.",
                    file=sys.stderr,
                )
                return 1
    sys.stdout.flush()
    return subprocess.call(command)


def _root() -> list[str]:
    """The flag that opens JupyterLab on the notebooks; prints where they are and which copies were kept."""
    from labkit.course.folder import notebooks

    course = notebooks()
    if course is None:
        print("This installation has no notebooks; JupyterLab opens the current folder.")
        return []
    copied = f", {len(course.copied)} of them just copied" if course.copied else ""
    print(f"The notebooks are in {course.folder}{copied}.")
    if course.kept:
        print(
            f"Your own copies were kept: {', '.join(course.kept)}. Newer versions are available; to get them, rename "
            "or delete yours and start again."
        )
    return [f"--ServerApp.root_dir={course.folder}"]


def _pull(name: str | None, *, bits: int | None, shared: bool = False) -> int:
    from labkit.models.errors import LoadError
    from labkit.models.sources import default_model as packaged

    if name is None and bits in (None, 4) and not shared and packaged.default_is_ready():
        print(f"{packaged.NAME} is ready")
        return 0
    from labkit.language_model import load
    from labkit.models import shared_weights

    try:
        model = load(name, bits=bits)
        place = shared_weights.write(model) if shared else None
    except (LoadError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{model.name} is ready, {model.bits} bits" + (f", and one copy for all in {place}" if place else ""))
    if shared and place is None:
        print("Only 4-bit models from a wheel or a GGUF file, on the CPU, have one copy for all.", file=sys.stderr)
        return 1
    return 0


def _scan(name: str, *, revision: str | None, as_json: bool) -> int:
    """0: no danger; 1: danger; 2: it, or a part of it, could not be read."""
    from labkit.models.errors import LoadError
    from labkit.models.scan.scan import scan

    try:
        found = scan(name, revision=revision)
    except (LoadError, OSError, ValueError) as error:
        print(json.dumps({"name": name, "safe": False, "error": str(error)}) if as_json else error,
              file=sys.stdout if as_json else sys.stderr)  # fmt: skip
        return 2
    print(found.to_json() if as_json else found)
    return 1 if found.of("danger") else 0 if found.safe else 2


def _models() -> int:
    from labkit.models.catalog import models
    from labkit.models.memory import in_words

    width = max(len(model.id) for model in models())
    print(
        f"{'model':<{width}}  {'parameters':>10}  context    4 bits   16 bits  smallest GPU   code/data/recipe  licence"
    )
    for model in models():
        sizes = "".join(f"  {in_words(model.bytes[bits]):>8}" for bits in (4, 16))
        openness = f"{model.code}/{model.data}/{model.recipe}"
        licence = model.licence + (f" and {model.also}" if model.also else "")
        use = f"commercial use: {model.commercial}" + GATE[model.gated]
        print(
            f"{model.id:<{width}}  {model.parameters:>8.2f} B  {model.context:>7}{sizes}  {model.gpu:<14} "
            f"{openness:<16}  {licence} ({use})"
        )
    print(
        "\nMemory counts the weights only. Smallest GPU: 4-bit weights plus working memory. code/data/recipe: what "
        "else is\nopen; part means inference code only, or a report. Every fact with its source: labkit card NAME"
    )
    return 0


def _card(name: str | None) -> int:
    from labkit.models.card import card

    try:
        page = card(name)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(page.to_markdown(), end="")
    return 0


def _course(places: list[str], *, as_csv: bool) -> int:
    """0: all was read; 1: some file could not be, or there is none."""
    from labkit.course.checks import exercises
    from labkit.course.progress import progress_file
    from labkit.course.report import class_report, files_in

    files = files_in(places or [progress_file()])
    if not files:
        print(f"There is no progress.json in {', '.join(places)}.", file=sys.stderr)
        return 1
    if not places and not files[0].exists():
        print("No exercise was checked yet; `check` in the notebooks keeps your progress.", file=sys.stderr)
        return 1
    found = class_report(files, exercises())
    print(found.to_csv() if as_csv else found, end="" if as_csv else "\n")
    if as_csv:
        for person, why in found.unread.items():
            print(f"Not read: {person}: {why}", file=sys.stderr)
    return 1 if found.unread else 0


def _assignment(folder: str, names: list[str]) -> int:
    from labkit.course.assignment import make_assignments

    try:
        made = make_assignments(Path(folder), names)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"In {folder} are the assignments {', '.join(made)}. There, `nbgrader generate_assignment {made[0]}` makes")
    print("what students get, and `nbgrader autograde` gives a point for each exercise that is right.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
