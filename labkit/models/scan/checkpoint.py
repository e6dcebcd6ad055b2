"""What the files of a checkpoint say of each other: the index of the shards, the configuration of its code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from labkit.models.scan import code, tensor_headers
from labkit.models.scan.contents import Looked
from labkit.models.scan.places import leaves
from labkit.models.scan.rules import Finding, found, inert, listed


def compare(looked: Sequence[Looked]) -> Iterator[Finding]:
    """What only a comparison of the files shows."""
    yield from _code(looked)
    names = {one.file.name for one in looked}
    for one in looked:
        if one.kind != "json":
            continue
        if one.file.name.endswith(".index.json"):
            yield from _index(one, looked, names)
        for key, value in code.items(one.holds):
            if key == "transformers_weights" and isinstance(value, str) and leaves(value):
                yield found("path-leaves", one.file.name, f"{key} is {inert(value)!r}")


def _code(looked: Sequence[Looked]) -> Iterator[Finding]:
    """The model's own code: which configuration names which file, and what these files do."""
    python = {one.file.name: one for one in looked if one.kind == "python"}
    named = [name for one in looked if one.kind == "json" for name in code.named_in(one.holds, one.file.name)]
    trusted: set[str] = {name for name in python if name.startswith("custom_generate/")}
    for file in dict.fromkeys(name.file for name in named):
        of_file = [name for name in named if name.file == file]
        if other := dict.fromkeys(f"{name.module} of {name.repository}" for name in of_file if name.repository):
            yield found("remote-code-elsewhere", file, f"it names {listed(other)}")
        if out := dict.fromkeys(name.module for name in of_file if not name.repository and leaves(name.module)):
            yield found("path-leaves", file, f"it names {listed(out)}")
        folder = file.rpartition("/")[0]
        here = {f"{folder}/{name.module}" if folder else name.module for name in of_file if not name.repository}
        if missing := sorted(here - python.keys()):
            yield found("remote-code-missing", file, f"it names {listed(missing)}")
        if there := sorted(here & python.keys()):
            trusted |= {name for name in python if name.rpartition("/")[0] == folder} | set(there)
            yield found("remote-code", file, f"it names {listed(there)} as code to import")
    for name, one in python.items():
        yield from code.of_python(one.holds, name, trusted=name in trusted)


def _index(index: Looked, looked: Sequence[Looked], names: set[str]) -> Iterator[Finding]:
    """Does an index name just the files and tensors that there are?"""
    file = index.file.name
    places = index.holds.get("weight_map") if isinstance(index.holds, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        if index.holds is not None:
            yield found("index-differs", file, "it has no weight_map")
        return
    named = sorted(set(places.values()))
    if out := [place for place in named if leaves(place)]:
        yield found("path-leaves", file, f"it names {listed(out)}")
    if ".safetensors." in file and (other := [place for place in named if not place.endswith(".safetensors")]):
        yield found("disguised", file, f"an index of safetensors files that names {listed(other)}")
    folder = file.rpartition("/")[0]
    inside = {f"{folder}/{place}" if folder else place for place in named if not leaves(place)}
    if missing := sorted(inside - names):
        yield found(
            "index-missing", file, f"{len(missing)} of the {len(named)} files it names are not there: {listed(missing)}"
        )
    shards = {
        one.file.name.rpartition("/")[2]: one.holds
        for one in looked
        if one.kind == "safetensors" and one.holds is not None and one.file.name.rpartition("/")[0] == folder
    }
    if ".safetensors." in file:
        if unnamed := sorted(shards.keys() - set(named)):
            for shard in unnamed:
                yield found(
                    "index-unnamed", f"{folder}/{shard}" if folder else shard, f"{inert(file)} does not name it"
                )
        yield from _tensors(file, places, {name: held for name, held in shards.items() if name in named})


def _tensors(file: str, places: dict[str, str], shards: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """Is every tensor in just the file that the index names?"""
    absent = [name for name, place in places.items() if place in shards and name not in shards[place]]
    if absent:
        yield found("index-differs", file, f"tensors that are not in the files it names: {listed(absent)}")
    beyond = [name for entries in shards.values() for name in entries if name not in places]
    if beyond:
        yield found("index-differs", file, f"tensors in its files that it does not name: {listed(beyond)}")
    if twice := [f"{name} in {one} and {other}" for name, one, other in tensor_headers.twice(shards)]:
        yield found("index-differs", file, f"tensors that two files hold: {listed(twice, most=2)}")
