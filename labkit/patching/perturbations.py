"""What else can be put into a cell than the other prompt's activation: nothing, a mean, that of other prompts, noise.

Each is a value for `lk.patch(..., by=...)`. `Zero`, `Mean` and `Resample` break the clean run: a cell matters where the
metric falls (ablation; means and resampled activations stay within what the model knows, Chan et al. 2022, "Causal
scrubbing"). `Noise` is causal tracing (Meng et al. 2022, "Locating and editing factual associations"): the
subject's embeddings are noised, and a cell matters where putting back its clean activation restores the metric.

What is drawn at random is drawn several times: each draw is a lane of the wavefront, and the grid has the mean of the
metric over the draws.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch

from labkit.activations.hooks import Edit, Place
from labkit.activations.metrics import Metric
from labkit.activations.site_kinds import BY_QUERY
from labkit.engine.recorded_run import recorded
from labkit.language_model import LanguageModel
from labkit.text.as_code import Name, as_python
from labkit.text.encode import encode
from labkit.text.prompts import as_json, asked, from_json
from labkit.text.tokens import bytes_of
from labkit.text.types import Prompt
from labkit.text.warn import warn
from labkit.text.whole_numbers import whole

Activation = Callable[[LanguageModel, str, dict[int, torch.Tensor]], dict[int, torch.Tensor]]
"""From a model, a kind of site and its clean activation by layer (seq, ...) to what is put there."""


@dataclass(frozen=True)
class Draw:
    """One lane: what takes the place of the corrupt prompt's run.

    Attributes:
        key: tells it from other draws.
        corrupt: ids (1, seq) of another prompt.
        edits: of the corrupt run, on its way.
        instead: what is put in, where it comes from no run.
    """

    key: Any
    corrupt: torch.Tensor | None = None
    edits: Mapping[Place, Edit] = field(default_factory=dict)
    instead: Activation | None = None


@dataclass(frozen=True)
class Perturbation:
    """What `by=` takes; `direction` is the only one it has, or None."""

    direction: ClassVar[str | None] = "noise"
    compared: ClassVar[bool] = False  # is there a second run, on which the metric is something?

    @property
    def name(self) -> str:
        """What the perturbed run or activation is called."""
        return type(self).__name__.lower()

    def draws(self, lm: LanguageModel, ids: torch.Tensor, *, whole: int) -> list[Draw]:
        """The lanes, for the clean prompt (1, seq) up to where the metric reads; `whole` is how many tokens it has.

        Raises:
            ValueError: it does not fit this prompt.
        """
        raise NotImplementedError

    def told(self, lm: LanguageModel) -> dict[str, Any]:
        """The arguments, for JSON; a chat with the date that it has today."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        if "prompts" in own:
            own["prompts"] = [as_json(asked(lm, prompt)) for prompt in own["prompts"]]
        return {"kind": type(self).__name__} | {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}


