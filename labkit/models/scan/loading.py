"""The part of a scan that `lk.load` always runs, in a few milliseconds: what is plainly hostile is refused.

Headers of safetensors are compared with their files where `sources.tensors` reads them, and a model's own code is
refused by transformers unless it is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from labkit.models.errors import UnsafeCheckpoint
from labkit.models.scan import templates
from labkit.models.scan.places import leaves
from labkit.models.scan.rules import Finding, inert, listed


def more(label: str) -> str:
    """What to say at the end of a refusal."""
    return f"lk.scan({label!r}) tells more"


def check_paths(names: Iterable[str], label: str, *, of: str) -> None:
    """Refuse names of files that lead out of the model's folder.

    Args:
        names: as the checkpoint gives them.
        label: what to call the model.
        of: the file that gives them.

    Raises:
        UnsafeCheckpoint: one does.
    """
    if out := [name for name in names if leaves(name)]:
        raise UnsafeCheckpoint(
            f"{inert(of)} of {label} names {listed(out)}, outside the model's folder, so it was not loaded. Do not use "
            f"this checkpoint; {more(label)}"
        )


def check_templates(tokenizer: Any, label: str) -> None:
    """Refuse a chat template that tries to reach Python or never to end.

    Raises:
        UnsafeCheckpoint: it does; the message says in which line.
    """
    held = getattr(tokenizer, "chat_template", None)
    named = held if isinstance(held, dict) else {"": held}
    bad: list[Finding] = [
        finding
        for name, template in named.items()
        if isinstance(template, str)
        for finding in templates.look(template, "chat template", str(name))
        if finding.severity == "danger"
    ]
    if bad:
        raise UnsafeCheckpoint(
            f"{label} was not loaded: its chat template is not safe to use ({bad[0].what}). {bad[0].why}. {more(label)}"
        )
