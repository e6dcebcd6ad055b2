"""Steering vectors, steering, and SteerLab."""

import copy
import threading

import pytest
import torch
from drawn import opened
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.widgets.steer_lab import NEGATIVE, POSITIVE

PROMPT = "I went to the new restaurant in town, and"


@pytest.fixture(scope="module")
def vector(lm4):
    return lk.steering_vector(lm4, list(POSITIVE), list(NEGATIVE), 18)


@pytest.fixture(scope="module")
def lab(lm4):
    lab = lk.SteerLab(lm4, PROMPT, max_new_tokens=8, background=False)
    lab.run(300)
    return lab


# -- the vector --------------------------------------------------------------------------------------------------------


def test_a_vector_is_the_difference_of_means_at_the_last_token(lm32):
    vector = lk.steering_vector(lm32, ["so good", "very kind"], ["so bad"], 7)
    ends = [lm32.run(text, read=["resid_post.7"])["resid_post.7@-1"][0] for text in ("so good", "very kind", "so bad")]
    torch.testing.assert_close(vector.values, (ends[0] + ends[1]) / 2 - ends[2], atol=1e-5, rtol=1e-5)
    assert vector.layer == 7
    assert vector.norm == pytest.approx(float(vector.values.norm()))
    assert vector.typical == pytest.approx(sum(float(end.norm()) for end in ends) / 3, rel=1e-4)
    assert vector.spread == ()  # three prompts make no pairs
    mean = lk.steering_vector(lm32, "so very good", "so bad", -1, at="mean")
    found = [
        lm32.run(text, read=["resid_post.29"])["resid_post.29"][0, 1:].mean(0) for text in ("so very good", "so bad")
    ]
    torch.testing.assert_close(mean.values, found[0] - found[1], atol=1e-4, rtol=1e-4)


def test_pairs_that_agree_say_so(vector):
    assert len(vector.spread) == 5
    assert sum(vector.spread) / 5 == pytest.approx(1, abs=1e-3)


def test_a_random_direction_is_as_long_and_the_same_every_time(vector):
    control = vector.random(3)
    assert control.norm == pytest.approx(vector.norm, rel=1e-5)
    assert torch.equal(control.values, vector.random(3).values)
    assert not torch.equal(control.values, vector.random(4).values)
    assert abs(float(control.values @ vector.values)) < 0.3 * vector.norm**2
    assert "random direction 3" in repr(control)


def test_code_and_file_give_the_same_vector(lm4, vector, tmp_path):
    scope: dict = {}
    exec(vector.random(2).code(), scope)
    torch.testing.assert_close(scope["vector"].values, vector.random(2).values)
    again = lk.open_steering_vector(vector.save(tmp_path / "kind.npz"))
    assert torch.equal(again.values, vector.values)
    assert repr(again) == repr(vector)
    lens = lk.logit_lens(lm4, CLEAN, positions=[-1]).save(tmp_path / "lens.npz")
    with pytest.raises(ValueError, match="not a steering vector saved by labkit: it holds a lens, which"):
        lk.open_steering_vector(lens)


@pytest.mark.parametrize(
    ("positive", "negative", "layer", "settings", "says"),
    [
        ([], ["bad"], 3, {}, "no positive prompts"),
        (["good"], ["good"], 3, {}, "give the same activations at layer 3"),
        (["good"], ["bad"], 30, {}, "layers 0 to 29"),
        (["good"], [""], 3, {}, "the prompt is empty"),
        (["good"], ["bad"], 3, {"at": "first"}, "'last' or 'mean'; got 'first'"),
    ],
)
def test_what_makes_no_vector_is_answered_in_words(lm4, positive, negative, layer, settings, says):
    with pytest.raises(ValueError, match=says):
        lk.steering_vector(lm4, positive, negative, layer, **settings)


# -- steering ----------------------------------------------------------------------------------------------------------