@dataclass(frozen=True)
class Zero(Perturbation):
    """Zeros in the place of the clean activation."""

    def draws(self, lm: LanguageModel, ids: torch.Tensor, *, whole: int) -> list[Draw]:
        def zeros(lm: LanguageModel, kind: str, own: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            """Zeros; scores of what a token cannot see stay -inf."""
            return {layer: torch.zeros_like(x).masked_fill(x == -torch.inf, -torch.inf) for layer, x in own.items()}

        return [Draw("zero", instead=zeros)]


@dataclass(frozen=True)
class Mean(Perturbation):
    """The mean activation over prompts in the place of the clean one: position by position, or over all positions.

    Args:
        prompts: such as the other prompts of a task. Where all have as many tokens as the clean one, each position gets
            the mean at that position; otherwise every position gets the mean over all.

    Raises:
        ValueError: there are no prompts.
    """

    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", _prompts(self.prompts, "Mean"))

    def draws(self, lm: LanguageModel, ids: torch.Tensor, *, whole: int) -> list[Draw]:
        read = [encode(lm, prompt) for prompt in self.prompts]
        by_position = all(one.shape[1] == whole for one in read)

        def mean(lm: LanguageModel, kind: str, own: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
            if kind in BY_QUERY and not (by_position and next(iter(own.values())).shape[1] == ids.shape[1]):
                raise ValueError(f"the mean of {kind} needs prompts with as many tokens as the clean one")
            total = {layer: x.float().clone() for layer, x in own.items()}  # what is forced keeps its own
            for n, one in enumerate(read):
                ((_, found),) = recorded(lm, one[:, : ids.shape[1]] if by_position else one, sites=[kind])
                for layer, x in found[kind].items():
                    here = x.float() if by_position else x.float().mean(0, keepdim=True)
                    rows = slice(None) if kind in BY_QUERY else slice(0, ids.shape[1])
                    total[layer][rows] = here / len(read) + (total[layer][rows] if n else 0)
            return {layer: x.to(own[layer].dtype) for layer, x in total.items()}

        return [Draw(("mean", tuple(tuple(one[0].tolist()) for one in read)), instead=mean)]


@dataclass(frozen=True)
class Resample(Perturbation):
    """Other prompts' activations in the place of the clean one, and the mean of the metric over several of them.

    Args:
        prompts: those with as many tokens as the clean one are drawn from.
        samples: how many are drawn, each once; fewer if there are fewer.
        seed: which ones.

    Raises:
        ValueError: there are no prompts, or none of that length.
    """

    prompts: tuple[Prompt, ...]
    _: KW_ONLY
    samples: int = 8
    seed: int = 0
    compared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", _prompts(self.prompts, "Resample"))
        object.__setattr__(self, "samples", whole("samples", self.samples, least=1))
        object.__setattr__(self, "seed", whole("seed", self.seed))

    @property
    def name(self) -> str:
        return "resampled"

    def draws(self, lm: LanguageModel, ids: torch.Tensor, *, whole: int) -> list[Draw]:
        read = [encode(lm, prompt) for prompt in self.prompts]
        cut = [one[:, : ids.shape[1]].to(ids.device) for one in read if one.shape[1] == whole]
        fit = [one for one in cut if not torch.equal(one, ids)]
        if not fit and cut:
            raise ValueError(
                "the prompts given to Resample that have the clean one's length are the clean one; add others"
            )
        if not fit:
            lengths = sorted({one.shape[1] for one in read})
            raise ValueError(
                f"the clean prompt has {whole} tokens, and no other prompt given to Resample has; they have "
                f"{', '.join(map(str, lengths))}. Give prompts of that length"
            )
        if len(fit) < len(read):
            warn(f"{len(read) - len(fit)} of {len(read)} prompts have other lengths, or are the clean one: left out")
        order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(self.seed))[: self.samples].tolist()
        return [Draw(("resample", tuple(fit[n][0].tolist())), corrupt=fit[n]) for n in order]


@dataclass(frozen=True)
class Noise(Perturbation):
    """Causal tracing: the corrupt run is the clean prompt with noise on the embeddings of its subject.

    Args:
        subject: the text of the prompt to be noised, or its positions.
        strength: standard deviation of the noise, in standard deviations of the prompt's embeddings.
        samples: how many times noise is drawn.
        seed: which noise.

    Raises:
        ValueError: the subject is empty, or is not in the prompt.
    """

    subject: str | tuple[int, ...]
    _: KW_ONLY
    strength: float = 3.0
    samples: int = 10
    seed: int = 0
    direction: ClassVar[str | None] = None
    compared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.subject, str):
            try:
                object.__setattr__(self, "subject", tuple(map(operator.index, self.subject)))
            except TypeError:
                raise ValueError(
                    "Noise takes a text of the prompt, or a list of positions such as (1, 2, 3); got "
                    f"{self.subject!r:.60}"
                ) from None
        if not self.subject:
            raise ValueError("the subject is empty; give a text of the prompt, or positions")
        if not isinstance(self.strength, int | float) or not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be a number above 0; got {self.strength!r}")
        object.__setattr__(self, "samples", whole("samples", self.samples, least=1))
        object.__setattr__(self, "seed", whole("seed", self.seed))

    @property
    def name(self) -> str:
        return "noised"

    def positions(self, lm: LanguageModel, ids: torch.Tensor) -> list[int]:
        """The subject's positions in a prompt (1, seq)."""
        if isinstance(self.subject, str):
            return positions_of(bytes_of(lm.tokenizer, ids[0].tolist()), self.subject)
        length = ids.shape[1]
        for position in self.subject:
            if not -length <= position < length:
                raise ValueError(f"position {position} is out of range; the prompt has positions 0 to {length - 1}")
        return sorted({position % length for position in self.subject})

    def draws(self, lm: LanguageModel, ids: torch.Tensor, *, whole: int) -> list[Draw]:
        try:
            places = self.positions(lm, ids)
        except ValueError as error:
            if ids.shape[1] == whole:
                raise
            raise ValueError(f"up to position {ids.shape[1] - 1}, which at= names: {error}") from None
        length, strength = ids.shape[1], self.strength

        def noised(sample: int) -> Edit:
            def edit(x: torch.Tensor) -> torch.Tensor:
                draw = torch.Generator().manual_seed(1_000_003 * self.seed + sample)
                noise = torch.randn((len(places), *x.shape[2:]), generator=draw).to(x.device)
                spread = strength * x[:, :length].float().std()  # without what is forced after the prompt
                x = x.clone()
                x[:, places] += (spread * noise).to(x.dtype)
                return x

            return edit

        key = ("noise", tuple(places), strength, self.seed)
        return [Draw((*key, sample), edits={("embed", 0): noised(sample)}) for sample in range(self.samples)]


