"""Circuits: a set of kept edges, and whether they do what the model does.

A circuit is faithful if the model behaves the same when every edge outside it carries what it would in the corrupt run
(Hanna et al. 2024). That is a forward pass in which each receiver has an input of its own: the corrupt residual stream,
with the corrupt outputs of the senders on its kept edges replaced by their current ones. Receivers of a layer with the
same kept senders share a row; those with none are as in the corrupt run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from labkit.circuits.graph import Wiring
from labkit.circuits.mib import write_mib
from labkit.circuits.prepare import Prepared, prepared
from labkit.elsewhere import names_only, where_the_model_is
from labkit.language_model import LanguageModel
from labkit.patching.spec import PAIR, PairSpec
from labkit.results.job import finish
from labkit.text.warn import warn

if TYPE_CHECKING:
    import pandas as pd

_MANY = 10  # pairs, from which on there is a progress bar


class Scores(Protocol):
    """What a circuit needs of the scores it was chosen by: `EdgeScores`."""

    wiring: Wiring
    values: np.ndarray
    recipe: dict[str, Any]

    @property
    def scores(self) -> pd.DataFrame: ...
    def code(self) -> str: ...


@dataclass(repr=False)
class Circuit:
    """Edges of a model, each on a path from the embedding to the logits.

    Attributes:
        kept: (sender, receiver) bool.
        scores: the scores they were chosen by.
    """

    kept: np.ndarray
    scores: Scores
    made_by: str = field(default="", repr=False)

    @property
    def wiring(self) -> Wiring:
        return self.scores.wiring

    @property
    def n_edges(self) -> int:
        return int(self.kept.sum())

    @cached_property
    def edges(self) -> pd.DataFrame:
        """One row per edge: `sender`, `receiver`, `score`, the largest magnitude first."""
        frame, names = self.scores.scores, (self.wiring.senders, self.wiring.receivers)
        senders, receivers = ({name: n for n, name in enumerate(side)} for side in names)
        mine = self.kept[frame["sender"].map(senders), frame["receiver"].map(receivers)]
        return frame[mine].reset_index(drop=True)

    @property
    def nodes(self) -> list[str]:
        """The parts on its paths: `embed`, heads `z.5.3`, MLPs `mlp_out.5`, `logits`."""
        speaking = np.flatnonzero(self.kept.any(1)).tolist()
        return [*(self.wiring.senders[n] for n in speaking), "logits"]

    def faithfulness(self, lm: LanguageModel, pairs: Iterable[Any], *, metric: Any = None) -> Faithfulness:
        """The metric with every edge outside the circuit at its corrupt value: 0 = corrupt, 1 = clean.

        Args:
            lm: the model whose circuit it is.
            pairs: pairs of prompts, each (clean, corrupt, answer, foil): a tuple, a mapping, or an object with these
                names. They need not be the pairs that the circuit was found on.
            metric: as in `lk.patch`.

        Raises:
            ValueError: there are no pairs, one is malformed, or the circuit belongs to another model.
        """
        return self._measured(lm, pairs, self.kept, metric)

    def completeness(self, lm: LanguageModel, pairs: Iterable[Any], *, metric: Any = None) -> Faithfulness:
        """The same with the circuit removed: its edges corrupt, all others intact. Near 0 if no edge was missed."""
        return self._measured(lm, pairs, self.wiring.exists & ~self.kept, metric)

    def random(self, seed: int = 0) -> Circuit:
        """The same circuit through other heads: do these heads matter, or only how many edges there are where?

        In every layer the heads are permuted at random (key-value heads, and the heads that share one among
        themselves). So it has as many edges of each kind between any two layers as this circuit, all on paths from the
        embedding to the logits. MLPs, the embedding and the logits keep their edges: what remains of the behaviour is
        theirs, with arbitrary heads. Another seed gives another circuit.
        """
        kept = _other_heads(self.wiring, self.kept, np.random.default_rng(seed))
        return Circuit(kept, self.scores, f"{self.made_by}circuit = circuit.random({seed})\n")

    def without(self, sender: str, receiver: str) -> Circuit:
        """The circuit without one edge and whatever is then on no path. It is minimal if every such cut harms it.

        Raises:
            ValueError: it has no such edge.
        """
        at = tuple(
            names.index(name) if name in names else -1
            for names, name in ((self.wiring.senders, sender), (self.wiring.receivers, receiver))
        )
        if -1 in at or not self.kept[at]:
            raise ValueError(f"{sender} -> {receiver} is not an edge of this circuit; circuit.edges lists them")
        kept = self.kept.copy()
        kept[at] = False
        made_by = f"{self.made_by}circuit = circuit.without({sender!r}, {receiver!r})\n"
        return Circuit(self.wiring.pruned(kept), self.scores, made_by)

    def code(self) -> str:
        """The Python that makes this circuit again."""
        return self.scores.code() + self.made_by

    def save_mib(self, path: str | os.PathLike[str], *, d_model: int | None = None) -> Path:
        """Write the circuit and its scores as MIB's JSON; see `EdgeScores.save_mib`. `lk.load_mib` opens it."""
        width = d_model or self.scores.recipe.get("d_model")
        return write_mib(path, self.wiring, self.scores.values, self.kept, width)

    def __repr__(self) -> str:
        share = self.n_edges / int(self.wiring.exists.sum())
        heads = sum(name.startswith("z") for name in self.nodes)
        mlps = sum(name.startswith("mlp") for name in self.nodes)
        return f"Circuit({self.n_edges} edges, {share:.2%} of all, between {heads} heads and {mlps} MLPs)"

    def _measured(self, lm: LanguageModel, pairs: Iterable[Any], kept: np.ndarray, metric: Any) -> Faithfulness:
        names_only(lm, metric=metric)
        job = _Measuring(self, lm, [_pair(pair) for pair in pairs], kept, metric)
        if not job.pairs:
            raise ValueError("faithfulness needs at least one pair: [(clean, corrupt, answer, foil)]")
        finish(job, "pairs", unit="pair", kept="faithfulness", progress=job.total >= _MANY)
        if not job.done:
            raise KeyboardInterrupt
        if close := job.close:
            warn(
                f"in {len(close)} of {job.done} pairs clean and corrupt hardly differ, so there is nothing to explain "
                f"in them: {', '.join(map(str, close[:12]))}. They are counted with the gap they have"
            )
        return job.faithfulness


