"""Which wheels a machine needs, and pip to fetch them.

pip resolves for the machine that it runs on, also where it downloads for another. So the versions are those that are
installed here, and what else another platform needs is found from their metadata, with that platform's markers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.request import urlopen

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from labkit._version import DISTRIBUTION, __version__
from labkit.course.folder import CHECKOUT
from labkit.doctor import is_installed, unreachable


@dataclass(frozen=True)
class Platform:
    """A kind of machine: its name, its processors, pip's tags for it, newest first, and what markers see there."""

    name: str
    machines: tuple[str, ...]
    tags: tuple[str, ...]
    markers: dict[str, str]


PLATFORMS = {
    one.name: one
    for one in (
        Platform(
            "linux", ("x86_64",),
            (*(f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)), "manylinux2014_x86_64",
             "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
            {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
        ),
        Platform(
            "macos", ("arm64",),
            tuple(f"macosx_{major}_0_{kind}" for major in range(15, 10, -1) for kind in ("arm64", "universal2"))
            + tuple(f"macosx_10_{minor}_universal2" for minor in range(16, 8, -1)),
            {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
        ),
        Platform(
            "windows", ("amd64",), ("win_amd64",),
            {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
        ),
    )
}  # fmt: skip


def needed(
    platform: Platform, python: str, *, extras: Iterable[str] = ("lab",), folder: Path | None = None
) -> dict[str, str]:
    """What labkit needs on a kind of machine: pip's requirement by name, with the version that is installed here.

    Args:
        platform: the kind of machine.
        python: its version of Python, such as `3.12`.
        extras: those of labkit.
        folder: wheels that are there already. What these need counts, not what is installed: a build of PyTorch for
            CUDA needs gigabytes more than one for the CPU.
    """
    wheels = {(name, number): file for name, number, file in _provided(folder, platform, python)} if folder else {}
    found: dict[str, str] = {}
    waiting = [(DISTRIBUTION, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    environment = _environment(platform, python)
    while waiting:
        name, wanted = waiting.pop()
        name = canonicalize_name(name)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            there = distribution(name)
        except PackageNotFoundError:
            found.setdefault(name, name)  # for that platform alone; its newest version
            continue
        if name != canonicalize_name(DISTRIBUTION):
            found[name] = f"{name}=={there.version.partition('+')[0]}"
        wheel = wheels.get((name, there.version.partition("+")[0]))
        requires = _requires(wheel) if wheel else there.requires or []
        waiting += [(one.name, frozenset(one.extras)) for one in _asked(requires, environment, wanted)]
    return found


def unmet(folder: Path, platform: Platform, python: str, *, extras: Iterable[str] = ("lab",)) -> dict[str, str]:
    """What an installation from the folder's wheels alone would find missing on such a machine.

    It goes by what the wheels themselves ask for, which need not be what is installed here.

    Returns:
        By name, what asks for it and in which version.
    """
    wheels: dict[str, list[tuple[str, Path]]] = {}
    for name, number, file in _provided(folder, platform, python):
        wheels.setdefault(name, []).append((number, file))
    environment = _environment(platform, python)
    found: dict[str, str] = {}
    start = Requirement(f"{DISTRIBUTION}[{','.join(extras)}]")
    waiting = [(start, "the workshop")]
    seen: set[tuple[str, frozenset[str], str]] = set()
    while waiting:
        one, asker = waiting.pop()
        name = canonicalize_name(one.name)
        if (key := (name, frozenset(one.extras), str(one.specifier))) in seen:
            continue
        seen.add(key)
        fitting = [w for w in wheels.get(name, []) if one.specifier.contains(w[0], prereleases=True)]
        if not fitting:
            found[name] = f"{asker} needs {name}{one.specifier}"
            continue
        number, file = max(fitting, key=lambda w: Version(w[0]))
        requires = _requires(file)
        waiting += [(more, f"{name} {number}") for more in _asked(requires, environment, frozenset(one.extras))]
    return found


def _environment(platform: Platform, python: str) -> dict[str, str]:
    """What markers see on such a machine."""
    return platform.markers | {
        "python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }  # fmt: skip


def _asked(lines: Iterable[str], environment: dict[str, str], extras: frozenset[str]) -> Iterator[Requirement]:
    """Of a package's requirements those that hold in an environment, with some of its extras."""
    for one in map(Requirement, lines):
        if one.marker is None or any(one.marker.evaluate(environment | {"extra": e}) for e in ("", *extras)):
            yield one


def _requires(wheel: Path) -> list[str]:
    """The requirements in a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def missing(folder: Path, wanted: dict[str, str], platform: Platform, python: str) -> dict[str, str]:
    """Of what is wanted, that which no wheel in the folder provides on such a machine."""
    there = list(_provided(folder, platform, python))
    return {
        name: requirement
        for name, requirement in wanted.items()
        if not any(name == had and Requirement(requirement).specifier.contains(number) for had, number, _ in there)
    }


def _provided(folder: Path, platform: Platform, python: str) -> Iterator[tuple[str, str, Path]]:
    """The folder's wheels that fit such a machine: name, version, file."""
    short = python.replace(".", "")
    for file in folder.glob("*.whl"):
        name, number, _, tags = parse_wheel_filename(file.name)
        for tag in tags:
            fits = tag.interpreter in (f"cp{short}", "py3", f"py{short}", "py2.py3") or tag.abi == "abi3"
            if fits and (tag.platform == "any" or tag.platform in platform.tags):
                yield str(name), str(number).partition("+")[0], file
                break


def fetch(
    folder: Path, wanted: dict[str, str], platform: Platform, python: str, *, index: str | None
) -> dict[str, str]:
    """Download wheels, all that can be had; those that are there stay.

    A wheel arrives whole: pip writes it elsewhere first.

    Returns:
        By name, why a wheel could not be had.

    Raises:
        ConnectionError: pip does not reach the package index, or `index` has nothing; nothing more is tried, since that
            takes hours.
    """
    todo = list(missing(folder, wanted, platform, python).items())
    if todo and index:  # pip itself passes over one that is not there, and takes gigabytes from the usual one
        try:
            urlopen(f"{index.rstrip('/')}/torch/", timeout=30).close()
        except (OSError, ValueError) as error:
            raise ConnectionError(f"{index} has no torch ({error}): check the address given with --index") from error
    if not todo or not _pip(folder, [requirement for _, requirement in todo], platform, python, index):
        return {}
    if why := unreachable("torch"):
        raise ConnectionError(f"{why}, then run the same command again; what is in {folder.parent} stays")
    return _halving(folder, todo, platform, python, index)


def _halving(
    folder: Path, todo: list[tuple[str, str]], platform: Platform, python: str, index: str | None
) -> dict[str, str]:
    """pip fetches all or nothing, so where it fails each half is tried; in the end another version of that package.

    The version that is installed here may be for later patch releases of Python than the first, or for fewer platforms.
    """
    why = _pip(folder, [requirement for _, requirement in todo], platform, python, index) if todo else ""
    if not why:
        return {}
    if len(todo) == 1:
        name, _ = todo[0]
        return {name: why} if _pip(folder, [name], platform, python, index) else {}
    half = len(todo) // 2
    parts = (_halving(folder, part, platform, python, index) for part in (todo[:half], todo[half:]))
    return {name: reason for part in parts for name, reason in part.items()}


def _pip(folder: Path, requirements: list[str], platform: Platform, python: str, index: str | None) -> str:
    """pip's last line if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(folder), "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [part for tag in platform.tags for part in ("--platform", tag)]
    command += ["--extra-index-url", index] if index else []
    done = subprocess.run([*command, *requirements], capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["pip said nothing"])[-1] if done.returncode else ""


def own_wheel(folder: Path) -> str:
    """labkit's own wheel: built where this is a checkout, else from the index. Why not, if it cannot be had."""
    pip, stem = [sys.executable, "-m", "pip", "--disable-pip-version-check"], DISTRIBUTION.replace("-", "_")
    checkout = CHECKOUT.parent if (CHECKOUT.parent / "pyproject.toml").is_file() else None
    if checkout is None and any(folder.glob(f"{stem}-{__version__}-*.whl")):
        return ""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        if checkout is None:
            command = [*pip, "download", "--quiet", "--no-deps", "--dest", temporary, f"{DISTRIBUTION}=={__version__}"]
        else:
            here = ["--no-build-isolation"] if is_installed("hatchling") else []
            command = [*pip, "wheel", "--quiet", "--no-deps", *here, "--wheel-dir", temporary, str(checkout)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        (new,) = Path(temporary).glob("*.whl")
        for old in folder.glob(f"{stem}-*.whl"):
            if old.name != new.name or old.read_bytes() != new.read_bytes():  # of an older checkout
                old.unlink()
        if not (folder / new.name).exists():
            new.replace(folder / new.name)
    return ""
