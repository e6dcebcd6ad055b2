"""What a model wrote after a prompt, and what it writes after other tokens: a tree of branches.

A branch keeps the tokens of its parent up to where it leaves it, and holds only its own from there on. Draws depend on
the seed and the place (`labkit.generation.sampling`), so branches of one seed differ only by the token taken.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.run import run
from labkit.generation.generate import room_for
from labkit.generation.loop import OnToken, ends_of, extend_record
from labkit.generation.result import speed
from labkit.generation.sampling import Sampling
from labkit.generation.token_table import COLUMNS, Distribution, GeneratedToken, Record, Transcript, frame_rows
from labkit.models.handle import Model
from labkit.models.reference import RefersToModel
from labkit.text.as_code import as_code
from labkit.text.encode import single_token
from labkit.text.prompts import asked, packed, unpacked
from labkit.text.types import Prompt

if TYPE_CHECKING:
    import pandas as pd


@dataclass(eq=False)
class Branch(Transcript):
    """One way the text went.

    Attributes:
        name: `A` for the first, then `B`, `C`, ...; `tree.rename` gives another.
        parent, at: the branch it left, and after how many of that branch's tokens; None and 0 for the first.
        own: its own tokens, from `at` on; the first is the one that was taken instead.
        sampling: the settings it was written with.
        finish: why it ended, as in `Generation`; `writing` while in progress, `failed` after an error.
    """

    name: str
    parent: Branch | None
    at: int
    own: Record
    sampling: Sampling
    tokenizer: Any = field(repr=False)
    finish: str = "writing"
    seconds: float = 0.0
    first_seconds: float = 0.0
    fresh: int = 0  # tokens of `own` that the last run of the model wrote

    @property
    def record(self) -> Record:  # type: ignore[override]
        """All its tokens after the prompt."""
        return self.own if self.parent is None else self.parent.record.part(0, self.at).then(self.own)

    @property
    def tokens(self) -> list[GeneratedToken]:  # anew each time: it grows
        return list(self.record.tokens(self.tokenizer))

    @property
    def taken(self) -> GeneratedToken | None:
        """The token with which it left its parent."""
        return self.own.token(0, self.tokenizer) if self.parent is not None and len(self.own) else None

    @property
    def tokens_per_second(self) -> float:
        return speed(self.fresh, self.seconds, self.first_seconds)

    def __len__(self) -> int:
        return self.at + len(self.own)

    def __repr__(self) -> str:
        return f"Branch({self.name!r}, {len(self)} tokens, finish={self.finish!r}: {self.text!r:.60})"


class Tree(RefersToModel):
    """A prompt and the branches grown from it; made by `lm.tree`.

    `tree.branch("A", 12, " John")` takes another token at place 12 and continues from there; `tree["B"].text` is the
    result. What was written is kept if writing fails or is stopped.

    Attributes:
        ids: the prompt (1, seq), as the model sees it.
        branches: in the order in which they were grown.
    """

    def __init__(
        self,
        lm: Model,
        prompt: Prompt,
        sampling: Sampling,
        *,
        truncate_left: bool = False,
        alternatives: int = 10,
    ) -> None:
        self.lm = lm
        self.sampling = sampling.drawn()
        self.prompt = prompt = asked(lm, prompt)
        self.ids = room_for(lm, prompt, sampling.max_new_tokens, truncate_left=truncate_left)
        self.truncated = truncate_left
        self.tokens = lm.tokens(self.ids)
        self.alternatives = min(alternatives, lm.n_vocab)
        self.branches: list[Branch] = []
        self._names = 0

    def start(self, *, stop: threading.Event | None = None, on_token: OnToken | None = None) -> Branch:
        """Write the first branch."""
        if self.branches:
            raise ValueError("the tree already has its first branch; branch or extend that one")
        return self._write(self._add(None, 0, self.sampling), stop, on_token)

    def branch(
        self,
        parent: str | Branch,
        at: int,
        token: int | str,
        *,
        name: str | None = None,
        stop: threading.Event | None = None,
        on_token: OnToken | None = None,
        **settings: Any,
    ) -> Branch:
        """Take another token, and continue from there.

        Args:
            parent: the branch to leave, or its name.
            at: the place of the token to replace, 0 for the first after the prompt; the parent's tokens before it stay.
            token: the new token, as id or text (one token).
            name: what to call the branch.
            stop, on_token: as in `generate`; `on_token` is also called for the taken token.
            settings: changes to the parent's settings; `max_new_tokens` counts from the prompt.

        Raises:
            ValueError: no such branch, place or token.
        """
        parent = self[parent]
        if not 0 <= at < len(parent):
            raise ValueError(f"branch {parent.name} can be branched at places 0 to {len(parent) - 1}; got {at}")
        id = single_token(self.lm, token, role="token", after=self.prefix(parent, at))
        sampling = replace(parent.sampling, **settings).drawn()
        if name is not None and any(name == one.name for one in self.branches):
            raise ValueError(f"there is already a branch {name!r}; choose another name")
        row = self._row(parent, at, id)
        branch = self._add(parent, at, sampling, name)
        branch.own.append(row)
        if on_token is not None:
            on_token(branch.own.token(0, self.lm.tokenizer))
        return self._write(branch, stop, on_token)

    def extend(
        self,
        branch: str | Branch,
        more: int = 64,
        *,
        stop: threading.Event | None = None,
        on_token: OnToken | None = None,
        **settings: Any,
    ) -> Branch:
        """Continue a branch by up to `more` tokens.

        Raises:
            ValueError: the model ended this text, or the context is full.
        """
        branch = self[branch]
        if branch.finish == "eos":
            raise ValueError(f"the model ended branch {branch.name}; branch it before its last token to get more")
        branch.sampling = replace(branch.sampling, **settings | {"max_new_tokens": len(branch) + more}).drawn()
        return self._write(branch, stop, on_token)

    def _write(self, branch: Branch, stop: threading.Event | None, on_token: OnToken | None) -> Branch:
        before = len(branch.own)
        left = branch.sampling.max_new_tokens - len(branch)
        ended = len(branch) > 0 and int(branch.own.rows["id"][-1]) in ends_of(self.lm)
        if ended or left <= 0:
            branch.finish = "eos" if ended else "length"
            return branch
        ids = room_for(self.lm, self.prefix(branch, len(branch)), left)
        branch.finish = "writing"
        try:
            done = extend_record(
                self.lm, ids, branch.own, replace(branch.sampling, max_new_tokens=left),
                stop=stop, on_token=on_token, own=len(branch),
            )  # fmt: skip
            branch.finish, branch.seconds, branch.first_seconds = done
        finally:
            branch.fresh = len(branch.own) - before
            if branch.finish == "writing":
                branch.finish = "failed"
        return branch

    def _row(self, parent: Branch, at: int, id: int) -> Any:
        """The row of a token at a place: known for the kept alternatives, computed for any other."""
        row = parent.record.rows[at].copy()
        if id == row["id"]:
            return row
        if len(place := np.flatnonzero(row["top_ids"] == id)):
            row["id"], row["rank"] = id, int(place[0]) + 1
            row["logprob"] = np.log(np.float32(row["top_probabilities"][place[0]]))
            return row
        logits = run(self.lm, self.prefix(parent, at)).logits[0, -1]
        return Distribution(logits, self.alternatives).row(id)

    def _add(self, parent: Branch | None, at: int, sampling: Sampling, name: str | None = None) -> Branch:
        while name is None or any(name == one.name for one in self.branches):
            name = _letters(self._names)
            self._names += 1
        branch = Branch(name, parent, at, Record(self.alternatives), sampling, self.lm.tokenizer)
        self.branches.append(branch)
        return branch

    @property
    def root(self) -> Branch:
        """The first branch."""
        return self.branches[0]

    def __getitem__(self, name: str | Branch) -> Branch:
        for branch in self.branches:
            if branch is name or branch.name == name:
                return branch
        names = ", ".join(one.name for one in self.branches) or "none yet"
        raise ValueError(f"there is no branch {getattr(name, 'name', name)!r} in this tree; there are: {names}")

    def rename(self, branch: str | Branch, name: str) -> None:
        """Give a branch another name.

        Raises:
            ValueError: it is empty or taken.
        """
        branch = self[branch]
        if not name.strip() or any(one.name == name and one is not branch for one in self.branches):
            raise ValueError(f"a name must be a string that no other branch has; got {name!r}")
        branch.name = name

    def prune(self, branch: str | Branch) -> list[Branch]:
        """Remove a branch and all that grew from it; returns what was removed.

        Raises:
            ValueError: it is the first one, which all others grow from.
        """
        branch = self[branch]
        if branch.parent is None:
            raise ValueError(f"{branch.name} is the first branch, which the others grow from; it cannot be removed")
        gone = [one for one in self.branches if branch in self.lineage(one)]
        self.branches = [one for one in self.branches if one not in gone]
        return gone

    def lineage(self, branch: str | Branch) -> list[Branch]:
        """A branch, its parent, and so on to the first."""
        branch = self[branch]
        return [branch] if branch.parent is None else [branch, *self.lineage(branch.parent)]

    def shared(self, one: str | Branch, other: str | Branch) -> int:
        """How many tokens after the prompt two branches share before they diverge."""
        a, b = self[one].record.ids, self[other].record.ids
        return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    def compare(self, one: str | Branch, other: str | Branch) -> pd.DataFrame:
        """Two branches after they diverge: text, tokens, log-probability, and surprisal in bits per token."""
        import pandas as pd

        a, b = self[one], self[other]
        at = self.shared(a, b)
        rows = []
        for branch in (a, b):
            rest = branch.record.part(at)
            text = self.lm.tokenizer.decode(rest.ids, skip_special_tokens=True)
            bits = -rest.total / np.log(2) / max(1, len(rest))
            rows.append((branch.name, at, text, len(rest), rest.total, bits, branch.finish))
        columns = ["branch", "they diverge at", "text from there", "tokens", "logprob", "bits per token", "finish"]
        return pd.DataFrame(rows, columns=columns).set_index("branch")

    def prefix(self, branch: str | Branch, at: int) -> torch.Tensor:
        """The ids (1, seq) before the token at a place of a branch: what the model saw when it wrote it."""
        head = torch.tensor([self[branch].record.ids[:at]], dtype=torch.long, device=self.ids.device)
        return torch.cat([self.ids, head], 1)

    def to_frame(self) -> pd.DataFrame:
        """One row per token of every branch: branch, place, then as in `Generation.to_frame`."""
        import pandas as pd

        rows = [
            (branch.name, place, *row)
            for branch in self.branches
            for place, row in enumerate(frame_rows(branch.tokens))
        ]
        return pd.DataFrame(rows, columns=["branch", "place", *COLUMNS])

    def code(self, branch: str | Branch | None = None) -> str:
        """The Python that grows a branch (by default the last) again, with those it came from."""
        given = (self.branches[0] if self.branches else self).sampling.given()
        if self.truncated:
            given["truncate_left"] = True
        code = as_code(self.lm.code(), "tree = lm.tree", self.prompt, **given)
        for one in reversed(self.lineage(branch or self.branches[-1])[:-1] if self.branches else []):
            assert one.parent is not None
            parent = one.parent.sampling.given()
            changed = {k: v for k, v in one.sampling.given().items() if parent.get(k) != v}
            token = int(one.own.rows["id"][0])
            call = as_code("", "tree.branch", one.parent.name, one.at, token, name=one.name, **changed)
            code += f"{call[:-1]}  # {self.lm.tokenizer.decode([token])!r}\n"
        return code

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        index = {id(branch): n for n, branch in enumerate(self.branches)}
        return {
            "prompt": self.prompt.tolist() if isinstance(self.prompt, torch.Tensor) else packed(self.prompt),
            "ids": self.ids[0].tolist(),
            "truncated": self.truncated,
            "named": self._names,
            "sampling": self.sampling.given() | {"seed": self.sampling.seed},
            "branches": [
                {
                    "name": one.name,
                    "parent": None if one.parent is None else index[id(one.parent)],
                    "at": one.at,
                    "text": one.text,
                    "finish": one.finish,
                    "seconds": [one.seconds, one.first_seconds],
                    "fresh": one.fresh,
                    "sampling": one.sampling.given() | {"seed": one.sampling.seed},
                    "record": one.own.to_dict(),
                }
                for one in self.branches
            ],
        }

    @classmethod
    def from_dict(cls, lm: Model, saved: dict[str, Any]) -> Tree:
        """The tree that `to_dict` gave, on the same model or on another with the same tokens.

        Raises:
            ValueError: this model's tokenizer does not have these tokens.
        """
        ids = torch.tensor([saved["ids"]], dtype=torch.long)
        tree = cls.__new__(cls)
        tree.lm, tree.truncated = lm, bool(saved["truncated"])
        tree.sampling = Sampling(**saved["sampling"])
        tree.ids, tree.tokens = lm.encode(ids), lm.tokens(ids)
        prompt = saved["prompt"]
        ids_asked = isinstance(prompt, list) and isinstance(prompt[0], list)
        tree.prompt = torch.tensor(prompt) if ids_asked else unpacked(prompt)
        tree.alternatives = min(10, lm.n_vocab)
        tree.branches, tree._names = [], int(saved["named"])
        for one in saved["branches"]:
            parent = None if one["parent"] is None else tree.branches[one["parent"]]
            record = Record.from_dict(one["record"])
            sampling = Sampling(**one["sampling"])
            branch = Branch(one["name"], parent, one["at"], record, sampling, lm.tokenizer, one["finish"])
            branch.seconds, branch.first_seconds = one["seconds"]
            branch.fresh = one["fresh"]
            tree.alternatives = record.alternatives
            tree.branches.append(branch)
            if branch.text != one["text"]:
                raise ValueError(f"{lm.name} tokenizes this text differently; open it with its own model")
        return tree

    def __iter__(self) -> Iterator[Branch]:
        return iter(self.branches)

    def __len__(self) -> int:
        return len(self.branches)

    def __repr__(self) -> str:
        return f"Tree({len(self.tokens)} prompt tokens, branches {', '.join(one.name for one in self.branches)})"


def tree(
    lm: Model,
    prompt: Prompt,
    *,
    stop: threading.Event | None = None,
    on_token: OnToken | None = None,
    truncate_left: bool = False,
    alternatives: int = 10,
    **settings: Any,
) -> Tree:
    """Continue a prompt, and keep what was written as the first branch of a `Tree`.

    Arguments and errors are those of `generate`.
    """
    grown = Tree(lm, prompt, Sampling(**settings), truncate_left=truncate_left, alternatives=alternatives)
    grown.start(stop=stop, on_token=on_token)
    return grown


def _letters(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letters(number // 26 - 1) if number >= 26 else "") + chr(65 + number % 26)