@dataclass
class _Measuring:
    """The three runs of each pair."""

    circuit: Circuit
    lm: LanguageModel
    pairs: list[tuple[Any, ...]]
    kept: np.ndarray
    metric: Any
    numbers: list[tuple[float, float, float]] = field(default_factory=list)  # clean, corrupt, circuit
    close: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.pairs)

    @property
    def done(self) -> int:
        return len(self.numbers)

    @property
    def faithfulness(self) -> Faithfulness:
        clean, corrupt, circuit = np.array(self.numbers, np.float64).reshape(-1, 3).T
        return Faithfulness(clean, corrupt, circuit, [(pair[0], pair[1]) for pair in self.pairs[: self.done]])

    def steps(self) -> Iterator[None]:
        wiring = self.circuit.wiring
        for pair in self.pairs:
            found = _three_runs(self.lm, pair, self.metric, self.kept, wiring)
            if found is None:
                raise ValueError(f"this circuit is for {self.circuit.scores.recipe['model']}, not for {self.lm.name}")
            numbers, too_close = found
            self.close += [self.done] * too_close
            self.numbers.append(numbers)
            yield


@where_the_model_is
def _three_runs(
    lm: LanguageModel, pair: tuple[Any, ...], metric: Any, kept: np.ndarray, wiring: Wiring
) -> tuple[tuple[float, float, float], bool] | None:
    """The metric of a pair (clean, corrupt, circuit), and whether the first two hardly differ; None if the model is
    wired in another way."""
    work = prepared(lm, PairSpec(*pair, metric=metric))
    if work.wiring != wiring:
        return None
    return (work.metrics["clean"], work.metrics["corrupt"], patched(work, kept, wiring)), work.too_close


@dataclass(repr=False)
class Faithfulness:
    """The metric on several pairs: of the two plain runs, and with the circuit alone; each (pairs,)."""

    clean: np.ndarray
    corrupt: np.ndarray
    circuit: np.ndarray
    prompts: list[tuple[Any, Any]] = field(repr=False)

    @property
    def value(self) -> float:
        """Of the means over the pairs: 0 is the corrupt run, 1 the clean one; NaN if they are equal."""
        gap = float((self.clean - self.corrupt).mean())
        return float((self.circuit - self.corrupt).mean()) / gap if gap else float("nan")

    def __float__(self) -> float:
        return self.value

    def to_frame(self) -> pd.DataFrame:
        """One row per pair: the prompts, the metric of `clean`, `corrupt` and `circuit`, and `normalized`."""
        import pandas as pd

        gap = np.where(self.clean == self.corrupt, np.nan, self.clean - self.corrupt)
        texts = {"prompt": [p[0] for p in self.prompts], "corrupt prompt": [p[1] for p in self.prompts]}
        numbers = {"clean": self.clean, "corrupt": self.corrupt, "circuit": self.circuit}
        return pd.DataFrame(texts | numbers | {"normalized": (self.circuit - self.corrupt) / gap})

    def __repr__(self) -> str:
        many = f"{len(self.clean)} pair{'s' * (len(self.clean) > 1)}"
        means = ", ".join(f"{name} {getattr(self, name).mean():.2f}" for name in ("circuit", "clean", "corrupt"))
        return f"Faithfulness({self.value:.2f} on {many}: {means})"