def test_what_is_added_is_added_at_every_position_and_nothing_else(lm):
    vector = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0)) * 5
    sites = ["resid_post.11", "resid_post.12"]
    plain = lm.run(CLEAN, read=sites)
    with lm.steer(vector, 2.0, layer=12):
        steered = lm.run(CLEAN, read=sites)
    assert torch.equal(steered["resid_post.11"], plain["resid_post.11"])
    expected = plain["resid_post.12"] + (2 * vector).to(plain["resid_post.12"].dtype)
    assert torch.equal(steered["resid_post.12"], expected)
    assert not torch.equal(steered.logits, plain.logits)
    assert torch.equal(lm.run(CLEAN).logits, plain.logits)


@pytest.mark.parametrize("layer", [0, 18, 29])
def test_generation_is_steered_at_new_positions_too(lm32, layer):
    """With the cache the same as a whole pass over prompt and text, token by token."""
    vector = torch.randn(lm32.d_model, generator=torch.Generator().manual_seed(1)) * 20
    with lm32.steer(vector, 1.0, layer=layer):
        written = [one.id for one in lm32.generate(PROMPT, max_new_tokens=6).tokens]
        ids = torch.cat([lm32.encode(PROMPT), torch.tensor([written])], 1)
        logits = lm32.run(ids).logits[0]
    start = ids.shape[1] - len(written)
    assert logits[start - 1 : -1].argmax(-1).tolist() == written
    assert written != [one.id for one in lm32.generate(PROMPT, max_new_tokens=6).tokens]


def test_strength_zero_changes_nothing_and_blocks_add_up(lm4, vector):
    plain = lm4.run(CLEAN).logits
    with lm4.steer(vector, 0.0):
        assert torch.equal(lm4.run(CLEAN).logits, plain)
    with lm4.steer(vector, 1.5):
        once = lm4.run(CLEAN, read=["resid_post.18"])["resid_post.18"]
    with lm4.steer(vector, 0.5), lm4.steer(vector, 1.0):
        twice = lm4.run(CLEAN, read=["resid_post.18"])["resid_post.18"]
    torch.testing.assert_close(once, twice, atol=0.5, rtol=0.02)  # bf16


def test_a_component_is_set_clamped_or_left_where_a_condition_does_not_hold(lm32, vector):
    plain = lm32.run(CLEAN, read=["resid_post.18"])["resid_post.18"]
    along = vector.along(plain)
    middle = float(along.median())
    with lm32.steer(vector, manner="set", to=2.0):
        there = lm32.run(CLEAN, read=["resid_post.18"])["resid_post.18"]
    torch.testing.assert_close(vector.along(there), torch.full_like(along, 2.0), atol=1e-2, rtol=1e-3)
    unit = vector.values / vector.norm
    rest = lambda x: x - vector.along(x)[..., None] * unit  # noqa: E731
    torch.testing.assert_close(rest(there), rest(plain), atol=1e-2, rtol=1e-3)
    with lm32.steer(vector, 0.5, manner="clamp", high=middle):
        half = lm32.run(CLEAN, read=["resid_post.18"])["resid_post.18"]
    torch.testing.assert_close(vector.along(half), (along + along.clamp(max=middle)) / 2, atol=1e-2, rtol=1e-3)
    other = vector.random(1)
    holds = other.along(plain) > 0
    assert bool(holds.any())
    assert not bool(holds.all())
    with lm32.steer(vector, 3.0, when=(other, 0.0)):
        where = lm32.run(CLEAN, read=["resid_post.18"])["resid_post.18"]
    assert torch.equal(where[~holds], plain[~holds])
    torch.testing.assert_close(where[holds], (plain + 3 * vector.values)[holds])


def test_several_layers_are_steered_at_once(lm4, vector):
    sites = ["resid_post.9", "resid_post.10", "resid_post.11"]
    plain = lm4.run(CLEAN, read=sites)
    with lm4.steer(vector, 2.0, layer=[9, -20]):
        steered = lm4.run(CLEAN, read=sites)
    with lm4.steer(vector, 2.0, layer=9), lm4.steer(vector, 2.0, layer=10):
        nested = lm4.run(CLEAN, read=sites)
    assert not torch.equal(steered[sites[0]], plain[sites[0]])
    assert all(torch.equal(steered[site], nested[site]) for site in sites)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"manner": "set"}, "manner='set' needs to=, a component"),
        ({"manner": "clamp"}, "manner='clamp' needs low= or high=, a component"),
        ({"manner": "clamp", "low": 2.0, "high": 1.0}, "low must be at most high; got 2.0 and 1.0"),
        ({"to": 1.0}, "manner='add' has no use for to="),
        ({"layer": []}, "names no layer"),
        ({"layer": [3, 30]}, "layers 0 to 29"),
        ({"manner": "turn"}, "manner must be one of 'add', 'project_out', 'set', 'clamp'; got 'turn'"),
    ],
)
def test_a_manner_without_what_it_needs_is_refused_in_words(lm4, vector, settings, says):
    with pytest.raises(ValueError, match=says), lm4.steer(vector, **settings):
        pass


