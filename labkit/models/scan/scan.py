"""`lk.scan`: a verdict on a checkpoint before it is opened."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from labkit.models.scan import checkpoint, licences
from labkit.models.scan.contents import look
from labkit.models.scan.places import place_of
from labkit.models.scan.report import Scan, ordered

_AT_ONCE = 16  # files of the hub, whose headers come one request after another otherwise


def scan(name: str | os.PathLike[str], *, revision: str | None = None) -> Scan:
    """Is this checkpoint safe to open? Looked at as data: nothing in it is unpickled, rendered, imported or run.

    Looked for are pickles and what they import (also inside archives and numpy's arrays), the model's own Python code,
    chat templates that reach beyond their sandbox or never end, headers of safetensors and GGUF that lie about the
    file, paths and links that leave the folder, archives that unpack to far more than they are, programs, files that
    the index does not name, and a licence other than the declared one. Of weights only headers are read. What a model
    says, and whether its weights were tampered with, cannot be seen in this way.

    Args:
        name: what `lk.load` takes: a hub id, a folder or a .gguf file. A model of the hub is looked at in the hub's
            cache if its weights are there, else over the network without downloading them.
        revision: on the hub.

    Returns:
        The findings with a verdict. `safe` is true if all could be looked at and there is no danger.

    Raises:
        LoadError: there is no such model, or it cannot be reached.
    """
    place = place_of(name, revision=revision)
    if place.kind == "hub":
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looked = list(pool.map(look, place.files))
    else:
        looked = [look(file) for file in place.files]
    findings = [*place.findings, *(finding for one in looked for finding in one.findings)]
    findings += checkpoint.compare(looked)
    findings += licences.compare(looked)
    size = sum(file.size for file in place.files)
    return Scan(place.label, place.kind, place.revision, len(place.files), size, ordered(findings))
