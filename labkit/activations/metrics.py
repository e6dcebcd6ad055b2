"""Metrics: from the logits at one position, (rows, vocab), to one number per row.

`logit_diff` is the usual choice for activation patching: it is linear in the logits and not bounded, as a probability
is (Heimersheim and Nanda 2024, "How to use and interpret activation patching").
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from labkit.models.devices import columns_of

MetricFunction = Callable[[torch.Tensor], torch.Tensor]
Need = Literal["answer", "foil", "clean"]


@dataclass(frozen=True)
class MetricKind:
    """A metric, independent of the pair; `metric` says what its parts mean.

    Its function takes the logits (rows, vocab), and by name the id of the `answer`, the id of the `foil`, or the logits
    (vocab,) of the `clean` run, and gives (rows,).
    """

    name: str
    unit: str
    label: str
    needs: tuple[Need, ...]
    function: Callable[..., torch.Tensor]
    of_columns: bool = False
    has_gradient: bool = True

    @property
    def moves_like_logits(self) -> bool:
        """Does it move about as far as logits do?"""
        return self.unit in ("logits", "nats")


METRICS: dict[str, MetricKind] = {}
F = TypeVar("F", bound=Callable[..., torch.Tensor])


def metric(
    name: str,
    *,
    unit: str,
    label: str | None = None,
    needs: Sequence[Need] = (),
    of_columns: bool = False,
    has_gradient: bool = True,
) -> Callable[[F], F]:
    """Give a metric a name that all patching functions accept.

        @lk.metric("entropy", unit="nats")
        def entropy(logits):  # (rows, vocab) -> (rows,)
            return torch.distributions.Categorical(logits=logits).entropy()

        lk.patch(lm, clean, corrupt, metric="entropy")

    Args:
        name: its name.
        unit: of its numbers, for axes and colour bars.
        label: its label in figures; by default its name, with spaces.
        needs: any of `answer`, `foil` (ids) and `clean` (logits (vocab,) of the clean run): arguments of the function
            besides the logits. A patch without them is refused before it runs.
        of_columns: give the function the logits of answer and foil alone, (rows, 2), which is faster.
        has_gradient: False for one that steps, such as a rank, which cannot be estimated.

    Raises:
        ValueError: there is already a metric of that name.
    """

    def named(function: F) -> F:
        if name in METRICS and METRICS[name].function.__module__ != function.__module__:
            raise ValueError(f"there is already a metric {name!r}; choose another name")
        words = label or name.replace("_", " ")
        METRICS[name] = MetricKind(name, unit, words, tuple(needs), function, of_columns, has_gradient)
        return function

    return named


@metric("logit_diff", unit="logits", label="logit difference", needs=("answer", "foil"), of_columns=True)
def logit_diff(logits: torch.Tensor) -> torch.Tensor:
    """The answer's logit minus the foil's."""
    return logits[:, 0] - logits[:, 1]


@metric("logprob", unit="nats", label="log probability", needs=("answer",))
def logprob(logits: torch.Tensor, *, answer: int) -> torch.Tensor:
    """The logarithm of the answer's probability."""
    return logits.log_softmax(-1)[:, answer]