def test_after_an_error_in_the_block_the_model_is_as_before(lm4, vector):
    plain = lm4.run(CLEAN).logits
    with pytest.raises(KeyError), lm4.steer(vector, 3.0):
        raise KeyError
    assert torch.equal(lm4.run(CLEAN).logits, plain)


def test_what_other_threads_ask_of_the_model_is_left_alone(lm4, vector):
    plain = lm4.run(CLEAN).logits
    found = []
    with lm4.steer(vector, 3.0):
        thread = threading.Thread(target=lambda: found.append(lm4.run(CLEAN).logits))
        thread.start()
        thread.join()
        assert not torch.equal(lm4.run(CLEAN).logits, plain)
    assert torch.equal(found[0], plain)


def test_patching_under_steering_is_patching_of_the_steered_model(lm32):
    """The fast grid's cells are those of whole runs, steered as well."""
    vector = torch.randn(lm32.d_model, generator=torch.Generator().manual_seed(2)) * 5
    with lm32.steer(vector, 1.0, layer=10):
        grid = lk.patch(lm32, CLEAN, CORRUPT, " Mary", " John", layers=[5, 10, 22], positions=[9, 13], progress=False)
        mary, john = (lm32.tokenizer(name).input_ids[0] for name in (" Mary", " John"))
        for row, layer in enumerate((5, 10, 22)):
            value = lm32.run(CLEAN, read=[f"resid_pre.{layer}"])[f"resid_pre.{layer}@9"]
            logits = lm32.run(CORRUPT, write={f"resid_pre.{layer}@9": value}).logits[0, -1]
            assert grid.values[row, 0] == pytest.approx(float(logits[mary] - logits[john]), abs=1e-3)


def test_a_vector_that_does_not_fit_is_refused_before_anything_runs(lm4, vector):
    for bad, settings, says in (
        (torch.zeros(7), {"layer": 3}, r"has shape \(576,\), its residual stream's; this one has \(7,\)"),
        (torch.zeros(576), {}, "give layer="),
        (vector, {"layer": 40}, "layers 0 to 29"),
        (torch.full((576,), float("nan")), {"layer": 3}, "finite"),
    ):
        with pytest.raises(ValueError, match=says), lm4.steer(bad, 1.0, **settings):
            raise AssertionError("the block must not run")


def test_a_direction_that_is_projected_out_is_nowhere_in_the_residual_stream(lm32, vector):
    sites = ["resid_pre", "resid_mid", "resid_post"]
    plain = lm32.run(CLEAN, read=sites)
    unit = vector.values / vector.norm
    with lm32.steer(vector, manner="project_out"):
        without = lm32.run(CLEAN, read=sites)
        half = lm32.generate(PROMPT, max_new_tokens=2)
    for site in sites:
        norm = without[site].norm(dim=-1)
        assert float(((without[site] @ unit).abs() / norm).max()) < 1e-5
        assert float(((plain[site] @ unit).abs() / norm).max()) > 1e-2
    assert len(half.tokens) == 2
    assert torch.equal(lm32.run(CLEAN).logits, plain.logits)


def test_projecting_out_is_what_weights_do_that_cannot_write_the_direction(lm32, vector):
    """Arditi et al. 2024, section 4 and appendix E."""
    unit = vector.values / vector.norm
    with lm32.steer(vector, manner="project_out"):
        expected = lm32.run(CLEAN).logits
    copied = copy.deepcopy(lm32)
    with torch.no_grad():
        head = copied.hf.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.clone())  # no longer the embedding, which is to change
        embed = copied.hf.get_input_embeddings()
        embed.weight.sub_((embed.weight @ unit)[:, None] * unit)
        for layer in copied.hf.model.layers:
            for written in (layer.self_attn.o_proj, layer.mlp.down_proj):
                written.weight.sub_(unit[:, None] * (unit @ written.weight))
    torch.testing.assert_close(copied.run(CLEAN).logits, expected, atol=2e-3, rtol=1e-3)


