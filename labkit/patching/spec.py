"""What is asked of a pair of prompts: stated once, checked once, and carried by whatever answers it.

A spec is a request as it was made. `prepared` resolves it for a model: ids, answer and foil as tokens, the metric.
`asks` makes functions that take a spec's fields as their arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from labkit.activations.metrics import Metric, MetricFunction, MetricKind, code_of_own, metric_of, usual_metric
from labkit.language_model import LanguageModel
from labkit.patching.source_model import check_source
from labkit.results.recipe import made_with, recipe_of
from labkit.text.encode import single_token
from labkit.text.pair import Pair, align
from labkit.text.types import Prompt

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])
PAIR = ("clean", "corrupt", "answer", "foil")
DIRECTIONS = ("denoise", "noise")
METHODS = ("exact", "attribution")


@dataclass(frozen=True)
class PairSpec:
    """A pair of prompts, and what is measured on it.

    Attributes:
        clean: the prompt with the behaviour to explain.
        corrupt: one with the same number of tokens that lacks it.
        answer: the token that clean calls for, with its space: `" Mary"`.
        foil: the token that corrupt calls for.
        metric: a name (docs/reference.md has them), or a function of the logits, (rows, vocab) -> (rows,); by default
            `logit_diff`, or `logprob` without a foil.
        at: the position whose logits the metric reads.
        progress: show a progress bar; ignored when specs are compared.
    """

    clean: Prompt
    corrupt: Prompt
    answer: str | int | None = None
    foil: str | int | None = None
    _: KW_ONLY
    metric: str | MetricFunction | None = None
    at: int = -1
    progress: bool = field(default=True, compare=False, repr=False)

    def prepared(self, lm: LanguageModel) -> PreparedPair:
        """The pair as this model sees it.

        Raises:
            ValueError: prompts of different lengths, an answer of several tokens, a metric without what it needs, ...
        """
        pair = align(lm, self.clean, self.corrupt)
        length = pair.clean.shape[1]
        if not -length <= self.at < length:
            raise ValueError(f"at={self.at} is out of range; the prompts have positions 0 to {length - 1}")
        end = self.at % length + 1
        ids = {"clean": pair.clean[:, :end], "corrupt": pair.corrupt[:, :end]}
        answer, foil = (
            None if word is None else single_token(lm, word, role=role, after=ids[side])
            for word, role, side in ((self.answer, "answer", "clean"), (self.foil, "foil", "corrupt"))
        )
        kind = metric_of(self.metric, answer=answer, foil=foil, reference=torch.zeros(1)).kind  # a wrong one fails here
        return PreparedPair(lm, self, pair, ids, answer, foil, kind)


@dataclass(frozen=True, kw_only=True)
class PatchSpec(PairSpec):
    """A grid of patches.

    Attributes:
        site: any kind in `lm.sites()` but `embed`, `final_norm` and `experts`: sites by head over layers x heads, all
            positions together, the others over layers x positions.
        method: `exact` reruns the model from each patch on; `attribution` is its gradient estimate, from one forward
            and one backward pass (`attribution_patch` gives it for all sites at once).
        direction: `denoise` puts clean into corrupt, `noise` corrupt into clean.
        over: other axes: `("layer", "position")` or `("layer", "head", "position")` for a site by head,
            `("layer", "neuron")` for `mlp_act` and its kind; and with one layer in `layers`, `("head", "position")` or
            `("neuron", "position")`.
        layers, heads, neurons, positions: only these.
        source: another model of the same architecture, such as this one in other bits. Its run of the prompt takes the
            place of the clean run and this model's own run that of the corrupt one; `corrupt` is left out.
    """

    corrupt: Prompt = field(default=None, kw_only=False)  # type: ignore[assignment]
    site: str = "resid_pre"
    method: str = "exact"
    direction: str = "denoise"
    over: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    neurons: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    source: LanguageModel | None = None

    @property
    def layer(self) -> int | None:
        """The single layer, if layers are not an axis."""
        return self.layers[0] if self.layers and self.over is not None and "layer" not in self.over else None

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}; got {self.direction!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.corrupt is None and self.source is None:
            raise ValueError("patching compares two runs: give a corrupt prompt, or another model as source=")
        if self.corrupt is None:
            object.__setattr__(self, "corrupt", self.clean)
        elif self.source is not None and self.corrupt is not self.clean:
            raise ValueError("with source= the two models run the same prompt; leave corrupt out")

    def prepared(self, lm: LanguageModel) -> PreparedPair:
        if self.source is None:
            return super().prepared(lm)
        check_source(lm, self.source, self.clean)
        if self.site == "head_out":
            raise ValueError(
                "each model makes head_out with its own output projection, so it cannot be put into another by head; "
                "use z, or attn_out"
            )
        prepared = super().prepared(lm)
        needs = () if prepared.kind is None else prepared.kind.needs
        if "clean" in needs and lm.n_vocab != self.source.n_vocab:
            raise ValueError(
                f"{self.metric} compares whole distributions, but the models have {lm.n_vocab} and "
                f"{self.source.n_vocab} tokens; use logit_diff or logprob"
            )
        return prepared


@dataclass(frozen=True, eq=False)
class PreparedPair:
    """A spec resolved for a model.

    Attributes:
        pair: both prompts whole, as they align.
        ids: of `clean` and `corrupt`, (1, seq), up to the position that the metric reads.
        answer, foil: their ids.
        kind: its `MetricKind`; None for a plain function.
    """

    lm: LanguageModel
    spec: PairSpec
    pair: Pair
    ids: Mapping[str, torch.Tensor]
    answer: int | None
    foil: int | None
    kind: MetricKind | None

    @property
    def length(self) -> int:
        """Positions up to the one that the metric reads."""
        return self.ids["clean"].shape[1]

    @property
    def tokens(self) -> tuple[list[Any], list[Any]]:
        """The tokens of clean and corrupt up to there."""
        return self.pair.clean_tokens[: self.length], self.pair.corrupt_tokens[: self.length]

    def metric(self, reference: torch.Tensor) -> Metric:
        """The metric, given the clean run's logits (vocab,) at the position that it reads."""
        return metric_of(self.spec.metric, answer=self.answer, foil=self.foil, reference=reference)

    def recipe(self, **more: Any) -> dict[str, Any]:
        """What repeats it, for JSON."""
        asked = self.spec.metric
        name = getattr(asked, "__name__", "metric") if callable(asked) else asked or usual_metric(self.foil)
        at = -1 if self.length == self.pair.clean.shape[1] else self.length - 1
        if (code := code_of_own(name)) and not callable(asked):
            more["metric_code"] = code
        if (source := getattr(self.spec, "source", None)) is not None:
            more["source"] = made_with(source)
        return recipe_of(
            self.lm, self.pair, self.spec.clean, self.spec.corrupt, answer=self.answer, foil=self.foil, metric=name,
            own_metric=callable(asked), at=at, **more,
        )  # fmt: skip