@metric("logprob_diff", unit="nats", label="log probability difference", needs=("answer", "foil"), of_columns=True)
def logprob_diff(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of the answer's probability minus that of the foil's."""
    return logits[:, 0] - logits[:, 1]  # at one position both have the same normaliser


@metric("kl", unit="nats", label="KL from the clean run", needs=("clean",))
def kl(logits: torch.Tensor, *, clean: torch.Tensor) -> torch.Tensor:
    """The Kullback-Leibler divergence from the clean run's distribution."""
    target = clean.log_softmax(-1)
    return (target.exp() * (target - logits.log_softmax(-1))).sum(-1)


@metric("rank", unit="ranks", label="rank", needs=("answer",), has_gradient=False)
def rank(logits: torch.Tensor, *, answer: int) -> torch.Tensor:
    """How many tokens are at least as likely as the answer, itself included."""
    return (logits > logits[:, answer, None]).sum(-1).float() + 1


@dataclass(frozen=True)
class Metric:
    """A metric for one pair: its name, its unit, and the vocabulary columns that it needs (None: all of them)."""

    name: str
    unit: str
    function: MetricFunction
    columns: tuple[int, ...] | None = None
    key: Hashable = None  # the same for metrics that give the same numbers
    kind: MetricKind | None = None  # its kind; None for a plain function
    reads: tuple[int, ...] = (1,)  # how many positions of each lane it reads (`patching.answers`)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, vocab or len(columns)) float32 -> (rows,) float32; where it reads several positions, of all of them.

        Raises:
            ValueError: your own metric does not give one number per row.
        """
        values = self.function(logits)
        rows = len(logits) // sum(self.reads)
        if not isinstance(values, torch.Tensor) or values.shape != (rows,):
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"metric {self.name} must give one number per row, shape ({rows},); got {got}")
        return values.float()

    def of(self, logits: torch.Tensor) -> torch.Tensor:
        """The same from all columns, (rows, vocab) -> (rows,)."""
        return self(columns_of(logits, self.columns))


def usual_metric(foil: object, *, several: bool = False) -> str:
    """The default metric, of single tokens or of texts of several."""
    if foil is None:
        return "logprob"
    return "logprob_diff" if several else "logit_diff"


def label_of(name: str) -> str:
    """How figures and widgets name a metric; a user's own goes by its name."""
    return METRICS[name].label if name in METRICS else name


def in_title(name: str, answer: Any, foil: Any) -> str:
    """A metric in the title of a figure: `logit_diff of ' Mary' minus ' John'`."""
    told = lambda texts: " or ".join(map(repr, texts if isinstance(texts, list) else [texts]))  # noqa: E731
    against = f" minus {told(foil)}" if foil and name in METRICS and "foil" in METRICS[name].needs else ""
    return (f"{name} of {told(answer)}" if answer else name) + against


def code_of_own(name: str) -> str:
    """The Python that defines a user's own metric again, if available; "" for labkit's."""
    if name not in METRICS or METRICS[name].function.__module__ == __name__:
        return ""
    try:
        return f"{textwrap.dedent(inspect.getsource(METRICS[name].function))}\n"
    except (OSError, TypeError):
        return ""


def metric_of(
    asked: str | MetricFunction | None, *, answer: int | None, foil: int | None, reference: torch.Tensor
) -> Metric:
    """The metric for a name, a callable, or None.

    Args:
        asked: a name in `METRICS`, a callable (rows, vocab) -> (rows,), or None for `logit_diff` of answer and foil,
            or `logprob` where there is no foil.
        answer, foil: their ids.
        reference: logits (vocab,) of the clean run, for metrics that compare with it.

    Raises:
        ValueError: an unknown name, or one that needs an answer or a foil that was not given.
    """
    if callable(asked):
        kind = next((kind for kind in METRICS.values() if kind.function is asked), None)
        if kind is None:
            return Metric(getattr(asked, "__name__", "metric"), "", asked, key=asked)
    else:
        name = asked or usual_metric(foil)
        if name not in METRICS:
            raise ValueError(
                f"there is no metric {name!r}; use one of {', '.join(METRICS)}, or a function of the logits"
            )
        kind = METRICS[name]
    if "answer" in kind.needs and answer is None:
        raise ValueError(f"the metric {kind.name} needs an answer: one token, such as answer=' Mary'")
    if "foil" in kind.needs and foil is None:
        raise ValueError(f"{kind.name} needs a foil too, such as foil=' John'; or use metric='logprob'")
    given: dict[str, Any] = {"answer": answer, "foil": foil, "clean": reference}
    key = (kind.name, answer, foil)
    if kind.of_columns:
        columns = tuple(given[name] for name in ("answer", "foil") if name in kind.needs)
        return Metric(kind.name, kind.unit, kind.function, columns, key, kind)
    function = partial(kind.function, **{name: given[name] for name in kind.needs})
    return Metric(kind.name, kind.unit, function, None, key, kind)