def test_a_share_of_a_direction_can_be_projected_out(lm32, vector):
    unit = vector.values / vector.norm
    embedded = lm32.run(CLEAN, read=["resid_pre.0"])["resid_pre.0"] @ unit
    with lm32.steer(vector, 0.25, manner="project_out"):
        left = lm32.run(CLEAN, read=["resid_pre.0"])["resid_pre.0"] @ unit
    torch.testing.assert_close(left, 0.75 * embedded, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "settings", "says"),
    [
        (torch.ones(576), {"manner": "remove"}, "manner must be one of 'add', 'project_out', .*; got 'remove'"),
        (torch.ones(576), {"manner": "project_out", "layer": 3}, "projected out of every layer; leave out layer="),
        (torch.zeros(576), {"manner": "project_out"}, "no direction to project out"),
    ],
)
def test_what_cannot_be_projected_out_is_refused(lm4, values, settings, says):
    with pytest.raises(ValueError, match=says), lm4.steer(values, **settings):
        raise AssertionError("the block must not run")


# -- SteerLab ----------------------------------------------------------------------------------------------------------


def test_before_and_after_are_the_texts_without_and_with_the_vector(lm4, lab):
    vector = lk.steering_vector(lm4, list(POSITIVE), list(NEGATIVE), lab.layer)
    assert lab.before.text == lm4.generate(PROMPT, max_new_tokens=8).text
    lab.strength = 2.0
    with lm4.steer(vector, 2.0):
        assert lab.after.text == lm4.generate(PROMPT, max_new_tokens=8).text
    assert [one.token.display for one in lab.after.tokens] == lab.strips["after"].tokens
    parted = lab.strips["after"].marks["differs"][0]
    assert [t.id for t in lab.before.tokens[:parted]] == [t.id for t in lab.after.tokens[:parted]]
    lab.strength = 0.0
    assert lab.after.text == lab.before.text
    assert lab.strips["after"].marks["differs"] == []


def test_the_control_is_a_random_direction_of_the_same_length(lab):
    lab.strength = 1.0
    steered = lab.vector
    lab.control = True
    assert lab.vector.norm == pytest.approx(steered.norm, rel=1e-5)
    assert not torch.equal(lab.vector.values, steered.values)
    assert "random" in lab.strips["after"].title
    lab.control = False


def test_a_new_strength_cancels_the_old_one(lm4):
    lab = lk.SteerLab(lm4, PROMPT, max_new_tokens=60)
    lab.start()
    jobs = []
    for strength in (0.2, 0.4, 0.6, 1.4):
        lab.strength = strength
        jobs.append(lab.queue.last)
    lab.wait(300)
    assert all(job.stop.is_set() for job in jobs[:-1])
    assert all(job.finished.is_set() for job in jobs)
    assert lab.strips["after"].title == "After: +1.4 × the direction"
    assert len(lab.after.tokens) == len(lab.strips["after"].tokens)
    assert lab.after.finish in ("length", "eos")


def test_its_code_prints_both_texts(lab, capsys):
    lab.strength = 2.0
    exec(lab.code(), {})
    printed = capsys.readouterr().out
    assert lab.before.text in printed
    assert lab.after.text in printed
    assert all(f">{one.token.display}<" in opened(lab.snapshot()) for one in lab.after.tokens)


def test_bad_pairs_are_answered_and_the_texts_stay(lab):
    written = lab.after
    lab.positive = ""
    with pytest.raises(ValueError, match="no positive prompts"):
        lab.run()
    assert lab.status.text.startswith("There are no positive prompts")
    assert lab.after is written
    lab.positive = "\n".join(POSITIVE)
    lab.run()


def test_a_strength_beyond_the_slider_widens_it(lab):
    lab.strength = 9.0
    assert lab.strength == 9.0
    assert lab._strength.max == 9.0
    lab.strength = 1.0