def asks(
    kind: Callable[P, S],
) -> Callable[[Callable[[LanguageModel, S], R]], Callable[Concatenate[LanguageModel, P], R]]:
    """Turn a function of a model and a spec into one of a model and the spec's fields, one argument each."""

    def of_fields(answer: Callable[[LanguageModel, S], R]) -> Callable[Concatenate[LanguageModel, P], R]:
        first = next(iter(inspect.signature(answer).parameters.values()))
        arguments = inspect.signature(kind)
        signature = arguments.replace(parameters=[first, *arguments.parameters.values()])

        @wraps(answer)
        def of_arguments(lm: LanguageModel, *args: P.args, **kwargs: P.kwargs) -> R:
            signature.bind(lm, *args, **kwargs)  # a wrong argument is an error of this function, not of the spec
            return answer(lm, kind(*args, **kwargs))

        of_arguments.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(answer).return_annotation
        )
        return of_arguments

    return of_fields


def spelled(kind: Callable[..., Any], *, but: Sequence[str] = ()) -> Callable[[F], F]:
    """Spell out a spec's fields where a function takes them as `**how`: in its signature, and in what it refuses."""

    def with_signature(function: F) -> F:
        own = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
        named = {one.name for one in own}
        more = [
            one.replace(kind=one.KEYWORD_ONLY)
            for one in inspect.signature(kind).parameters.values()
            if one.name not in named and one.name not in but
        ]
        signature = inspect.signature(function).replace(
            parameters=[one for one in own if one.kind is not one.KEYWORD_ONLY]
            + more
            + [one for one in own if one.kind is one.KEYWORD_ONLY]
        )

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
            return function(*args, **kwargs)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return with_signature


def given(spec: PairSpec, kind: type[PairSpec] | None = None) -> dict[str, Any]:
    """A spec's fields by name, all of them or those of a simpler kind, for another spec that has them too."""
    return {one.name: getattr(spec, one.name) for one in fields(kind or spec)}
