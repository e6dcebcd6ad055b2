"""One position of a run: each prompt's own in a batch, and no more memory than was asked for."""

import sys
from pathlib import Path

import pytest
import torch
from pair import CLEAN

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
from conformance import IDS, tokenizer
from shrink import tiny

import labkit as lk
from labkit.activations.sites import Site

LONG, SHORT = "one, two, three, four", "four, five"  # 21 and 10 tokens of one byte each
KINDS = ("embed", "resid_pre.1", "attn_out.0", "mlp_act.1", "q.1", "k.0.1", "z.1.2", "head_out.1")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def tiny_lm(request):
    return lk.wrap(tiny(request.param), tokenizer())


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("position", [0, 1, 9, -1, -3, -10])
def test_a_position_in_a_padded_batch_is_each_prompt_s_own(tiny_lm, position):
    sites = [f"{kind}@{position}" for kind in KINDS]
    batch = tiny_lm.run([SHORT, LONG, SHORT], read=sites)
    whole = tiny_lm.run([SHORT, LONG, SHORT], read=list(KINDS))
    for row, prompt in enumerate((SHORT, LONG, SHORT)):
        alone = tiny_lm.run(prompt, read=sites)
        for site in sites:
            assert close(batch[site][row], alone[site][0]), site
            assert torch.equal(whole[site][row], batch[site][row]), site
        assert close(batch.logits_at(position)[row], alone.logits_at(position)[0])


@pytest.mark.parametrize("position", [0, 2, -2])
def test_a_pattern_s_position_in_a_padded_batch_is_a_query_of_the_prompt(tiny_lm, position):
    batch = tiny_lm.run([SHORT, LONG], read=[f"pattern.1.2@{position}", f"pattern.0@{position}"])
    for row, prompt in enumerate((SHORT, LONG)):
        alone = tiny_lm.run(prompt, read=["pattern"])
        n = alone.ids.shape[1]  # keys before that are padding, which nothing looks at
        for site, its in (("pattern.1.2", alone["pattern.1.2"]), ("pattern.0", alone["pattern.0"])):
            found = batch[f"{site}@{position}"][row]
            assert close(found[..., -n:], its[0].select(-2, position)), site
            assert not found[..., :-n].any()


@pytest.mark.parametrize(
    "site", ["embed@0", "resid_mid.1@3", "z.0.1@2", "v.1@1", "pattern.1.3@4", "mlp_out.0@-2", "head_out.1.0@5"]
)
def test_a_write_at_a_position_of_a_padded_batch_is_each_prompt_s_own(tiny_lm, site):
    change = lambda x: x * -0.5  # noqa: E731
    batch = tiny_lm.run([LONG, SHORT], write={site: change})
    for row, prompt in enumerate((LONG, SHORT)):
        alone, plain = tiny_lm.run(prompt, write={site: change}), tiny_lm.run(prompt)
        n = alone.ids.shape[1]
        assert close(batch.logits[row, -n:], alone.logits[0]), site
        assert not close(alone.logits, plain.logits), site


def test_values_written_at_a_position_may_differ_from_row_to_row(tiny_lm):
    values = torch.randn(2, tiny_lm.d_model, generator=torch.Generator().manual_seed(0))
    batch = tiny_lm.run([LONG, SHORT], write={"resid_pre.1@0": values}, read=["resid_pre.1"])
    assert torch.equal(batch["resid_pre.1@0"], values)
    for row, prompt in enumerate((LONG, SHORT)):
        alone = tiny_lm.run(prompt, write={"resid_pre.1@0": values[row]})
        assert close(batch.logits_at(-1)[row], alone.logits_at(-1)[0])


@pytest.mark.parametrize("position", [10, 20, -11])
def test_a_position_that_the_shortest_prompt_lacks_is_refused_by_its_name(tiny_lm, position):
    site = f"resid_pre.1@{position}"
    says = rf"position {position} is out of range; prompt 1, .+, is the shortest of this padded batch"
    for call in ({"read": [site]}, {"write": {site: torch.zeros(1)}}, {"logits": [position]}):
        with pytest.raises(ValueError, match=says):
            tiny_lm.run([LONG, SHORT], **call)
    with pytest.raises(ValueError, match=says):
        tiny_lm.run([LONG, SHORT], read=["resid_pre"])[site]


def test_a_batch_without_padding_counts_from_the_start_as_one_prompt_does(tiny_lm):
    run = tiny_lm.run([SHORT, SHORT[::-1]], read=["resid_pre.1@9"])
    assert torch.equal(run["resid_pre.1@9"], run["resid_pre.1@-1"])


# -- what is kept ----------------------------------------------------------------------------------------------------


def held(run):
    return sum(value.untyped_storage().nbytes() for value in run.activations.values())


