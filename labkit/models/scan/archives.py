"""Archives, of which only the list of members is read, and pickles inside them.

Files of torch (`.bin`, `.pt`), numpy's `.npz` and Keras' are zip archives. Sizes are those that the archive declares;
nothing is unpacked, except the beginnings of members that may be pickles.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from itertools import pairwise
from typing import Any

from labkit.models.scan import pickles
from labkit.models.scan.places import Bounded, File, leaves
from labkit.models.scan.rules import Finding, found, inert, listed

RATIO = 200
"""Declared bytes per byte of archive from which it is called a bomb; text rarely reaches 20."""
SMALL = 256 << 20  # bytes that fill no disk and no memory
MOST = 4_000
_NUMBERS = re.compile(r"(^|.*/)data/\d+$")  # the tensors of a file of torch
_LIST = 16 << 20  # bytes of a list of members
_LONGEST = 1 << 16  # bytes of the header of an array
_OBJECT = re.compile(rb"['\"][|<>=]?O\d*['\"]")
_KINDS = {".zip", ".npz", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".whl", ".egg", ".jar"}


def look(file: File) -> list[Finding]:
    """What there is to say of a zip archive."""
    with file.open(_LIST) as opened:
        try:
            with zipfile.ZipFile(opened) as archive:
                return _members(archive, file)
        except Exception as error:  # zipfile raises whatever a damaged archive leads it to
            return [found("archive-damaged", file.name, f"its list of members cannot be read: {inert(error)}")]


def _members(archive: zipfile.ZipFile, file: File) -> list[Finding]:
    members = archive.infolist()
    names = [member.filename for member in members]
    findings = _of_the_list(members, file)
    code = [name for name in names if ("code/" in name and name.endswith(".py")) or name.endswith("constants.pkl")]
    if code and any(name.endswith("data.pkl") for name in names):
        findings.append(found("torchscript", file.name, f"it holds the program {listed(code, most=2)}"))
    if nested := [name for name in names if name.lower().endswith(tuple(_KINDS))]:
        findings.append(found("archive", file.name, f"archives in it: {listed(nested)}"))
    plain = [member for member in members if not member.is_dir() and not _NUMBERS.match(member.filename)]
    budget = pickles.Budget()
    for member in plain[:MOST]:
        try:
            findings += _member(archive, member, file, budget)
        except Exception as error:  # as above
            what = f"{inert(member.filename)} in it cannot be read: {inert(error)}"
            findings.append(found("archive-damaged", file.name, what))
    if len(plain) > MOST:
        findings.append(found("not-looked-at", file.name, f"it has {len(plain):,} members; {MOST:,} were looked at"))
    if not findings:
        findings.append(found("other-format", file.name, f"a zip archive of {len(names):,} members without pickles"))
    return findings


def _of_the_list(members: list[zipfile.ZipInfo], file: File) -> list[Finding]:
    """What the list of members shows by itself."""
    findings = []
    names = [member.filename for member in members]
    declared = sum(member.file_size for member in members)
    if declared > SMALL and declared > RATIO * max(1, file.size):
        what = f"{file.size:,} bytes that unpack to {declared:,}"
        findings.append(found("archive-bomb", file.name, what))
    if out := [name for name in names if leaves(name)]:
        findings.append(found("archive-path", file.name, f"members named {listed(out)}"))
    links = [member.filename for member in members if (member.external_attr >> 28) == 0xA]
    if links:
        findings.append(found("archive-path", file.name, f"members that are links: {listed(links)}"))
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        findings.append(found("archive-damaged", file.name, f"members of the same name: {listed(twice)}"))
    spans = sorted((member.header_offset, member.compress_size) for member in members)
    if any(begin + size > after for (begin, size), (after, _) in pairwise(spans)):
        findings.append(found("archive-bomb", file.name, "members that overlap in the archive"))
    if locked := [member.filename for member in members if member.flag_bits & 1]:
        findings.append(found("not-looked-at", file.name, f"members that are encrypted: {listed(locked)}"))
    return findings


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: File, budget: pickles.Budget) -> list[Finding]:
    """What one member shows: a pickle, an array of objects or a Keras configuration."""
    name = member.filename
    if member.flag_bits & 1:
        return []  # already named
    with archive.open(member) as opened:
        stream = Bounded(opened)
        head = stream.read(16)
        stream.seek(0)
        if head.startswith(b"\x93NUMPY"):
            return numpy(stream, file.name, name, budget)
        if name.lower().endswith((".pkl", ".pickle", ".joblib", ".dill")) or pickles.is_pickle(head):
            return pickles.look(stream, file.name, name, budget=budget)
        if name in ("config.json", "keras_metadata.json") and file.suffix == ".keras":
            return keras(stream.read(8 << 20), file.name)
    return []


def numpy(stream: Bounded, file: str, inside: str = "", budget: pickles.Budget | None = None) -> list[Finding]:
    """What an array of numpy's holds beside numbers: objects are kept as a pickle behind its header."""
    first = stream.read(8)
    wide = first[6:7] not in (b"\x01", b"")
    length = int.from_bytes(stream.read(4 if wide else 2), "little")
    if length > _LONGEST:
        what = f"{inert(inside) or 'the file'} has a header of {length:,} bytes, behind which a pickle can hide"
        return [found("pickle-cannot-be-followed", file, what)]
    header = stream.read(length)
    if not _OBJECT.search(header):
        return []
    return pickles.look(stream, file, inside, budget=budget)


def keras(text: bytes, file: str) -> list[Finding]:
    """Layers in a Keras configuration that hold code."""
    if re.search(rb"\"class_name\"\s*:\s*\"Lambda\"", text):
        return [found("keras-lambda", file, "a Lambda layer")]
    return []


def compressed(file: File, head: bytes) -> list[Finding]:
    """What there is to say of an archive that is not looked into."""
    kind = next((name for magic, name in MAGIC.items() if head.startswith(magic)), "an archive")
    findings = [found("archive", file.name, f"{kind}, {file.size:,} bytes")]
    if head.startswith(b"\x1f\x8b") and file.size > 18:
        with file.open() as opened:
            opened.seek(-4, io.SEEK_END)
            declared = int.from_bytes(opened.read(4), "little")  # modulo 4 GiB
        if declared > SMALL and declared > RATIO * file.size:
            what = f"{file.size:,} bytes that unpack to {declared:,}"
            findings = [found("archive-bomb", file.name, what)]
    return findings


MAGIC: dict[bytes, Any] = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
