"""What is asked of a pair of prompts: stated once, checked once, and carried by whatever answers it.

A spec is a request as it was made. `prepared` resolves it for a model: ids, answer and foil as tokens, the metric.
`asks` makes functions that take a spec's fields as their arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from labkit.activations.metrics import Metric, MetricFunction, MetricKind, code_of_own, metric_of, usual_metric
from labkit.activations.site_kinds import BY_QUERY
from labkit.language_model import LanguageModel
from labkit.patching.answers import Answer, Answers, as_given, resolved
from labkit.patching.pair_runs import PairRuns
from labkit.patching.perturbations import Draw, Perturbation, averaged, perturbation_of
from labkit.patching.source_model import check_source
from labkit.results.recipe import made_with, recipe_of
from labkit.text.encode import TooLong, single_token
from labkit.text.pair import Pair, align, align_spans, partners
from labkit.text.types import Prompt
from labkit.text.whole_numbers import whole

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
        answer: the token that clean calls for, with its space: `" Mary"`. `lk.patch` and what is built on it also take
            a text of several tokens, or a list of texts: a set, whose probability is the sum of theirs.
        foil: the token that corrupt calls for, or texts as for the answer.
        metric: a name (docs/reference.md has them), or a function of the logits, (rows, vocab) -> (rows,); by default
            `logit_diff`, or `logprob` without a foil. Of several tokens `logprob_diff` or `logprob`: the sum of their
            log probabilities, each given those before it.
        at: the position whose logits the metric reads.
        progress: show a progress bar; ignored when specs are compared.
    """

    clean: Prompt
    corrupt: Prompt
    answer: Answer = None
    foil: Answer = None
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
        ids = self._read(pair)
        for word, role in ((self.answer, "answer"), (self.foil, "foil")):
            if word is not None and not isinstance(word, str | int):
                raise ValueError(f"the {role} must be one token here; lk.patch takes sets of answers, {word!r:.60}")
        answer, foil = (
            None if word is None else single_token(lm, word, role=role, after=ids[side])  # type: ignore[arg-type]
            for word, role, side in ((self.answer, "answer", "clean"), (self.foil, "foil", "corrupt"))
        )
        kind = metric_of(self.metric, answer=answer, foil=foil, reference=torch.zeros(1)).kind  # a wrong one fails here
        return PreparedPair(lm, self, pair, ids, answer, foil, kind)

    def _read(self, pair: Pair) -> dict[str, torch.Tensor]:
        """The ids of both prompts up to the position that the metric reads."""
        lengths = pair.clean.shape[1], pair.corrupt.shape[1]
        if not -min(lengths) <= self.at < min(lengths):
            raise ValueError(f"at={self.at} is out of range; the prompts have positions 0 to {min(lengths) - 1}")
        if self.at >= 0 and lengths[0] != lengths[1]:
            raise ValueError(
                f"at={self.at} is another place in each of two prompts of {lengths[0]} and {lengths[1]} tokens; count "
                f"it from the end, such as at={self.at - lengths[0]} for clean's"
            )
        return {name: getattr(pair, name)[:, : self.at % n + 1] for name, n in zip(PAIR, lengths, strict=False)}


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
        alignment: which positions of the two prompts belong together, `[((start, stop), (start, stop)), ...]`: spans of
            clean and as long ones of corrupt. By default position by position, or in prompts of unequal length their
            equal spans. A position in no span has no partner, and its cells are NaN.
        by: what is put into a cell: `"prompt"`, the other prompt's activation; or without a corrupt prompt `"zero"`,
            `lk.Mean(prompts)` or `lk.Resample(prompts)` into the clean run, or clean activations into a run with noise
            on its subject, `lk.Noise(subject)`. With the last two each cell has the mean over several draws.
        window: how many layers a cell patches at once: its own in their middle, fewer at the ends.
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
    alignment: Sequence[tuple[tuple[int, int], tuple[int, int]]] | None = None
    by: str | Perturbation = "prompt"
    window: int = 1

    @property
    def perturbation(self) -> Perturbation | None:
        """What `by` asks for; None for the other prompt."""
        return perturbation_of(self.by)

    @property
    def layer(self) -> int | None:
        """The single layer, if layers are not an axis."""
        return self.layers[0] if self.layers and self.over is not None and "layer" not in self.over else None

    def __post_init__(self) -> None:
        for name in ("answer", "foil"):
            if isinstance(given := getattr(self, name), list):
                object.__setattr__(self, name, tuple(given))
        if self.alignment is not None:  # hashable, as the rest is
            object.__setattr__(self, "alignment", _as_tuples(self.alignment))
        object.__setattr__(self, "window", whole("window", self.window, least=1, of=" of layers"))
        self._check_perturbation()
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
        if self.source is not None and self.alignment is not None:
            raise ValueError("with source= both runs have the same positions; leave alignment out")

    def _check_perturbation(self) -> None:
        """With `by` there is one prompt."""
        if (perturbation := self.perturbation) is None:
            return
        given = [name for name in ("source", "alignment") if getattr(self, name) is not None]
        if self.corrupt is not None and self.corrupt is not self.clean:
            given.append("corrupt")
        if given:
            raise ValueError(f"by={self.by!r:.60} perturbs the run of the clean prompt itself; leave {given[-1]} out")
        object.__setattr__(self, "corrupt", self.clean)
        if perturbation.direction is not None:
            object.__setattr__(self, "direction", perturbation.direction)

    def _paired(self, lm: LanguageModel) -> PreparedPair:
        """The pair along its alignment, with answers of any number of tokens."""
        pair = align_spans(lm, self.clean, self.corrupt, self.alignment)
        ids = self._read(pair)
        if pair.spans is not None and self.site in BY_QUERY:
            raise ValueError(
                f"{self.site} has one key for each position of its own prompt, so it cannot be put into a prompt that "
                "is paired along an alignment; use z, or q and k"
            )
        found = resolved(lm, self.answer, self.foil, after={"answer": ids["clean"], "foil": ids["corrupt"]})
        if not isinstance(found, Answers):
            answer, foil = found
            kind = metric_of(self.metric, answer=answer, foil=foil, reference=torch.zeros(1)).kind
            return PreparedPair(lm, self, pair, ids, answer, foil, kind)
        longest = max(x.shape[1] for x in ids.values()) + max(found.reads) - 1
        if lm.context and longest > lm.context:
            raise TooLong(
                f"prompt and answer have {longest} tokens, {longest - lm.context} more than the {lm.context} of "
                f"{lm.name}'s context; shorten one of them",
                longest - lm.context,
            )
        return PreparedPair(lm, self, pair, ids, None, None, found.metric(self.metric).kind, found)

    def prepared(self, lm: LanguageModel) -> PreparedPair:
        if (perturbation := self.perturbation) is not None:
            prepared = self._paired(lm)
            return replace(prepared, draws=perturbation.draws(lm, prepared.ids["clean"], whole=prepared.whole))
        if self.source is None:
            return self._paired(lm)
        check_source(lm, self.source, self.clean)
        if self.site == "head_out":
            raise ValueError(
                "each model makes head_out with its own output projection, so it cannot be put into another by head; "
                "use z, or attn_out"
            )
        prepared = self._paired(lm)
        needs = () if prepared.kind is None else prepared.kind.needs
        if "clean" in needs and lm.n_vocab != self.source.n_vocab:
            raise ValueError(
                f"{self.metric} compares whole distributions, but the models have {lm.n_vocab} and "
                f"{self.source.n_vocab} tokens; use logit_diff or logprob"
            )
        return prepared


