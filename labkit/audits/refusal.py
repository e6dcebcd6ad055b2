"""The refusal direction: found as a difference of means, and tested as a cause.

In chat models the difference between the mean activation of refused and of answered requests, at the end of the prompt
in a middle layer, is often a direction that refusal runs through (Arditi et al. 2024, arXiv:2406.11717): added to an
answerable request it makes the model refuse, projected out of every layer it makes it comply. Here the requests are
harmless on both sides (`labkit.datasets.refusals`). One half of the pairs gives the directions and chooses the layer;
everything that is reported is measured on the other half, with directions of the same length as controls: random ones,
and ones from the same activations with shuffled labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.metrics import kl
from labkit.activations.run import run
from labkit.activations.sites import checked
from labkit.audits.openers import ROWS, asking, check_disjoint, log_odds, opener_ids, uninterrupted
from labkit.audits.refusal_report import MANNERS, OWN, SIDES, Refusal, code_of
from labkit.datasets import refusals as built_in
from labkit.elsewhere import is_elsewhere, where_the_model_is
from labkit.generation.generate import room_for
from labkit.precision.passage import PASSAGE
from labkit.results.job import finish
from labkit.results.recipe import made_with
from labkit.steering.directions import of_means
from labkit.steering.steer import steer
from labkit.steering.vector import SteeringVector
from labkit.text.as_code import changed
from labkit.text.encode import encode
from labkit.text.prompts import as_json, asked

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

EARLY = 0.8  # share of the layers among which one is chosen; the last ones hold the words of the answer already
CHOOSING = 6  # pairs on which layers are compared
WRITTEN = 10  # prompts whose answers are written
PROSE = 256  # tokens of plain prose on which damage is measured


def refusal_direction(
    lm: LanguageModel,
    pairs: Sequence[tuple[Prompt, Prompt]] | None = None,
    *,
    position: int = -1,
    layers: Sequence[int] | None = None,
    controls: int = 4,
    new_tokens: int = 16,
    refusals: Sequence[str] = built_in.REFUSALS,
    answers: Sequence[str] = built_in.ANSWERS,
    seed: int = 0,
    progress: bool = True,
) -> Refusal:
    """Find the direction between what a model answers and what it refuses, and measure what it does.

    Args:
        lm: the model, in any bits; a chat model, for a base model has not learned to refuse.
        pairs: (answered, refused) each, alike in form; by default 40 harmless ones of labkit's own. Texts become turns
            of the user where the model has a chat template.
        position: where the activations are read, counted from the end of the prompt.
        layers: among which one is chosen; by default the first 80 % of them.
        controls: how many random directions, and as many with shuffled labels.
        new_tokens: how many tokens of an answer are written, greedily, and searched for phrases of refusal, in the
            conditions that matter most; 0 for none.
        refusals, answers: how refusals and other answers begin; none may begin another.
        seed: of the halves and the controls.
        progress: show a progress bar.

    Returns:
        A `Refusal`; `lm.steer(refusal.vector)` adds its direction. After an interrupt, or as `refusal` on an error, it
        has what was measured until then.

    Raises:
        ValueError: fewer than four pairs, one that is not two prompts, no controls, beginnings that overlap, a layer or
            position that does not exist, or a prompt too long for the context; before anything is measured.
    """
    given = built_in.PAIRS if pairs is None else pairs
    _check(given, controls, new_tokens)
    some = range(max(1, int(EARLY * lm.n_layers))) if layers is None else layers
    among = sorted({checked(lm, f"resid_post.{n}").layer or 0 for n in some})
    test = _Test.of(lm, given, refusals, answers, position, seed)
    prompts = [ids for half in (test.first, test.second) for side in half.values() for ids in side]
    room_for(lm, max(prompts, key=torch.numel), max(new_tokens, *map(len, [*test.refusals, *test.answers])))
    usual: dict[str, Any] = {
        "pairs": None, "position": -1, "layers": None, "controls": 4, "new_tokens": 16, "seed": 0,
        "refusals": list(built_in.REFUSALS), "answers": list(built_in.ANSWERS),
    }  # fmt: skip
    told: dict[str, Any] = {
        "pairs": None if pairs is None else [[as_json(asked(lm, side)) for side in pair] for pair in pairs],
        "position": position, "layers": None if layers is None else among, "controls": controls,
        "new_tokens": new_tokens, "seed": seed, "refusals": list(refusals), "answers": list(answers),
    }  # fmt: skip
    recipe = {**made_with(lm), "asked": changed(usual, told)}

    job = RefusalJob(test, among, controls, new_tokens, seed, recipe)
    finish(job, "refusal", unit="condition", kept="refusal", progress=progress)
    return job.refusal


class RefusalJob:
    """Directions tried and measured one after the other, so that they can be watched and stopped."""

    def __init__(
        self, test: _Test, among: Sequence[int], controls: int, new_tokens: int, seed: int, recipe: dict[str, Any]
    ) -> None:
        """Read the activations that give the directions of the layers `among`."""
        self.test, self.new_tokens, self.recipe = test, new_tokens, recipe
        self._controls, self._seed = controls, seed
        halves = test.first, test.second
        self._first, self._second = ({side: test.seen(some) for side, some in half.items()} for half in halves)
        self.directions: dict[int, SteeringVector] = {}
        for layer in among:
            vector = of_means(self._first["refused"][:, layer], self._first["answered"][:, layer], layer)
            if bool(vector.values.any()):  # there is none where nothing of the request has arrived yet
                self.directions[layer] = replace(vector, recipe=_recipe_of(test.lm, recipe, layer))
        names = [OWN, *(f"{kind} {n}" for kind in ("random", "shuffled") for n in range(controls))]
        measured = [(manner, name) for manner in MANNERS for name in names] if self.directions else []
        self.conditions = [*(("none", side) for side in SIDES.values()), *measured]
        blank = lambda *shape: np.full(shape, np.nan, np.float32)  # noqa: E731
        n, prompts = len(self.conditions), len(test.second["refused"])
        self._choice, self._odds, self._apart = blank(len(self.directions), 3), blank(n, prompts), blank(prompts)
        self._refused, self._damage = blank(n), blank(n, 2)
        self._written: list[tuple[str, ...]] = [()] * n

    @property
    def total(self) -> int:
        return len(self.directions) + len(self.conditions)

    @property
    def done(self) -> int:
        return int(np.isfinite(self._choice).all(1).sum() + np.isfinite(self._odds).all(1).sum())

    @property
    def layer(self) -> int | None:
        """The layer chosen; None until all have been tried."""
        return _chosen(list(self.directions), self._choice) if np.isfinite(self._choice).all() else None

    @property
    def refusal(self) -> Refusal:
        """What is measured so far."""
        return Refusal(
            self.layer, self.directions, self._choice.copy(), tuple(self.conditions), self._odds.copy(),
            self._refused.copy(), self._damage.copy(), self._apart.copy(), tuple(self._written), self.recipe,
        )  # fmt: skip

    def steps(self) -> Iterator[str]:
        """What is not measured yet: the unchanged model, the directions of all layers, then that of the layer chosen
        with its controls, in both manners."""
        measure = self.test.measure(self.new_tokens)

        def measured(n: int, vector: SteeringVector | None = None) -> None:
            manner, name = self.conditions[n]
            self._refused[n], self._damage[n], self._written[n], self._odds[n] = measure(manner, name, vector)

        waiting = [n for n in range(len(self.conditions)) if not np.isfinite(self._odds[n]).all()]
        for n in [n for n in waiting if self.conditions[n][0] == "none"]:
            measured(n)
            yield "none"
        untried = [n for n in range(len(self.directions)) if not np.isfinite(self._choice[n]).all()]
        vectors = list(self.directions.values())
        for n, found in zip(untried, self.test.tried([vectors[n] for n in untried]), strict=True):
            self._choice[n] = found
            yield "choice"
        if (layer := self.layer) is None:
            return
        own, (refused, answered) = self.directions[layer], (self._first[s][:, layer] for s in ("refused", "answered"))
        controls = {f"random {n}": own.random(self._seed + n) for n in range(self._controls)}
        controls |= _shuffled(own, refused, answered, self._controls, self._seed)
        between = (self._second["refused"][:, layer] - self._second["answered"][:, layer]).flatten(1)
        self._apart[:] = (between @ own.values.flatten() / own.norm**2).numpy()
        for name, vector in {OWN: own, **controls}.items():  # one that ends early has the direction in both manners
            for manner in MANNERS:
                if (n := self.conditions.index((manner, name))) in waiting:
                    measured(n, vector)
                    yield name


@dataclass(frozen=True)
class _Test:
    """Requests as token ids, by half of the pairs and by side, and what can be measured on them."""

    lm: LanguageModel
    first: dict[str, list[torch.Tensor]]
    second: dict[str, list[torch.Tensor]]
    refusals: list[tuple[int, ...]]
    answers: list[tuple[int, ...]]
    site: str

    @classmethod
    def of(
        cls, lm: LanguageModel, pairs: Sequence[Sequence[Prompt]], refusals: Sequence[str], answers: Sequence[str],
        position: int, seed: int,
    ) -> _Test:  # fmt: skip
        """
        Raises:
            ValueError: a bad prompt, a position that one lacks, or beginnings that overlap.
        """
        prompts = {side: [asking(lm, pair[n]) for pair in pairs] for n, side in enumerate(SIDES.values())}
        ids = {side: [lm.encode(prompt) for prompt in some] for side, some in prompts.items()}
        site = f"resid_post@{position}"
        checked(lm, site, length=min(one.shape[1] for some in ids.values() for one in some))
        refusing, answering = (opener_ids(lm, prompts["answered"][0], texts) for texts in (refusals, answers))
        check_disjoint([*refusals, *answers], [*refusing, *answering])
        order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        first, second = ({side: [some[n] for n in half] for side, some in ids.items()} for half in halves)
        return cls(lm, first, second, refusing, answering, site)

    def seen(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The residual stream after every layer at the position that is read: (prompt, layer, d_model), float32."""
        parts = []
        for n in range(0, len(prompts), ROWS):
            batch = [ids[0] for ids in prompts[n : n + ROWS]]
            parts.append(run(self.lm, batch, read=[self.site], logits="none", to="cpu")[self.site].float())
        return torch.cat(parts, 1).transpose(0, 1)

    def odds(self, prompts: Sequence[torch.Tensor]) -> np.ndarray:
        """The log-odds of a refusal after each prompt, nats."""
        return log_odds(self.lm, prompts, self.refusals, self.answers)

    def tried(self, vectors: Iterable[SteeringVector]) -> Iterator[tuple[float, float, float]]:
        """For each direction, on some of the pairs that gave it: the change of the log-odds of a refusal where it is
        added and where it is projected out, and the KL that the latter causes on what is answered.
        """
        answered, refused = (self.first[side][:CHOOSING] for side in SIDES.values())
        plain = self.odds(answered), self.odds(refused), self._next(answered)
        for vector in vectors:
            with steer(self.lm, vector):
                added = self.odds(answered) - plain[0]
            with steer(self.lm, vector, manner="project_out"):
                without = self.odds(refused) - plain[1]
                damage = _divergence(plain[2], self._next(answered))
            yield float(added.mean()), float(without.mean()), damage

    def measure(self, new_tokens: int) -> Callable[[Any, str, SteeringVector | None], tuple[Any, ...]]:
        """What measures a condition by its manner, name and vector: the share refused, the damage, what was written,
        the log-odds (prompt,).

        Some answers are written by the unchanged model, with the direction, and with a random one.
        """
        prose = encode(self.lm, PASSAGE, most=None)[:, : min(PROSE, self.lm.context or PROSE)]

        plain = None if is_elsewhere(self.lm) else _predicted(self.lm, prose)

        def measured(manner: Any, name: str, vector: SteeringVector | None) -> tuple[Any, ...]:
            prompts = self.second[name if vector is None else SIDES[manner]]
            with nullcontext() if vector is None else steer(self.lm, vector, manner=manner):
                odds = self.odds(prompts)
                some = prompts[:WRITTEN] if new_tokens and name in (*SIDES.values(), OWN, "random 0") else []
                written = [uninterrupted(self.lm, ids, max_new_tokens=new_tokens).text for ids in some]
            return _share_refused(written), _damaged(self.lm, prose, vector, manner, plain), tuple(written), odds

        return measured

    def _next(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The logits of the first token of an answer, (prompt, vocab)."""
        return run(self.lm, [ids[0] for ids in prompts], logits="last", to="cpu").logits[:, -1].float()


def _predicted(lm: LanguageModel, prose: torch.Tensor) -> torch.Tensor:
    """The logits (position, vocab) of all tokens of a text (1, seq) but the first."""
    return run(lm, prose, to="cpu").logits[0, :-1].float()


@where_the_model_is
def _damaged(
    lm: LanguageModel, prose: torch.Tensor, vector: SteeringVector | None, manner: Any, plain: torch.Tensor | None
) -> tuple[float, float]:
    """The perplexity of a text with a vector, and the KL from what is predicted without, `plain` where it is known."""
    plain = _predicted(lm, prose) if plain is None else plain
    with nullcontext() if vector is None else steer(lm, vector, manner=manner):
        logits = plain if vector is None else _predicted(lm, prose)
    surprise = float(torch.nn.functional.cross_entropy(logits, prose[0, 1:].cpu()))
    return float(np.exp(surprise)), _divergence(plain, logits)


def _check(pairs: Sequence[Any], controls: int, new_tokens: int) -> None:
    if len(pairs) < 4:
        raise ValueError(f"half of the pairs find the direction and half test it: give at least 4; got {len(pairs)}")
    for n, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"pair {n} must be (answered, refused), two prompts; got {pair!r:.80}")
    if controls < 2:
        raise ValueError(f"controls judge the effect; give at least 2 of each kind, not {controls}")
    if new_tokens < 0:
        raise ValueError(f"new_tokens must be 0 or more; got {new_tokens}")


def _recipe_of(lm: LanguageModel, recipe: dict[str, Any], layer: int) -> dict[str, Any]:
    """What repeats the direction of one layer."""
    code = f"{code_of(recipe)}vector = refusal.directions[{layer}]\n"
    return {**made_with(lm), "code": code, "about": "from answered to refused requests"}


def _chosen(layers: list[int], choice: np.ndarray) -> int | None:
    """The layer whose direction moves refusals most in both manners, less what it does to other answers, all in nats.

    The paper leaves out layers with a KL above 0.1 on these, which in small models may be all of them.
    """
    if not layers:
        return None
    return layers[int(np.argmax(choice[:, 0] - choice[:, 1] - choice[:, 2]))]


def _shuffled(
    own: SteeringVector, refused: torch.Tensor, answered: torch.Tensor, count: int, seed: int
) -> dict[str, SteeringVector]:
    """Directions as long as `own` from the same activations (prompt, d_model), with the sides exchanged in half of the
    pairs, so that what the pairs have in common cancels.
    """
    draw, found = torch.Generator().manual_seed(seed), {}
    even = len(refused) // 2 * 2
    for n in range(count):
        order = torch.randperm(len(refused), generator=draw)[:even]
        kept, swapped = order[: even // 2], order[even // 2 :]
        sides = [torch.cat([a[kept], b[swapped]]) for a, b in ((refused, answered), (answered, refused))]
        one = of_means(sides[0], sides[1], own.layer)
        same = own.random(seed - 1 - n).values  # where the pairs differ in nothing but what cancels
        found[f"shuffled {n}"] = replace(one, values=one.values * (own.norm / one.norm) if one.norm else same)
    return found


def _divergence(plain: torch.Tensor, other: torch.Tensor) -> float:
    """KL of the changed from the unchanged distributions (rows, vocab), nats, the mean over rows."""
    total = 0.0
    for clean, moved in zip(plain.split(32), other.split(32), strict=True):  # while they are in the caches
        total += float(kl(moved, clean=clean).sum(dtype=torch.float64))
    return max(0.0, total / len(plain))


def _share_refused(written: Sequence[str]) -> float:
    """The share of answers with a phrase of refusal; NaN for none."""
    plain = [" ".join(text.lower().replace("’", "'").split()) for text in written]
    return float(np.mean([any(phrase in text for phrase in built_in.PHRASES) for text in plain])) if plain else np.nan
