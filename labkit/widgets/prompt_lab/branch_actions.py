"""What the user does with the branches in a PromptLab."""

from __future__ import annotations

import threading
from functools import partial

from labkit.generation.sampling import DEFAULTS
from labkit.generation.tree import Branch
from labkit.widgets.base.tool import in_words
from labkit.widgets.prompt_lab.column import Column
from labkit.widgets.prompt_lab.parts import Lab


def take(lab: Lab, column: Column, at: int, id: int) -> None:
    """Another token at a place of the branch that is shown, and continue with the current settings."""
    tree, parent = column.tree, column.branch
    if tree is None or parent is None:
        return
    if at < len(parent) and id == parent.record.ids[at]:
        lab.status.say("The branch already has that token there.")
        return

    def work(stop: threading.Event) -> None:
        settings = {**DEFAULTS, **lab.sampling().given(), "seed": lab.seed}
        column.compare(None)
        column.show(parent, most=at)
        lab.write(column, partial(tree.branch, parent, at, id, stop=stop, **settings))
        lab.answered()

    lab.do(work)


def go_on(lab: Lab, column: Column, branch: Branch, stop: threading.Event) -> None:
    """Continue a branch."""
    assert column.tree is not None
    column.compare(None)
    column.show(branch)
    lab.write(column, partial(column.tree.extend, branch, lab.max_new_tokens, stop=stop))
    lab.answered()


def tend(lab: Lab, column: Column, kind: str, index: int, text: str) -> None:
    """One of the actions of a `BranchTree`."""
    tree = column.tree
    if tree is None or index >= len(tree):
        return
    branch = tree.branches[index]
    try:
        if kind == "rename":
            tree.rename(branch, text)
            column.refresh()
        elif kind == "prune":
            gone = tree.prune(branch)
            column.compare(None)
            column.show(branch.parent or tree.root) if column.branch in gone else column.refresh()
            lab.status.say(f"Pruned {', '.join(one.name for one in gone)}.")
        elif kind == "compare":
            again = index == column.branches.compared or branch is column.branch
            column.compare(None if again else index)
        elif kind == "continue":
            lab.do(partial(go_on, lab, column, branch))
    except ValueError as error:
        lab.status.complain(in_words(error))
    lab.refresh_snapshot()
