"""Examples of a unit over a collection: the strongest texts, deciles, quantiles, wherever the shards are read."""

import math
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from loud import loud
from transformers import LlamaConfig, LlamaForCausalLM

import labkit as lk
from labkit.features import quantiles as q
from labkit.features.reading import exactly, total

QUIET = {"progress": False}
FIRES = 77
"""The token for which the planted neuron fires."""


def ids_of(seed: int, count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (count,), generator=draw)
    return [torch.randint(100, 200, (1, int(n)), generator=draw) for n in lengths]


@pytest.fixture(scope="module")
def tiny() -> lk.LanguageModel:
    return loud("llama")


@pytest.fixture(scope="module")
def texts() -> list[torch.Tensor]:
    return ids_of(0, 60)


@pytest.fixture(scope="module")
def collected(tiny, texts) -> lk.Collection:
    return lk.collect(tiny, texts, read=["mlp_act.1", "z", "resid_post"], shard=7, **QUIET)


@pytest.fixture(scope="module")
def planted() -> lk.LanguageModel:
    """A model whose neuron 5 of layer 0 fires for one token and is all but silent for any other."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        row = torch.nn.functional.normalize(torch.randn(64), dim=0)
        words = torch.randn(300, 64)
        words -= (words @ row)[:, None] * row
        words[FIRES] = 8 * row
        hf.model.embed_tokens.weight.copy_(words)
        hf.model.layers[0].self_attn.o_proj.weight.zero_()
        hf.model.layers[0].mlp.gate_proj.weight[5] = row
        hf.model.layers[0].mlp.up_proj.weight[5] = row
    return lk.wrap(hf, loud("llama").tokenizer)


def numbers(collected: lk.Collection, unit: str) -> np.ndarray:
    """The unit's number in each row, from all of the collection at once."""
    kind, layer, number = unit.split(".")
    whole = collected[f"{kind}.{layer}"]
    return whole[:, int(number)] if kind == "mlp_act" else np.sqrt(np.square(whole[:, int(number)]).sum(-1))


def same(a: lk.Examples, b: lk.Examples) -> bool:
    """Are they the same to the last bit, wherever the collection was?"""
    kept = lambda one: {name: value for name, value in vars(one).items() if name != "recipe"}  # noqa: E731
    return kept(a) == kept(b)