def _as_tuples(given: Any) -> Any:
    return tuple(map(_as_tuples, given)) if isinstance(given, list | tuple) else given


@dataclass(frozen=True, eq=False)
class PreparedPair:
    """A spec resolved for a model.

    Attributes:
        pair: both prompts whole, as they align.
        ids: of `clean` and `corrupt`, (1, seq), up to the position that the metric reads.
        answer, foil: their ids; None where there is none, or where they are several.
        kind: the metric's `MetricKind`; None for a plain function.
        several: answers and foils of several tokens, or several of them; None if each is one token.
        draws: what takes the place of the corrupt run, where there is no corrupt prompt.
    """

    lm: LanguageModel
    spec: PairSpec
    pair: Pair
    ids: Mapping[str, torch.Tensor]
    answer: int | None
    foil: int | None
    kind: MetricKind | None
    several: Answers | None = None
    draws: Sequence[Draw] = ()

    @property
    def length(self) -> int:
        """Positions of clean up to the one that the metric reads."""
        return self.ids["clean"].shape[1]

    @property
    def whole(self) -> int:
        """Tokens of clean."""
        return self.pair.clean.shape[1]

    @property
    def tokens(self) -> tuple[list[Any], list[Any]]:
        """The tokens of clean and corrupt up to there."""
        pair = self.pair
        return pair.clean_tokens[: self.length], pair.corrupt_tokens[: self.ids["corrupt"].shape[1]]

    @property
    def partners(self) -> dict[str, list[int | None]] | None:
        """For each position of `clean` and of `corrupt` up to there its partner in the other prompt.

        None: they are paired position by position.
        """
        if self.pair.spans is None:
            return None
        lengths = {name: ids.shape[1] for name, ids in self.ids.items()}
        clean, corrupt = lengths.values()
        return {
            "clean": partners(self.pair.spans, "clean", length=clean, other=corrupt),
            "corrupt": partners(self.pair.spans, "corrupt", length=corrupt, other=clean),
        }

    def runs(self) -> PairRuns:
        """The two unpatched runs, with what is forced after the prompts."""
        forced = () if self.several is None else self.several.lanes
        source = getattr(self.spec, "source", None)
        return PairRuns(
            self.lm, self.ids["clean"], self.ids["corrupt"],
            source=source, partners=self.partners, forced=forced, draws=self.draws,
        )  # fmt: skip

    def metric(self, reference: torch.Tensor) -> Metric:
        """The metric, given the clean run's logits (vocab,) at the position that it reads."""
        if self.several is not None:
            metric = self.several.metric(self.spec.metric)
        else:
            metric = metric_of(self.spec.metric, answer=self.answer, foil=self.foil, reference=reference)
        return averaged(metric, max(1, len(self.draws)))

    def recipe(self, **more: Any) -> dict[str, Any]:
        """What repeats it, for JSON."""
        asked = self.spec.metric
        foil = self.foil if self.several is None else self.several.foil or None
        usual = usual_metric(foil, several=self.several is not None)
        name = getattr(asked, "__name__", "metric") if callable(asked) else asked or usual
        whole = self.whole
        at = -1 if self.length == whole else self.length - 1
        if self.pair.clean.shape != self.pair.corrupt.shape:
            at = self.length - whole - 1
        if self.pair.spans is not None:
            more["alignment"] = [list(map(list, span)) for span in self.pair.spans]
        if isinstance(self.spec, PatchSpec):
            if (perturbation := self.spec.perturbation) is not None:
                more["by"] = {**perturbation.told(self.lm), "name": perturbation.name}
            if self.spec.window > 1:
                more["window"] = self.spec.window
        if (code := code_of_own(name)) and not callable(asked):
            more["metric_code"] = code
        if (source := getattr(self.spec, "source", None)) is not None:
            more["source"] = made_with(source)
        recipe = recipe_of(
            self.lm, self.pair, self.spec.clean, self.spec.corrupt, answer=self.answer, foil=self.foil, metric=name,
            own_metric=callable(asked), at=at, **more,
        )  # fmt: skip
        if self.several is not None:
            recipe |= {"answer": as_given(self.spec.answer), "foil": as_given(self.spec.foil)}
            recipe["answer_tokens"] = list(map(list, self.several.answer))
            recipe["foil_tokens"] = list(map(list, self.several.foil))
        return recipe


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
