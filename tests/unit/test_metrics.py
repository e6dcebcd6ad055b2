"""Metrics: each is what its name says, and says of itself what it needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import labkit as lk
from labkit.activations import metrics
from labkit.activations.metrics import METRICS, Metric, code_of_own, in_title, label_of, metric_of

VOCAB = 5
ids = st.integers(0, VOCAB - 1)
rows = st.lists(
    st.lists(st.integers(-30, 30).map(lambda n: n / 4), min_size=VOCAB, max_size=VOCAB), min_size=1, max_size=4
)
CLEAN = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0])


@pytest.fixture
def own() -> Iterator[None]:
    """What a test adds is taken away again."""
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


def found(name: str | None, logits: list[list[float]], *, answer: int | None = None, foil: int | None = None) -> Any:
    metric = metric_of(name, answer=answer, foil=foil, reference=CLEAN)
    values = metric.of(torch.tensor(logits))
    assert values.dtype == torch.float32
    assert values.shape == (len(logits),)
    return values.numpy()


def log_probabilities(row: list[float] | Tensor) -> np.ndarray:
    row = np.array(row, dtype=float)
    return row - math.log(np.exp(row).sum())


@given(rows, ids, ids)
def test_the_logit_difference_is_the_answer_less_the_foil(logits: list[list[float]], answer: int, foil: int) -> None:
    expected = [row[answer] - row[foil] for row in logits]
    assert found("logit_diff", logits, answer=answer, foil=foil) == pytest.approx(expected)
    assert found(None, logits, answer=answer, foil=foil) == pytest.approx(expected)
    columns = metric_of(None, answer=answer, foil=foil, reference=CLEAN)
    assert columns.columns == (answer, foil)
    assert columns(torch.tensor(logits)[:, [answer, foil]]).tolist() == pytest.approx(expected)


@given(rows, ids)
def test_the_log_probability_is_that_of_the_answer(logits: list[list[float]], answer: int) -> None:
    expected = [log_probabilities(row)[answer] for row in logits]
    assert found("logprob", logits, answer=answer) == pytest.approx(expected, abs=1e-4)
    assert found(None, logits, answer=answer) == pytest.approx(expected, abs=1e-4)


@given(rows, st.integers(-9, 9))
def test_kl_is_zero_at_the_clean_run_and_nowhere_less(logits: list[list[float]], shift: int) -> None:
    clean = log_probabilities(CLEAN)
    expected = [(np.exp(clean) * (clean - log_probabilities(row))).sum() for row in logits]
    assert found("kl", logits) == pytest.approx(expected, abs=1e-4)
    assert (found("kl", logits) > -1e-5).all()
    assert found("kl", [(CLEAN + shift).tolist()]) == pytest.approx(0, abs=1e-5)


@given(rows, ids)
def test_the_rank_counts_from_one_and_ties_do_not_push_the_answer_down(logits: list[list[float]], answer: int) -> None:
    expected = [1 + sum(one > row[answer] for one in row) for row in logits]
    assert found("rank", logits, answer=answer).tolist() == expected


def test_what_is_known_of_each_metric() -> None:
    ours = {name: kind for name, kind in METRICS.items() if kind.function.__module__ == metrics.__name__}
    said = {name: (kind.unit, kind.label, kind.needs, kind.of_columns) for name, kind in ours.items()}
    assert said == {
        "logit_diff": ("logits", "logit difference", ("answer", "foil"), True),
        "logprob": ("nats", "log probability", ("answer",), False),
        "logprob_diff": ("nats", "log probability difference", ("answer", "foil"), True),
        "kl": ("nats", "KL from the clean run", ("clean",), False),
        "rank": ("ranks", "rank", ("answer",), False),
    }
    assert [name for name, kind in ours.items() if not kind.has_gradient] == ["rank"]
    assert [name for name, kind in ours.items() if not kind.moves_like_logits] == ["rank"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        METRICS["kl"].name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric_of("kl", answer=None, foil=None, reference=CLEAN).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "answer", "foil", "lacks"),
    [
        ("logit_diff", None, None, "answer"),
        ("logit_diff", None, 1, "answer"),
        ("logit_diff", 1, None, "foil"),
        ("logprob", None, None, "answer"),
        (None, None, None, "answer"),
        ("rank", None, 1, "answer"),
    ],
)
def test_what_a_metric_lacks_is_said(name: str | None, answer: int | None, foil: int | None, lacks: str) -> None:
    with pytest.raises(ValueError, match=rf"needs an? {lacks}"):
        metric_of(name, answer=answer, foil=foil, reference=CLEAN)


def test_answer_zero_is_an_answer() -> None:
    for name in METRICS:
        assert metric_of(name, answer=0, foil=0, reference=CLEAN).kind is METRICS[name]


def test_an_unknown_metric_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'logit_dif'.*logit_diff, logprob, logprob_diff, kl, rank"):
        metric_of("logit_dif", answer=0, foil=1, reference=CLEAN)


def test_metrics_that_give_the_same_numbers_have_one_key() -> None:
    def of(name: Any, answer: int | None = 1, foil: int | None = 2) -> Metric:
        return metric_of(name, answer=answer, foil=foil, reference=CLEAN)

    assert of("logit_diff").key == of(None).key == of(metrics.logit_diff).key
    assert len({of(name, *ids).key for name in METRICS for ids in ((1, 2), (2, 1))}) == 2 * len(METRICS)
    assert of(metrics.rank).kind is METRICS["rank"]
    assert (of("kl").name, of("kl").unit, of("kl").columns) == ("kl", "nats", None)


def test_a_function_of_one_s_own_is_a_metric_that_says_nothing() -> None:
    def largest(logits: Tensor) -> Tensor:
        return logits.max(-1).values

    metric = metric_of(largest, answer=None, foil=None, reference=CLEAN)
    assert (metric.name, metric.unit, metric.columns, metric.kind, metric.key) == ("largest", "", None, None, largest)
    assert metric.of(torch.tensor([[1, 3], [5, 2]], dtype=torch.float64)).tolist() == [3, 5]
    assert metric(torch.ones(2, 2, dtype=torch.float64)).dtype == torch.float32
    nameless = metric_of(type("Odd", (), {"__call__": lambda self, x: x[:, 0]})(), answer=1, foil=1, reference=CLEAN)
    assert nameless.name == "metric"


@pytest.mark.parametrize(
    ("function", "gave"),
    [(lambda x: x, r"\(2, 5\)"), (lambda x: x.sum(), r"\(\)"), (lambda x: 1.0, "float"), (lambda x: x[0], r"\(5,\)")],
)
def test_a_metric_that_does_not_give_one_number_per_row_is_told_what_it_gave(function: Any, gave: str) -> None:
    metric = metric_of(function, answer=None, foil=None, reference=CLEAN)
    with pytest.raises(ValueError, match=rf"shape \(2,\).*{gave}"):
        metric(torch.zeros(2, VOCAB))


def margin(logits: Tensor, *, answer: int, clean: Tensor) -> Tensor:
    """How far the answer's logit is from the clean run's."""
    return logits[:, answer] - clean[answer]


def second_less_first(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


def test_a_metric_with_a_name_is_known_everywhere(own: None) -> None:
    assert lk.metric("from_clean", unit="logits", needs=["answer", "clean"])(margin) is margin
    assert METRICS["from_clean"].needs == ("answer", "clean")
    assert METRICS["from_clean"].has_gradient
    assert not METRICS["from_clean"].of_columns
    assert label_of("from_clean") == "from clean"
    assert found("from_clean", [[1.0, 2.0, 3.0, 4.0, 5.0]], answer=2) == pytest.approx([1.0])
    with pytest.raises(ValueError, match="needs an answer"):
        metric_of("from_clean", answer=None, foil=1, reference=CLEAN)
    lk.metric("from_clean", unit="logits", label="again", needs=["answer", "clean"], has_gradient=False)(margin)
    assert (label_of("from_clean"), METRICS["from_clean"].has_gradient) == ("again", False)
    lk.metric("turned", unit="logits", needs=["answer", "foil"], of_columns=True)(second_less_first)
    assert found("turned", [[1.0, 2.0, 3.0, 4.0, 6.0]], answer=0, foil=4) == pytest.approx([5.0])
    lk.metric("of_answer", unit="logits", needs=["answer"], of_columns=True)(lambda logits: logits[:, 0])
    assert metric_of("of_answer", answer=3, foil=4, reference=CLEAN).columns == (3,)


@pytest.mark.parametrize("name", ["logit_diff", "rank"])
def test_a_name_of_ours_is_not_taken(own: None, name: str) -> None:
    with pytest.raises(ValueError, match=f"already a metric '{name}'"):
        lk.metric(name, unit="x")(margin)
    assert METRICS[name].function is getattr(metrics, name)


def test_the_code_of_a_metric_of_one_s_own_is_its_function(own: None) -> None:
    assert code_of_own("logit_diff") == code_of_own("no such") == ""
    lk.metric("from_clean", unit="logits", needs=["answer", "clean"])(margin)
    code = code_of_own("from_clean")
    scope: dict[str, Any] = {"Tensor": Tensor}
    exec(code, scope)
    assert scope["margin"](torch.eye(VOCAB), answer=2, clean=CLEAN).tolist() == [-2, -2, -1, -2, -2]

    def within(logits: Tensor) -> Tensor:
        return logits[:, 0]

    METRICS["within"] = dataclasses.replace(METRICS["from_clean"], function=within)
    assert code_of_own("within").startswith("def within(")
    METRICS["typed"] = dataclasses.replace(METRICS["from_clean"], function=eval("lambda logits: logits[:, 0]"))
    assert code_of_own("typed") == ""


def test_titles_and_labels_name_a_metric(own: None) -> None:
    assert in_title("logit_diff", " Mary", " John") == "logit_diff of ' Mary' minus ' John'"
    assert in_title("logprob", " Mary", " John") == in_title("logprob", " Mary", None) == "logprob of ' Mary'"
    assert in_title("kl", None, None) == "kl"
    assert in_title("own", " Mary", " John") == "own of ' Mary'"
    assert (label_of("kl"), label_of("own")) == ("KL from the clean run", "own")
