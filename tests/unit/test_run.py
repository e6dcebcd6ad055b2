"""The promises of reading and writing activations, on the real default model in fp32 and NF4."""

import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from pair import CLEAN, CORRUPT
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import labkit as lk
from labkit.activations.site_kinds import ATTENTION_KINDS, KINDS
from labkit.activations.sites import Site
from labkit.models.bf16_matmul import has_bfloat16

ABSENT = ("mlp_pre", "router", "experts", "latent", "state")  # no Llama has those
READABLE = [kind for kind in KINDS if kind not in ABSENT]


def near(lm, exact: float) -> float:
    """How close logits have to be: to fp32 rounding, or in NF4 to that of bf16 through 30 layers (0.125 a step)."""
    return exact if lm.bits == 32 else 1.0


def test_a_run_gives_the_plain_forward_logits(lm):
    with torch.no_grad():
        plain = lm.hf(lm.encode(CLEAN)).logits
    ours = lm.run(CLEAN).logits
    if lm.dtype == torch.bfloat16 and not has_bfloat16():  # PyTorch adds up in another order there than labkit
        assert (ours - plain).abs().max() <= near(lm, 0)
    else:
        assert torch.equal(ours, plain)


def test_reading_everything_changes_no_logit(lm):
    plain = lm.run(CLEAN).logits
    assert (lm.run(CLEAN, read=READABLE).logits - plain).abs().max() <= near(lm, 1e-4)
    without_attention = [kind for kind in READABLE if kind not in ATTENTION_KINDS]
    assert torch.equal(lm.run(CLEAN, read=without_attention).logits, plain)


@pytest.mark.parametrize("kind", READABLE)
def test_writing_back_what_was_read_changes_nothing(lm, kind):
    read = lm.run(CLEAN, read=[kind])
    assert (lm.run(CLEAN, write={kind: read[kind]}).logits - read.logits).abs().max() <= near(lm, 1e-4)


@pytest.mark.parametrize("kind", READABLE)
def test_a_write_is_seen_by_everything_after_it(lm32, kind):
    layer = ".3" if KINDS[kind].by_layer else ""
    run = lm32.run(CLEAN, read=[kind, "resid_post"], write={kind + layer: lambda x: x * 0.5})
    assert not torch.equal(run.logits, lm32.run(CLEAN).logits)
    plain = lm32.run(CLEAN, read=[kind, "resid_post"])
    place = kind + layer
    assert torch.allclose(run[place], plain[place] * 0.5, atol=1e-6)
    if kind == "final_norm":
        assert torch.equal(run["resid_post"], plain["resid_post"])
        return
    if kind != "embed":
        # reading q, k or z alone leaves SDPA in place; only rounding may differ below the write
        assert torch.allclose(run["resid_post.2"], plain["resid_post.2"], atol=1e-3)
    assert not torch.allclose(run["resid_post.29"], plain["resid_post.29"], atol=1e-2)


def test_clean_resid_pre_0_everywhere_gives_the_clean_logits(lm):
    clean = lm.run(CLEAN, read=["resid_pre.0"])
    patched = lm.run(CORRUPT, write={"resid_pre.0": clean["resid_pre.0"]})
    assert torch.equal(patched.logits, clean.logits)


def test_shapes_are_those_documented(lm):
    run = lm.run(CLEAN, read=READABLE)
    t, heads, kv, d, d_head = 14, lm.n_heads, lm.n_kv_heads, lm.d_model, lm.d_head
    shapes = {
        "embed": (1, t, d),
        "resid_pre": (lm.n_layers, 1, t, d),
        "resid_pre.5": (1, t, d),
        "resid_pre.5@9": (1, d),
        "attn_in.0": (1, t, d),
        "mlp_act.0": (1, t, lm.config.intermediate_size),
        "mlp_gate.0@3": (1, lm.config.intermediate_size),
        "q_pre.5.3": (1, t, d_head),
        "k_pre.5": (1, t, kv, d_head),
        "scores.5.3@-1": (1, t),
        "final_norm": (1, t, d),
        "final_norm@-1": (1, d),
        "q.5": (1, t, heads, d_head),
        "k.5": (1, t, kv, d_head),
        "v.5": (1, t, kv, d_head),
        "pattern.5": (1, heads, t, t),
        "pattern.5.3": (1, t, t),
        "pattern.5.3@-1": (1, t),
        "z.5": (1, t, heads, d_head),
        "z.5.3": (1, t, d_head),
        "z.5.3@2": (1, d_head),
        "head_out.5": (1, t, heads, d),
        "head_out.-1.-1": (1, t, d),
    }
    assert {site: tuple(run[site].shape) for site in shapes} == shapes


