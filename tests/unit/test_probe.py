"""Linear probes: a planted direction is found, controls stay at chance, groups do not leak."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from loud import loud, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import labkit as lk
from labkit.probing import fit

QUIET = {"progress": False}
VOCAB, D = 3000, 64
NUMBER = torch.cat([torch.linspace(-1, -0.5, VOCAB // 2), torch.linspace(0.5, 1, VOCAB // 2)])
NUMBER = NUMBER[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5))]
"""What each token of the planted model stands for."""


@pytest.fixture(scope="module")
def direction() -> torch.Tensor:
    return 1.5 * torch.nn.functional.normalize(torch.randn(D, generator=torch.Generator().manual_seed(1)), dim=0)


@pytest.fixture(scope="module")
def planted(direction) -> lk.LanguageModel:
    """A model whose residual stream is noise for each token, plus twice a direction times the token's number.

    Its blocks add little.
    """
    torch.manual_seed(0)
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=D, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(torch.randn(VOCAB, D) + 2 * NUMBER[:, None] * direction)
    return lk.wrap(hf.eval(), tokenizer())


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """Texts (1200, 4) of no token twice in the last place."""
    draw = torch.Generator().manual_seed(2)
    first = torch.randint(1, VOCAB, (1200, 3), generator=draw)
    return torch.cat([first, torch.randperm(VOCAB, generator=draw)[:1200, None]], 1)


@pytest.fixture(scope="module")
def numbers(ids) -> np.ndarray:
    return NUMBER[ids[:, -1]].numpy()


@pytest.fixture(scope="module")
def labels(numbers) -> list[str]:
    return ["high" if number > 0 else "low" for number in numbers]


@pytest.fixture(scope="module")
def collected(planted, ids) -> lk.Collection:
    return lk.collect(planted, list(ids[:, None]), read=["resid_post"], positions=[-2, -1], **QUIET)


@pytest.fixture(scope="module")
def last(planted, ids) -> lk.Collection:
    return lk.collect(planted, list(ids[:, None]), read=["resid_post"], positions="last", **QUIET)


@pytest.fixture(scope="module")
def probed(last, labels) -> lk.Probe:
    return lk.probe(last, labels, **QUIET)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


# -- what is found -----------------------------------------------------------------------------------------------------


def test_a_planted_direction_is_found_in_the_units_of_the_residual_stream(probed, direction, numbers):
    assert probed.classes == ("high", "low")
    assert (probed.scores > 0.85).all()
    for layer in (0, 1):
        found = probed.direction(layer, label="high")
        assert cosine(found.values, direction) > 0.95
        apart = 2 * (numbers[numbers > 0].mean() - numbers[numbers <= 0].mean()) * float(direction.norm())
        assert found.norm == pytest.approx(apart, rel=0.1)
        assert found.layer == layer
        assert torch.equal(probed.direction(layer).values, -found.values)  # towards the second of two: low


def test_numbers_are_found_along_the_direction_they_were_planted_on(last, numbers, direction):
    probed = lk.probe(last, numbers, **QUIET)
    assert probed.classes is None
    assert probed.measure == "r2"
    assert (probed.scores > 0.7).all()
    found = probed.direction(1)
    assert cosine(found.values, direction) > 0.95
    assert found.norm == pytest.approx(2 * float(direction.norm()), rel=0.1)  # per unit of the number
    said = last["resid_post.1"].astype(np.float64) @ found.values.numpy() + probed.bias(1)
    slope, start = np.polyfit(numbers, said, 1)
    assert abs(start) < 0.1 * slope  # 0 is where it predicts 0
    frame = probed.to_frame()
    assert (frame.shuffled < 0.1).all()
    assert (frame.random < 0.1).all()
    assert (frame.chance == 0).all()
    with pytest.raises(ValueError, match="the labels are numbers"):
        probed.direction(1, label=3)


def test_a_direction_is_the_weights_of_the_probe_with_its_standardisation_undone(planted, ids, labels):
    with torch.no_grad():  # some coordinates much larger than others, as in real models
        weight = planted.hf.model.embed_tokens.weight
        before, sizes = weight.clone(), torch.logspace(-1, 2, D)
        weight *= sizes
    collected = lk.collect(planted, list(ids[:, None]), read=["embed"], positions="last", dtype="float32", **QUIET)
    with torch.no_grad():
        weight.copy_(before)
    probed, x = lk.probe(collected, labels, **QUIET), collected["embed"].astype(np.float64)
    whole = fit.fitted(x, np.array([label == "low" for label in labels]), numbers=False, penalty=0.01)
    along = x @ probed.directions[0, 0, 0]
    assert np.corrcoef(along, whole.decision_function(x))[0, 1] > 0.9999
    sure = along + probed.bias(0)
    np.testing.assert_array_equal(sure > 0, whole.decision_function(x) > 0)
    assert probed.bias(0, label="high") == -probed.bias(0)
    far = x[np.array(labels) == "low"].mean(0) - x[np.array(labels) == "high"].mean(0)
    unit = probed.directions[0, 0, 0] / np.linalg.norm(probed.directions[0, 0, 0])
    assert far @ unit == pytest.approx(np.linalg.norm(probed.directions[0, 0, 0]), rel=1e-4)


def test_a_direction_goes_where_steering_vectors_go(planted, ids, labels, probed, last):
    found = probed.direction(0, label="high")
    assert isinstance(found, lk.SteeringVector)
    prompt = ids[:1]
    plain = planted.run(prompt, read=["resid_post.0"])["resid_post.0"]
    with planted.steer(found, 2.0):
        moved = planted.run(prompt, read=["resid_post.0"])["resid_post.0"]
    torch.testing.assert_close(found.along(moved) - found.along(plain), torch.full((1, 4), 2 * found.norm))
    with planted.steer(found, manner="project_out"):
        without = lk.collect(planted, list(ids[:, None]), read=["resid_post.0"], positions="last", **QUIET)
    assert np.abs(found.along(torch.from_numpy(without["resid_post.0"].copy())).numpy()).max() < 1e-4
    assert lk.probe(without, labels, **QUIET).scores[0, 0] < 0.75 < probed.scores[0, 0]
    assert "towards 'high'" in repr(found)


def test_each_of_several_classes_has_a_direction(last, numbers, direction):
    thirds = np.digitize(numbers, [-0.75, 0.75]).tolist()
    probed = lk.probe(last, thirds, layers=[1], **QUIET)
    assert probed.classes == (0, 1, 2)
    assert cosine(probed.direction(1, label=2).values, direction) > 0.8
    assert cosine(probed.direction(1, label=0).values, -direction) > 0.8
    with pytest.raises(ValueError, match="there are 3 labels; say towards which, such as label=0"):
        probed.direction(1)
    with pytest.raises(ValueError, match="there is no label 7; there are 0, 1, 2"):
        probed.direction(1, label=7)


def test_positions_given_as_a_list_are_probed_apart(collected, labels, direction):
    probed = lk.probe(collected, labels, layers=[0], **QUIET)
    assert probed.positions == (-2, -1)
    before, at = probed.scores[0]
    assert before < 0.6 < 0.85 < at  # the label is of the last token
    assert cosine(probed.direction(0, position=-1, label="high").values, direction) > 0.95
    with pytest.raises(ValueError, match="position=None: choose one of -2, -1"):
        probed.direction(0)
    together = lk.probe(collected, labels, layers=[0], by_position=False, **QUIET)
    assert together.positions == ("all",)
    assert before < together.scores[0, 0] < at
    assert together.to_frame().rows.tolist() == [2400]


# -- controls ----------------------------------------------------------------------------------------------------------


def test_shuffled_labels_and_features_of_new_tokens_are_at_chance(probed):
    for row in probed.to_frame().itertuples():
        assert row.shuffled_low <= 0.5 <= row.shuffled_high
        assert row.random_low <= 0.5 <= row.random_high
        assert 0.5 <= row.chance < 0.55
        assert row.accuracy_low > row.shuffled_high
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
    low, high = probed.interval(1)
    assert [low, high] == probed.to_frame().query("layer == 1")[["accuracy_low", "accuracy_high"]].iloc[0].tolist()


def test_a_label_that_the_token_tells_is_told_by_random_features_too(planted):
    draw = torch.Generator().manual_seed(3)
    texts = torch.randint(1, VOCAB, (200, 2), generator=draw)
    texts[:, -1] = torch.randint(20, 40, (200,), generator=draw)  # of twenty tokens
    collected = lk.collect(planted, list(texts[:, None]), read=["resid_post.1"], positions="last", **QUIET)
    frame = lk.probe(collected, (texts[:, -1] % 2 == 0).tolist(), **QUIET).to_frame()
    assert frame.random.iloc[0] > 0.95
    assert frame.accuracy.iloc[0] > 0.95
    assert frame.shuffled_low.iloc[0] < 0.5 < frame.shuffled_high.iloc[0] + 0.1


def test_the_same_text_twice_is_on_one_side_of_a_split(planted, ids):
    texts = [one[None] for one in ids[:60] for _ in range(5)]
    labels = np.repeat(np.random.default_rng(0).permutation([0, 1] * 30), 5)  # nothing but the text has to do with it
    collected = lk.collect(planted, texts, read=["resid_post.1"], positions="last", **QUIET)
    assert lk.probe(collected, labels, C=1.0, **QUIET).scores[0, 0] < 0.7
    leaking = lk.probe(collected, labels, groups=np.arange(300), C=1.0, **QUIET)
    assert leaking.scores[0, 0] > 0.95
    assert leaking.to_frame().shuffled.iloc[0] > 0.95  # ... which the control shows, as it shuffles whole texts


def test_positions_of_one_text_are_one_group(planted, ids):
    labels = np.random.default_rng(1).permutation([0, 1] * 50)
    collected = lk.collect(planted, list(ids[:100, None]), read=["resid_post.1"], **QUIET)
    frame = lk.probe(collected, labels, **QUIET).to_frame()
    assert frame.groups.tolist() == [100]
    assert frame.rows.tolist() == [400]
    named = lk.probe(collected, labels, groups=[f"{n // 10}" for n in range(100)], **QUIET).to_frame()
    assert named.groups.tolist() == [10]


def test_labels_and_groups_can_be_columns(planted):
    frame = pd.DataFrame({"text": [f"{a} {b}" for a in "abcdefgh" for b in "xyzw"]})
    frame["letter"] = frame.text.str[0]
    frame["late"] = frame.text.str[-1].isin(["z", "w"]).map({True: "late", False: "early"})
    collected = lk.collect(planted, frame, read=["resid_post"], positions="last", **QUIET)
    by_name = lk.probe(collected, "late", groups="letter", **QUIET)
    given = lk.probe(collected, frame["late"], groups=frame["letter"], **QUIET)
    assert np.array_equal(by_name.own, given.own)
    assert by_name.to_frame().groups.tolist() == [8, 8]


# -- results -----------------------------------------------------------------------------------------------------------


def test_a_probe_is_opened_as_it_was_saved_and_repeated_by_its_code(lm4, tmp_path):
    texts = [
        f"{name} went to the {place}" for name in ("Mary", "John", "Tom", "Anna") for place in ("park", "sea", "shop")
    ]
    collected = lk.collect(lm4, texts, read=["resid_post.10", "resid_post.20"], positions=[-2, -1], **QUIET)
    labels = [text.split()[0] in ("Mary", "Anna") for text in texts]
    probed = lk.probe(collected, labels, folds=3, C=1.0, groups=[text.split()[-1] for text in texts], **QUIET)
    opened = lk.open_probe(probed.save(tmp_path / "probe.npz"))
    assert repr(opened) == repr(probed)
    assert opened.to_frame().equals(probed.to_frame())
    assert opened.code() == probed.code()
    vector = opened.direction(20, position=-1)
    assert torch.equal(vector.values, probed.direction(20, position=-1).values)
    scope: dict = {}
    exec(vector.code(), scope)
    torch.testing.assert_close(scope["vector"].values, vector.values, rtol=1e-3, atol=1e-3)
    assert scope["probe"].to_frame().equals(probed.to_frame())


def test_figures_show_scores_controls_and_chance(probed, collected, labels):
    figure = probed.figure()
    assert [trace.name for trace in figure.data] == [
        "probe", "shuffled labels", "random features of the token", "chance",
    ]  # fmt: skip
    assert np.allclose(figure.data[0].y, probed.scores[:, 0])
    assert figure.layout.yaxis.title.text == "accuracy"
    two = lk.probe(collected, labels, controls=1, **QUIET)
    assert np.allclose(two.figure().data[0].z, two.scores)
    assert np.allclose(two.figure(-1).data[0].y, two.scores[:, 1])


def test_an_interrupt_keeps_the_layers_that_are_done(last, labels, monkeypatch):
    calls, real = [], fit.fitted

    def stopped(*args, **settings):
        calls.append(1)
        if len(calls) == 10 + 16 + 3:  # random features, a layer with its shuffles, and on
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(fit, "fitted", stopped)
    with pytest.warns(UserWarning, match="interrupted: 1 of 2 layers are in the probe"):
        partial = lk.probe(last, labels, **QUIET)
    assert partial.layers == (0,)
    assert len(partial.to_frame()) == 1
    with pytest.raises(ValueError, match="layer 1 was not probed; there are 0"):
        partial.direction(1)
    calls[:] = [1] * 28
    with pytest.warns(UserWarning, match="interrupted: 0 of 2 layers"):
        nothing = lk.probe(last, labels, **QUIET)
    assert repr(nothing) == "Probe(resid_post, 2 classes: no layer is done)"


def test_bad_input_is_refused_before_anything_is_fitted(last, collected, labels, monkeypatch):
    monkeypatch.setattr(fit, "predicted", lambda *_: pytest.fail("something was fitted"))
    for given, how, says in (
        (labels[:-1], {}, "expected one of labels per text or per row: 1200 texts, 1200 rows; got 1199"),
        (["a"] * 1200, {}, "all rows have the label 'a'"),
        (["a", *["b"] * 1199], {}, "the label 'a' is in one group alone"),
        ([None, *labels[1:]], {}, "1 of 1200 rows have no label"),
        ("kind", {}, "labels='kind' is no column; there are 'text', 'position', 'token'"),
        (labels, {"groups": [1] * 1200}, "5 folds need as many groups; there are 1"),
        (labels, {"groups": [1] * 7}, "expected one of groups per text"),
        (labels, {"folds": 1}, "folds must be a whole number, at least 2"),
        (labels, {"controls": 0}, "controls must be a whole number, at least 1"),
        (labels, {"C": 0}, "C must be a number above 0"),
        (labels, {"C": "a"}, "C must be a number above 0"),
        (labels, {"folds": 2.5}, "folds must be a whole number"),
        (labels, {"controls": 1.5}, "controls must be a whole number"),
        (labels, {"seed": "a"}, "seed must be a whole number"),
        (labels, {"layers": 0}, r"layers must be a list of layers, such as \[0\]"),
        (labels, {"groups": [None] * 600 + [1] * 600}, "600 of 1200 rows have no group"),
        ([np.inf, *range(1199)], {}, "labels are texts or finite numbers; got inf"),
        ([pd.Timestamp("2020-01-01"), pd.Timestamp("2021-01-01")] * 600, {}, "labels are texts or finite numbers"),
        (labels, {"layers": []}, "names no layer"),
        (
            labels,
            {"by_position": True, "site": "mlp_out", "collected": loud_all},
            "needs positions that every text has",
        ),
        (labels, {"site": "resid_post.0", "layers": [1]}, "is of one layer; leave out layers="),
    ):
        one = how.pop("collected", lambda: last)()
        with pytest.raises(ValueError, match=says):
            lk.probe(one, given if len(one) == 1200 else [0, 1] * 8, **how)
    with pytest.raises(TypeError, match=r"takes what lk\.collect gives; got ndarray"):
        lk.probe(np.zeros((4, 2)), [0, 1, 0, 1])
    for how in ({"layers": [7]}, {"site": "mlp_out"}):
        with pytest.raises(KeyError, match="was not read in this collection"):
            lk.probe(last, labels, **how)


def loud_all() -> lk.Collection:
    """Two kinds of site, at all positions."""
    texts = torch.randint(1, 200, (16, 3), generator=torch.Generator().manual_seed(0))
    return lk.collect(loud("llama"), list(texts[:, None]), read=["z.1.2", "mlp_out"], **QUIET)


def test_a_kind_of_site_is_chosen_where_there_are_several():
    collected, labels = loud_all(), [0, 1] * 8
    with pytest.raises(ValueError, match=r"several kinds of site; name one, such as site='mlp_out'"):
        lk.probe(collected, labels)
    head = lk.probe(collected, labels, site="z.1.2", **QUIET)
    assert head.site == "z.1.2"
    assert head.layers == (1,)
    with pytest.raises(ValueError, match="a direction of the residual stream after a layer; this probe is of z"):
        head.direction(1)
    assert lk.probe(collected, labels, site="mlp_out", **QUIET).layers == (0, 1)


def test_without_scikit_learn_the_error_says_what_to_install(last, labels, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "labkit-lm\[probe\]"'):
        lk.probe(last, labels)