def test_a_run_holds_no_more_than_was_asked_for(tiny_lm):
    whole = tiny_lm.run(IDS, read=["resid_post", "z", "pattern", "mlp_act", "head_out"])
    for site in (
        "resid_post@-1",
        "resid_post.1@3",
        "z.1.2",
        "z.1.2@0",
        "pattern.0.3@-1",
        "pattern.1.1",
        "mlp_act@2",
        "head_out@5",
        "head_out.0.1",
    ):
        run = tiny_lm.run(IDS, read=[site])
        assert held(run) == run[site].numel() * 4, site
        assert torch.allclose(run[site], whole[site], atol=1e-6), site


def test_several_parts_of_one_place_are_kept_each_and_once(tiny_lm):
    whole = tiny_lm.run(IDS, read=["z", "pattern"])
    parts = ["z.1@0", "z.1@-1", "z.1.2", "z.1.2@4", "z.0", "z.0.3@1", "pattern.1.0@2", "pattern.1@2"]
    run = tiny_lm.run(IDS, read=parts)
    for site in parts:
        assert torch.allclose(run[site], whole[site], atol=1e-6), site
    assert torch.allclose(run["z.1.3@11"], whole["z.1.3@11"], atol=1e-6)  # out of z.1@-1
    heads, width = tiny_lm.n_heads, tiny_lm.d_head
    length = IDS.shape[1]
    assert held(run) == 4 * (2 * heads * width + length * width + length * heads * width + heads * length)
    assert Site("z", 1, 2, 4) not in run.activations


def test_what_was_read_in_part_is_told(tiny_lm):
    run = tiny_lm.run(IDS, read=["resid_pre@-1", "z.1.2"])
    for site in ("resid_pre", "resid_pre.0", "resid_pre.1@0", "z.1", "z.1.3", "z.0.2", "q"):
        with pytest.raises(KeyError, match=r"was not read in this run \(it read resid_pre@-1, z.1.2\)"):
            run[site]
    assert run["resid_pre"[:9] + "@11"].shape == (2, 1, tiny_lm.d_model)


def test_what_is_read_after_a_write_of_the_same_place_is_the_written_value(tiny_lm):
    run = tiny_lm.run(IDS, read=["z.1.2@3", "z.1.0@3"], write={"z.1.2@3": torch.ones(tiny_lm.d_head)})
    assert (run["z.1.2@3"] == 1).all()
    assert (run["z.1.0@3"] != 1).all()


@pytest.mark.parametrize("logits", ["last", "none", [0], [-1, 0], [2, 3], [4, 4], [-2]])
@pytest.mark.parametrize("prompts", [LONG, [LONG, SHORT, LONG]], ids=["one", "batch"])
def test_logits_are_those_of_the_positions_asked_for(tiny_lm, logits, prompts):
    full, run = tiny_lm.run(prompts), tiny_lm.run(prompts, logits=logits)
    positions = {"last": (-1,), "none": ()}.get(logits) if isinstance(logits, str) else tuple(logits)
    assert run.positions == positions
    assert run.logits.shape == (len(full.ids), len(positions), tiny_lm.n_vocab)
    for n, position in enumerate(positions):
        assert close(run.logits[:, n], full.logits_at(position))
        assert torch.equal(run.logits_at(position), run.logits[:, n])
    with pytest.raises(KeyError, match="no logits at position 7"):
        run.logits_at(7)
    with pytest.raises(ValueError, match="position 99 is out of range"):
        run.logits_at(99)


def test_wrong_positions_of_logits_are_refused(tiny_lm):
    with pytest.raises(ValueError, match="position 12 is out of range"):
        tiny_lm.run(IDS, logits=[12])
    with pytest.raises(ValueError, match="'all', 'last', 'none' or a list of positions; got 'first'"):
        tiny_lm.run(IDS, logits="first")


def test_what_a_run_has_can_be_put_elsewhere(tiny_lm):
    run = tiny_lm.run([LONG, SHORT], read=["resid_pre@0", "pattern.1"], logits="last", to="meta")
    values = [run.logits, run.ids, run.mask, run["resid_pre@0"], run["pattern.1"]]
    assert {value.device.type for value in values} == {"meta"}
    here = tiny_lm.run(LONG, read=["resid_pre@0"], to="cpu")
    assert torch.equal(here["resid_pre@0"], tiny_lm.run(LONG, read=["resid_pre@0"])["resid_pre@0"])


def test_the_real_model_in_4_bits_keeps_its_promises_at_one_position(lm4):
    batch = lm4.run([CLEAN, "Hello there"], read=["resid_post.29@0", "resid_post@-1"], logits="last")
    whole = lm4.run([CLEAN, "Hello there"], read=["resid_post"])
    assert torch.equal(batch["resid_post@-1"], whole["resid_post"][:, :, -1])
    alone = lm4.run("Hello there", read=["resid_post.29@0"])["resid_post.29@0"]
    assert float((batch["resid_post.29@0"][1] - alone[0]).norm()) <= 0.05 * float(alone.norm())
    assert float((batch.logits_at(-1) - whole.logits_at(-1)).abs().max()) <= 0.25