def test_pattern_rows_sum_to_one_and_are_causal(lm):
    pattern = lm.run(CLEAN, read=["pattern"])["pattern"]
    assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
    assert (pattern.triu(1) == 0).all()


def test_pattern_times_v_is_z(lm):
    run = lm.run(CLEAN, read=["pattern.7", "v.7", "z.7"])
    v = run["v.7"].repeat_interleave(lm.n_heads // lm.n_kv_heads, 2).float()
    z = torch.einsum("bhqk,bkhd->bqhd", run["pattern.7"], v)
    assert torch.allclose(z, run["z.7"].float(), atol=near(lm, 1e-5) * 1e-2 if lm.bits == 4 else 1e-5)


def test_patterns_are_those_of_transformers_eager_attention(lm32):
    ours = lm32.run(CLEAN, read=["pattern"])["pattern"]
    lm32.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            theirs = lm32.hf(lm32.encode(CLEAN), output_attentions=True).attentions
    finally:
        lm32.hf.set_attn_implementation("sdpa")
    assert (ours - torch.stack(theirs)).abs().max() < 1e-5


def test_the_parts_of_a_layer_are_what_transformers_code_makes_of_one_another(lm32):
    """Those of layer 7, by Llama's own norms, rotary embedding, activation function and unembedding."""
    kinds = ("resid_pre", "attn_in", "q_pre", "k_pre", "q", "k", "scores", "pattern", "resid_mid", "mlp_in", "mlp_gate")
    run = lm32.run(
        CLEAN, read=[*(f"{kind}.7" for kind in (*kinds, "mlp_up", "mlp_act")), "final_norm", "resid_post.29"]
    )
    x = {site.split(".")[0]: run[site] for site in run.asked if site != "resid_post.29"}
    layer, near = lm32.hf.model.layers[7], {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        cos, sin = lm32.hf.model.rotary_emb(x["resid_pre"], torch.arange(14)[None])
        q, k = apply_rotary_pos_emb(x["q_pre"].transpose(1, 2), x["k_pre"].transpose(1, 2), cos, sin)
        torch.testing.assert_close(layer.input_layernorm(x["resid_pre"]), x["attn_in"], **near)
        torch.testing.assert_close(layer.post_attention_layernorm(x["resid_mid"]), x["mlp_in"], **near)
        torch.testing.assert_close(layer.self_attn.q_proj(x["attn_in"]), x["q_pre"].flatten(-2), **near)
        torch.testing.assert_close(lm32.hf.model.norm(run["resid_post.29"]), x["final_norm"], **near)
        torch.testing.assert_close(lm32.hf.lm_head(x["final_norm"]), run.logits, **near)
    torch.testing.assert_close(q.transpose(1, 2), x["q"], **near)
    torch.testing.assert_close(k.transpose(1, 2), x["k"], **near)
    dots = torch.einsum("bqhd,bkhd->bhqk", x["q"], x["k"].repeat_interleave(3, 2)) / 8
    torch.testing.assert_close(x["scores"].tril(), dots.tril(), **near)
    assert (x["scores"][..., torch.ones(14, 14).triu(1).bool()] == -torch.inf).all()
    torch.testing.assert_close(x["scores"].softmax(-1), x["pattern"], **near)
    torch.testing.assert_close(torch.nn.functional.silu(x["mlp_gate"]) * x["mlp_up"], x["mlp_act"], **near)


def test_a_score_of_minus_infinity_cuts_a_token_off(lm32):
    def cut(scores):
        scores = scores.clone()
        scores[..., -1, 1] = -torch.inf
        return scores

    run = lm32.run(CLEAN, read=["pattern.5", "z.5"], write={"scores.5.3": cut})
    plain = lm32.run(CLEAN, read=["pattern.5", "z.5"])
    assert run["pattern.5"][0, 3, -1, 1] == 0
    assert float(plain["pattern.5"][0, 3, -1, 1]) > 0
    assert torch.allclose(run["pattern.5"].sum(-1), torch.ones(()), atol=1e-5)
    changed = (run["z.5"] - plain["z.5"]).abs().amax(-1)[0] > 1e-4
    assert changed.nonzero().tolist() == [[13, 3]]


def test_what_a_sites_part_is_written_to_leaves_the_other_part_alone():
    """Queries, keys and values, or gate and up projection, from one matmul."""
    for name, pairs in (("phi3", (("q_pre", "k_pre"), ("mlp_gate", "mlp_up"))), ("gpt_neox", (("k_pre", "q_pre"),))):
        lm = loud(name)
        for kind, other in pairs:
            sites = [f"{kind}.1", f"{other}.1", "v.1"]
            plain = lm.run(IDS, read=sites)
            run = lm.run(IDS, read=sites, write={f"{kind}.1": lambda x: 2 * x})
            torch.testing.assert_close(run[sites[0]], 2 * plain[sites[0]])
            assert torch.equal(run[sites[1]], plain[sites[1]])
            assert torch.equal(run["v.1"], plain["v.1"])
            assert not torch.equal(run.logits, plain.logits)


def test_experts_are_those_that_have_weight_and_cannot_be_written():
    for name in ("mixtral", "llama4_text"):
        lm = loud(name)
        run = lm.run(IDS, read=["router.1", "experts.1"])
        chosen = run["experts.1"]
        assert run["router.1"].gather(-1, chosen).ne(0).all()
        assert torch.equal(run["router.1"].ne(0).sum(-1), torch.full(IDS.shape, chosen.shape[-1]))
        lm.hf.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
        for work in (lm.run, lm.generate):
            with pytest.raises(ValueError, match=r"experts.1 can be read and not written; write router"):
                work(IDS, write={"experts.1": chosen})
        with pytest.raises(ValueError, match="experts cannot be patched as a grid"):
            lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, site="experts")


def test_states_are_those_after_the_last_position_and_can_only_be_read():
    lm = loud("qwen3_next")
    run = lm.run(IDS, read=["state", "z"])
    assert run["state"].shape == (1, *run["state.0"].shape)  # the layers that have one
    assert torch.equal(run.logits, lm.run(IDS, read=["z"]).logits)
    earlier = lm.run(IDS[:, :-1], read=["state.0"])["state.0"]
    assert float((run["state.0"] - earlier).abs().max()) > 0.01 * float(earlier.abs().max())
    halved = lm.run(IDS, read=["state.0"], write={"resid_pre.0": lambda x: x.flip(-1)})["state.0"]
    assert not torch.allclose(halved, run["state.0"])
    lm.hf.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    for work in (lm.run, lm.generate):
        with pytest.raises(ValueError, match=r"state.0.* (not written; write resid_pre|no row for each position)"):
            work(IDS, write={"state.0": earlier})
    for site, says in (("state.0@-1", "state has no positions; run the prompt up to"), ("state.1", "has no state in")):
        with pytest.raises(ValueError, match=says):
            lm.run(IDS, read=[site])
    with pytest.raises(ValueError, match=r"state.0 has no gradient: it can only be read; take that of resid_pre"):
        lm.run(IDS, grad=["state.0"], answer=ANSWER)
    with pytest.raises(ValueError, match="state has no row for each position"):
        lk.collect(lm, ["a"], read=["state"])
    with pytest.raises(ValueError, match="state cannot be patched as a grid"):
        lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, site="state")
    with pytest.raises(ValueError, match="a patchscope moves vectors; state has none"):
        lk.patchscope(lm, IDS, site="state.0", into=IDS)