def patched(work: Prepared, kept: np.ndarray, wiring: Wiring) -> float:
    """The metric with the kept edges (sender, receiver) carrying current outputs, all others corrupt ones."""
    with work.lm.busy(), work.lm.for_patching():
        x = _Forward(work, kept, wiring).last()
        return float(work.measure(x.to(work.lm.dtype)[None])[0])


class _Forward:
    """One forward pass in which every receiver has an input of its own."""

    def __init__(self, work: Prepared, kept: np.ndarray, wiring: Wiring) -> None:
        self.kept = torch.from_numpy(kept.astype(np.float32)).to(work.lm.device)
        self.wiring, self.parts, self.work = wiring, work.parts["corrupt"], work
        embed = work.parts["clean"].embed - self.parts.embed
        # each sender's output now minus that in the corrupt run; (sender, seq, d_model) float32
        self.changes = embed.new_zeros(len(wiring.senders), *embed.shape)
        self.changes[0] = embed

    def last(self) -> torch.Tensor:
        """The last residual stream at the last position (d_model,), as the logits see it."""
        for layer in range(self.wiring.n_layers):
            spoken = self.changes[self.wiring.senders_of_layer(layer)]
            if (heads := self._heads(layer)) is not None:
                spoken[:-1] = heads
            if (mlp := self._mlp(layer)) is not None:  # one side by side with the heads has no edge from them
                spoken[-1] = mlp
        heard = torch.einsum("s,sd->d", self.kept[:, -1], self.changes[:, -1])
        return self.parts.base.resid[-1][-1].float() + heard

    def _heads(self, layer: int) -> torch.Tensor | None:
        """The heads' outputs minus the corrupt ones (head, seq, d_model); None if their inputs are unchanged."""
        heard = self.wiring.receivers_of_layer(layer)
        kept = self.kept[:, heard][:, :-1]  # (sender, q + k + v)
        sets, which = torch.unique(kept, dim=1, return_inverse=True)
        news = torch.einsum("sr,spd->rpd", sets, self.changes)  # (row, seq, d_model)
        loud = news.flatten(1).any(1)
        if not bool(loud.any()):
            return None
        base = self.parts.base.resid[layer]
        rows = (base.float() + news[loud]).to(base.dtype)
        made = self.parts.rows.attention(layer, rows)
        row = torch.where(loud, loud.cumsum(0) - 1, -1)[which].tolist()  # each receiver's row, -1 for as it was
        stored = self.parts.base.attention[layer]
        call = []
        for kind, old in (("q", stored.q), ("k", stored.k), ("v", stored.v)):
            new = old.clone()  # (1, head, seq, d_head)
            for head in range(old.shape[1]):
                if (at := row.pop(0)) >= 0:
                    new[0, head] = made[kind][at, :, head]
            call.append(new)
        z = self.parts.rows.call_of(layer, *call).fast()  # (1, seq, head, d_head)
        return self.parts.heads(layer, base[None], z=z)[0] - self.parts.own(layer).heads[0]

    def _mlp(self, layer: int) -> torch.Tensor | None:
        """The MLP's output minus the corrupt one (seq, d_model); None if its input is unchanged."""
        at = self.wiring.receivers_of_layer(layer).stop - 1
        news = torch.einsum("s,spd->pd", self.kept[:, at], self.changes)
        if not bool(news.any()):
            return None
        base = self.parts.mlp_input(layer)
        x = (base.float() + news).to(base.dtype)
        return self.parts.mlp(layer, x[None])[0] - self.parts.own(layer).mlp[0]


def _pair(pair: Any) -> tuple[Any, Any, Any, Any]:
    if isinstance(pair, Mapping) and all(name in pair for name in PAIR):
        return tuple(pair[name] for name in PAIR)
    if all(hasattr(pair, name) for name in PAIR):
        return tuple(getattr(pair, name) for name in PAIR)
    if isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 4:
        return tuple(pair)
    raise ValueError(f"a pair is (clean, corrupt, answer, foil); got {pair!r:.80}")


def _other_heads(wiring: Wiring, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The edges (sender, receiver) with the heads of each layer permuted."""
    senders, receivers = np.arange(kept.shape[0]), np.arange(kept.shape[1])
    for layer, (heads, kv) in enumerate(zip(wiring.n_heads, wiring.n_kv_heads, strict=True)):
        if not heads:
            continue
        groups = rng.permutation(kv)  # heads that share keys and values stay together
        share = heads // kv
        place = np.concatenate([group * share + rng.permutation(share) for group in groups])
        said, heard = wiring.senders_of_layer(layer).start, wiring.receivers_of_layer(layer).start
        senders[said : said + heads] = said + place
        for start, moved in ((heard, place), (heard + heads, groups), (heard + heads + kv, groups)):
            receivers[start : start + len(moved)] = start + moved
    found = np.zeros_like(kept)
    found[np.ix_(senders, receivers)] = kept
    return found