@pytest.mark.parametrize("unit", ["mlp_act.1.3", "z.0.2"])
def test_quantiles_strongest_and_deciles_are_those_of_all_rows_sorted(collected, unit) -> None:
    found = lk.examples(collected, unit, top=5, each=4, **QUIET)
    values, rows = numbers(collected, unit), collected.rows
    assert found.rows == len(values)
    assert found.texts == 60
    order = np.sort(values)
    for share, value in found.quantiles.items():
        assert value == order[min(len(order) - 1, round(share * 1000) * len(order) // 1000)]
    assert math.isclose(found.mean, values.astype(float).mean(), rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(found.std, values.astype(float).std(), rel_tol=1e-6)
    assert found.positive == (values > 0).mean()
    frame = rows.assign(value=values).sort_values(["value", "text", "position"], ascending=[False, True, True])
    best = frame.drop_duplicates("text").head(5)
    assert [(e.text, e.position, e.value) for e in found.top] == [
        (row.text, row.position, row.value) for row in best.itertuples()
    ]
    edges = [found.quantiles[n / 10] for n in range(11)]
    for n, some in enumerate(found.deciles):
        assert len(some) == 4
        assert len({(e.text, e.position) for e in some}) == 4
        assert all(edges[n] <= e.value and (e.value < edges[n + 1] or n == 9) for e in some)


def test_context_is_the_tokens_around_with_their_numbers(collected, texts) -> None:
    values, rows = numbers(collected, "mlp_act.1.3"), collected.rows
    for _, one in lk.examples(collected, "mlp_act.1.3", context=2, **QUIET).groups():
        near = rows[(rows.text == one.text) & (rows.position - one.position).abs().le(2)]
        assert one.positions == tuple(near.position)
        assert one.tokens == tuple(near.token)
        assert one.values == tuple(values[near.index].tolist())
        assert len(one.tokens) == min(one.position, 2) + 1 + min(texts[one.text].shape[1] - 1 - one.position, 2)
        assert one.values[one.at] == one.value


def test_context_says_where_positions_were_not_collected(tiny, texts) -> None:
    some = lk.collect(tiny, texts, read=["mlp_act.1"], positions=[-1, 0], **QUIET)
    one = lk.examples(some, "mlp_act.1.3", top=1, context=20, **QUIET).top[0]
    assert one.positions == (0, texts[one.text].shape[1] - 1)
    assert str(one).replace("[", "").replace("]", "") == "…".join(one.tokens)


def test_a_planted_neuron_is_found_by_what_fires_it(planted) -> None:
    texts = ids_of(3, 40)
    for n in range(0, 40, 8):
        texts[n][0, 1] = FIRES
    collected = lk.collect(planted, texts, read=["mlp_act"], shard=6, **QUIET)
    found = lk.examples(collected, "mlp_act.0.5", top=5, **QUIET)
    assert {(one.text, one.position) for one in found.top} == {(n, 1) for n in range(0, 40, 8)}
    assert found.top[4].value > 20 * found.quantiles[0.9]
    other = lk.examples(collected, "mlp_act.0.6", top=5, **QUIET)
    assert {(one.text, one.position) for one in other.top} != {(n, 1) for n in range(0, 40, 8)}


def test_of_equal_numbers_the_first_text_and_position_come_first_and_one_decile_has_them(tiny) -> None:
    again = [torch.full((1, 4), 150)] * 6
    collected = lk.collect(tiny, again, read=["resid_pre.0"], shard=2, **QUIET)
    found = lk.examples(collected, "resid_pre.0", top=4, **QUIET)
    assert [(one.text, one.position) for one in found.top] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [len(some) for some in found.deciles] == [0] * 9 + [3]


@pytest.mark.long
def test_shards_threads_and_processes_make_no_difference(tiny, texts, tmp_path: Path) -> None:
    parts = lk.collect(tiny, texts, read=["z", "resid_post"], shard=7, store=tmp_path / "parts", **QUIET)
    direction = torch.linspace(-1, 1, 64)
    for unit, of in (("z.1.2", None), (direction, "resid_post.1")):
        here = lk.examples(parts, unit, of=of, each=5, **QUIET)
        with ThreadPoolExecutor(3) as executor:
            assert same(lk.examples(parts, unit, of=of, each=5, executor=executor, **QUIET), here)
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
            assert same(lk.examples(parts, unit, of=of, each=5, executor=executor, **QUIET), here)
    one, several = (lk.examples(c, "mlp_act.1.3", each=5, **QUIET) for c in _cut_in_two_ways(tiny, texts))
    assert same(one, several)


def _cut_in_two_ways(tiny, texts) -> list[lk.Collection]:
    """One collection in one shard and in several; texts run one by one, so that the numbers are the same."""
    return [lk.collect(tiny, texts, read=["mlp_act.1"], shard=n, batch=1, **QUIET) for n in (60, 7)]


numbers_of_all_sizes = arrays(np.float64, st.integers(0, 40), elements=st.floats(-(2.0**500), 2.0**500))


@given(numbers_of_all_sizes, st.integers(0, 40))
def test_sums_are_rounded_once_however_the_numbers_are_cut(values: np.ndarray, at: int) -> None:
    parts = [*exactly(values[:at]), *exactly(values[at:])]
    assert total(parts) == total(exactly(values)) == float(sum(map(Fraction, values.tolist())))


@pytest.mark.parametrize(("values", "expected"), [([math.inf, 1], math.inf), ([math.inf, -math.inf], math.nan)])
def test_sums_of_what_is_not_finite_are_not_finite_either(values: list[float], expected: float) -> None:
    found = [total(exactly(np.array(values))), total([part for one in values for part in exactly(np.array([one]))])]
    np.testing.assert_equal(found, [expected, expected])


@pytest.mark.long
def test_workers_of_dask_find_the_same(collected) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        there = lk.examples(collected, "z.1.2", executor=client, **QUIET)
    assert same(there, lk.examples(collected, "z.1.2", **QUIET))


def test_another_seed_draws_other_examples_and_leaves_the_rest(collected) -> None:
    a, b = (lk.examples(collected, "z.1.2", seed=seed, **QUIET) for seed in (0, 1))
    assert a.top == b.top
    assert a.quantiles == b.quantiles
    assert a.deciles != b.deciles


def test_draws_are_even() -> None:
    from labkit.features.reading import hashes

    text, position = (axis.ravel() for axis in np.mgrid[:400, :50])
    for seed in (0, 1, 2**70, -3):
        keys = hashes(seed, text, position)
        assert len(np.unique(keys)) == 20_000
        drawn = np.argsort(keys)[:2000]
        assert abs(text[drawn].mean() - 199.5) < 15  # 5.8 standard errors
        assert abs(position[drawn].mean() - 24.5) < 2
        assert abs(float(np.corrcoef(keys.astype(float), text)[0, 1])) < 0.05


def test_a_direction_is_projected_on_whatever_its_length(collected) -> None:
    values = torch.linspace(-1, 2, 64)
    rows = collected["resid_post.1"] @ (values / values.norm()).numpy()
    vector = lk.SteeringVector.of(values, 1)
    by_vector = lk.examples(collected, vector, **QUIET)
    assert math.isclose(by_vector.top[0].value, rows.max(), rel_tol=1e-5)
    longer = lk.examples(collected, 4 * values, of="resid_post.1", **QUIET)
    assert np.allclose([one.value for one in longer.top], [one.value for one in by_vector.top], rtol=1e-5)
    head = lk.examples(collected, torch.ones(16), of="z.1.3", **QUIET)
    assert math.isclose(head.top[0].value, (collected["z.1.3"].sum(-1) / 4).max(), rel_tol=1e-5)


@given(arrays(np.float32, st.integers(1, 400), elements=st.floats(width=32, allow_nan=False)), st.integers(1, 9))
def test_quantiles_in_parts_are_those_of_the_sorted_numbers(values: np.ndarray, cuts: int) -> None:
    parts = np.array_split(values, cuts)
    every = q.nothing()
    for part in parts:
        q.add(every, q.upper(part))
    places = q.wanted(every)
    bins = sorted({bin for _, bin, _ in places})
    inside = {bin: q.nothing() for bin in bins}
    for part in parts:
        for bin, counts in q.lower(part, bins).items():
            q.add(inside[bin], counts)
    order = np.sort(values)
    found = q.quantiles(places, inside)
    assert list(found.values()) == [order[min(len(order) - 1, p * len(order) // 1000)] for p in q.PERMILLE]


def test_what_was_found_is_saved_shown_and_found_again_by_its_code(tiny, texts, tmp_path: Path) -> None:
    collected = lk.collect(tiny, texts[:9], read=["mlp_act"], shard=4, store=tmp_path / "store", **QUIET)
    found = lk.examples(collected, "mlp_act.1.3", each=1, **QUIET)
    opened = lk.open_examples(found.save(tmp_path / "examples.npz"))
    assert same(opened, found)
    assert opened.recipe == found.recipe
    names: dict = {}
    exec(found.code(), names)
    assert same(names["found"], found)
    assert repr(found) == repr(opened)
    frame = found.to_frame()
    assert frame.group.tolist()[:9] == ["top"] * 9
    assert frame.context.str.contains("[", regex=False).all()
    drawn = found.figure().data[0]
    assert drawn.z.shape == (len(frame), 17)
    assert len(set(drawn.y)) == len(frame)
    assert drawn.z[0][8] == found.top[0].value
    assert found.figure().layout.yaxis.autorange == "reversed"
    with_vector = lk.examples(
        lk.collect(tiny, texts[:5], read=["resid_post"], store=tmp_path / "other", **QUIET),
        lk.SteeringVector.of(torch.ones(64), 1), each=1, **QUIET,
    )  # fmt: skip
    exec(with_vector.code(), names)
    assert same(names["found"], with_vector)


def test_markup_in_tokens_is_text_in_the_figure(lm4) -> None:
    texts = ["a <b>bold</b> <script>x</script> &lt; word"]
    found = lk.examples(lk.collect(lm4, texts, read=["z.3"], **QUIET), "z.3.1", **QUIET)
    words = [word for row in found.figure().data[0].text for word in row]
    assert any("&lt;" in word for word in words)
    assert not any("<" in word for word in words)


@pytest.mark.parametrize(
    ("unit", "more", "error"),
    [
        ("mlp_act.1", {}, "which neuron"),
        ("mlp_act.1.9999", {}, r"neuron 9999 is out of range; there are neurons 0 to"),
        ("mlp_act", {}, "a unit is of one layer"),
        ("z.1", {}, "which head"),
        ("z.1.7", {}, "out of range"),
        ("resid_post.1.4", {}, "resid_post has no heads"),
        ("zz.1", {}, "there is no site"),
        ("z.1.2", {"of": "z.1"}, "leave it out"),
        (torch.ones(64), {}, "needs of="),
        (torch.ones(63), {"of": "resid_post.1"}, r"64 numbers per row; the direction has shape \(63,\)"),
        (torch.zeros(64), {"of": "resid_post.1"}, "not all zero"),
        (torch.ones(64), {"of": "resid_post"}, "of one layer"),
        ("z.1.2", {"top": 0}, "top must be a whole number, at least 1"),
        ("z.1.2", {"context": 1.5}, "context must be"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(collected, unit, more, error) -> None:
    with pytest.raises(ValueError, match=error):
        lk.examples(collected, unit, **more, **QUIET)


def test_what_was_not_collected_or_is_no_collection_is_refused(collected, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"mlp_act\.0"):
        lk.examples(collected, "mlp_act.0.3", **QUIET)
    with pytest.raises(TypeError, match="takes a collection"):
        lk.examples(tmp_path, "z.1.2", **QUIET)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"concurrent\.futures\.Executor"):
        lk.examples(collected, "z.1.2", executor=3, **QUIET)  # type: ignore[arg-type]