@pytest.mark.parametrize(
    ("name", "site", "says"),
    [
        ("rwkv", "state", "keeps its state elsewhere"),
        ("gpt2", "q_pre", "no rotary embedding"),
        ("gpt2", "mlp_gate", "no gate"),
        ("llama", "mlp_pre", "read mlp_gate and mlp_up"),
        ("deepseek_v3", "k_pre", "no one module of its attention outputs all of them"),
        ("openai-gpt", "final_norm", "no norm comes between its layers and the unembedding"),
        ("mamba", "attn_in", "it has no attention"),
        ("bloom", "scores", "does not go through transformers' interface"),
    ],
)
def test_a_site_that_an_architecture_lacks_is_refused_with_the_reason(name, site, says):
    lm = loud(name)
    assert says in lm.sites().loc[site, "why not"]
    with pytest.raises(ValueError, match=f"has no {site}: .*{says}"):
        lm.run(IDS, read=[site])


def test_queries_limited_after_their_projection_are_not_given_as_those_before_rotary():
    hf = loud("olmo").hf
    hf.config.clip_qkv = 3.0
    lm = lk.wrap(hf, loud("olmo").tokenizer)
    assert "no one module" in lm.sites().loc["q_pre", "why not"]


def test_heads_sum_to_attn_out(lm):
    run = lm.run(CLEAN, read=["head_out", "attn_out"])
    total, whole = run["head_out"].float().sum(-2), run["attn_out"].float()
    assert ((total - whole).norm() / whole.norm()) < (1e-5 if lm.bits == 32 else 1e-2)


