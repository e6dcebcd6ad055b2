"""BranchTree: the branches of a text, as a tree to select, rename, compare, prune and continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import traitlets as t

from labkit.widgets.base.block import Block, module
from labkit.widgets.base.picture import lines

ACTIONS = ("continue", "compare", "rename", "prune")
_MOST_TEXT = 100  # characters of a branch in a picture


class BranchTree(Block):
    """Branches below the ones they left.

    Arrow keys move, Enter selects, F2 renames, Delete prunes, c compares, + continues.

    Args:
        branches: in the order in which they grew, each `{"name": "B", "parent": 0, "at": 12, "taken": "·John",
            "instead": "·Mary", "text": "what follows", "tokens": 40, "bits": 1.2, "finish": "length"}`; `parent` is an
            index or None, `bits` the surprisal per token.
        title: a line above.
        actions: which of `continue`, `compare`, `rename` and `prune` are offered.

    Traits:
        selection (int | None), compared (int | None): indices into branches; both can be observed, linked and set.

    `on_action` is called with what the user asks for; the widget changes nothing by itself.
    """

    _esm = module("branch_tree")

    branches = t.List(t.Dict()).tag(sync=True)
    title = t.Unicode().tag(sync=True)
    actions = t.List(t.Enum(ACTIONS), list(ACTIONS)).tag(sync=True)
    selection = t.Int(None, allow_none=True).tag(sync=True)
    compared = t.Int(None, allow_none=True).tag(sync=True)

    def __init__(self, branches: Sequence[dict[str, Any]] = (), **traits: Any) -> None:
        super().__init__(branches=list(branches), **traits)

    @t.validate("branches")
    def _grown(self, proposal: Any) -> Any:
        for index, branch in enumerate(proposal["value"]):
            parent = branch.get("parent")
            if parent is not None and not 0 <= parent < index:
                raise t.TraitError(f"a branch must come after its parent; branch {index} names {parent} as its parent")
        return proposal["value"]

    def on_action(self, call: Callable[[str, int, str], Any]) -> None:
        """Call this with (action, index, text) when the user asks for one; the text is the new name for `rename`."""

        def heard(_widget: Any, message: Any, _buffers: Any) -> None:
            kind = message.get("kind")
            if kind in self.actions and 0 <= int(message["index"]) < len(self.branches):
                call(kind, int(message["index"]), str(message.get("text", "")))

        self.on_msg(heard)

    def depths(self) -> list[int]:
        """How many branches each one is away from the first."""
        found: list[int] = []
        for branch in self.branches:
            parent = branch.get("parent")
            found.append(0 if parent is None else found[parent] + 1)
        return found

    def picture(self) -> str:
        """The tree as an image without a frame, for the snapshot of a tool."""
        rows = []
        for branch, depth in zip(self.branches, self.depths(), strict=True):
            place = f" at {branch['at']}: {branch.get('taken', '')}" if branch.get("parent") is not None else ""
            text = " ".join(str(branch.get("text", "")).split())
            rows.append((depth, str(branch["name"]), place.strip(), text[:_MOST_TEXT]))
        if not rows:
            return ""
        about = "; ".join(f"{name} {place}: {text}" for _, name, place, text in rows)
        return lines(rows, f"{self.title or 'Branches'}: {about}")

    def code(self) -> str:
        """The Python that makes the same tree."""
        return f"import labkit as lk\n\nlk.BranchTree(\n    {self.branches!r},\n    title={self.title!r},\n)\n"

    def __repr__(self) -> str:
        return f"BranchTree({', '.join(str(branch['name']) for branch in self.branches)})"