KINDS = {kind.__name__: kind for kind in (Zero, Mean, Resample, Noise)}


def perturbation_of(by: str | Perturbation) -> Perturbation | None:
    """What is asked by `by=`; None for the other prompt.

    Raises:
        ValueError: it is no perturbation, or a name that needs arguments.
    """
    if isinstance(by, Perturbation):
        return by
    if by == "prompt":
        return None
    if by == "zero":
        return Zero()
    needs = {"mean": "lk.Mean(prompts)", "resample": "lk.Resample(prompts)", "noise": "lk.Noise('the subject')"}
    if isinstance(by, str) and by in needs:
        raise ValueError(f"by={by!r} needs to know more: write by={needs[by]}")
    raise ValueError(f"by must be 'prompt', 'zero', lk.Mean(...), lk.Resample(...) or lk.Noise(...); got {by!r:.80}")


def perturbation_from(told: Mapping[str, Any]) -> Perturbation:
    """The perturbation whose `told` this is."""
    given = {name: value for name, value in told.items() if name not in ("kind", "name")}
    if "prompts" in given:
        given["prompts"] = [from_json(one) for one in given["prompts"]]
    return KINDS[told["kind"]](**given)


def code_of(told: Mapping[str, Any]) -> Name | str:
    """A perturbation's `told` as the Python that makes it."""
    if told["kind"] == "Zero":
        return "zero"
    first, *rest = [name for name in told if name != "kind"]
    kind = KINDS[told["kind"]]
    more = [f", {name}={told[name]!r}" for name in rest if told[name] != getattr(kind, name)]
    given = told[first]
    given = [from_json(one) for one in given] if first == "prompts" else given
    return Name(f"lk.{told['kind']}({as_python(given)}{''.join(more)})")


def averaged(metric: Metric, draws: int) -> Metric:
    """The mean of a metric over the lanes of several draws, each of which has those of its answers."""
    if draws == 1:
        return metric
    mean = lambda logits: metric(logits).unflatten(0, (-1, draws)).mean(-1)  # noqa: E731
    return replace(metric, function=mean, reads=metric.reads * draws, key=(metric.key, draws))


def positions_of(tokens: Sequence[bytes], text: str) -> list[int]:
    """The positions of the tokens, in UTF-8, that a text of the prompt is in.

    Raises:
        ValueError: the prompt does not have that text, or has it more than once.
    """
    whole, wanted = b"".join(tokens), text.encode()
    if (times := whole.count(wanted)) != 1:
        said = "is not in the prompt" if not times else f"is in the prompt {times} times"
        raise ValueError(f"{text!r} {said}; name its positions instead, such as (1, 2, 3)")
    start = whole.index(wanted)
    begins = accumulate(map(len, tokens), initial=0)
    return [n for n, (a, b) in enumerate(pairwise(begins)) if a < start + len(wanted) and start < b]


def _prompts(given: Any, name: str) -> tuple[Prompt, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not len(given):
        raise ValueError(f"{name} takes a list of prompts; got {given!r:.60}")
    return tuple(given)