def test_the_residual_stream_adds_up(lm):
    run = lm.run(CLEAN, read=["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
    assert torch.equal(run["resid_pre"] + run["attn_out"], run["resid_mid"])
    assert torch.equal(run["resid_mid"] + run["mlp_out"], run["resid_post"])
    assert torch.equal(run["resid_post"][:-1], run["resid_pre"][1:])


def test_a_left_padded_batch_gives_the_numbers_of_single_rows(lm):
    short = "Hello there"
    batch = lm.run([CLEAN, short], read=["resid_post.29", "pattern.4"])
    for row, text in enumerate((CLEAN, short)):
        single = lm.run(text, read=["resid_post.29", "pattern.4"])
        n = single.ids.shape[1]
        assert (batch.logits[row, -n:] - single.logits[0]).abs().max() <= near(lm, 1e-3)
        atol = 1e-5 if lm.bits == 32 else 2e-2  # in bfloat16 some processors round two rows unlike one
        assert torch.allclose(batch["pattern.4"][row, :, -n:, -n:], single["pattern.4"][0], atol=atol)
    assert batch.mask.sum().item() == 14 + len(lm.tokens(short))


def test_one_position_of_one_head_can_be_written(lm32):
    plain = lm32.run(CLEAN, read=["z.5"])
    run = lm32.run(CLEAN, read=["z.5"], write={"z.5.3@9": torch.zeros(64)})
    changed = (run["z.5"] != plain["z.5"]).any(-1)[0]  # (position, head)
    assert changed.nonzero().tolist() == [[9, 3]]


def test_two_heads_of_a_layer_can_be_written_together(lm32):
    both = lm32.run(CLEAN, write={"z.5.3": torch.zeros(64), "z.5.4": torch.zeros(64)}, read=["z.5"])
    assert (both["z.5"][0, :, 3:5] == 0).all()
    assert (both["z.5"][0, :, :3] != 0).any()


def test_an_exception_in_a_write_leaves_no_hook_and_the_same_logits(lm):
    before = lm.run(CLEAN).logits

    def fail(x):
        raise RuntimeError("no")

    for site in (
        "resid_pre.5",
        "resid_mid.5",
        "attn_out.5",
        "mlp_act.5",
        "z.5.3",
        "pattern.5",
        "q_pre.5",
        "final_norm",
    ):
        with pytest.raises(RuntimeError, match="no"):
            lm.run(CLEAN, write={site: fail})
    assert torch.equal(lm.run(CLEAN).logits, before)


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("resid_prex.3", "did you mean 'resid_pre'"),
        ("resid_pre.30", r"layer 30 is out of range; .* has layers 0 to 29"),
        ("z.3.9", "head 9 is out of range; .* has heads 0 to 8"),
        ("v.3.3", "key-value head 3 is out of range; .* has key-value heads 0 to 2 at v, shared by its 9 query heads"),
        ("mlp_out.3.1", "mlp_out has no heads"),
        ("resid_pre.3@14", "position 14 is out of range; .* has positions 0 to 13"),
        ("router.3", "mixture of experts"),
        ("!", "is not a site"),
    ],
)
def test_a_wrong_site_is_told_before_the_model_runs(lm4, site, says):
    with pytest.raises(ValueError, match=says):
        lm4.run(CLEAN, read=[site])


def test_a_value_of_the_wrong_shape_is_told_with_both_shapes(lm4):
    with pytest.raises(ValueError, match=r"resid_pre.5 has shape \(1, 14, 576\); the value written has \(3, 5\)"):
        lm4.run(CLEAN, write={"resid_pre.5": torch.zeros(3, 5)})


def test_a_site_that_was_not_read_is_told(lm4):
    run = lm4.run(CLEAN, read=["resid_pre.3"])
    with pytest.raises(KeyError, match=r"resid_pre.4 was not read in this run"):
        run["resid_pre.4"]


def test_sites_are_written_as_they_are_read():
    for text in ("embed", "resid_pre.5", "z.5.3", "pattern.0.1@-1", "attn_out@3"):
        assert str(Site.parse(text)) == text


def test_sites_lists_what_the_model_has(lm4):
    sites = lm4.sites()
    assert set(sites.index) == set(KINDS)
    assert sites.loc["resid_mid", "available"]
    assert not sites.loc["router", "available"]
    assert sites.loc["router", "why not"]
