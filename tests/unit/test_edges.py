"""Edge scores against gradients taken by hand, and circuits against a forward pass written out."""

from collections import Counter

import numpy as np
import pytest
import torch
import traitlets
from drawn import opened
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from pair import CLEAN, CORRUPT
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import labkit as lk
from labkit.circuits.circuit import patched
from labkit.circuits.graph import Wiring
from labkit.circuits.prepare import prepared
from labkit.patching.spec import PairSpec

PAIR = (IDS, CORRUPT_IDS, ANSWER, FOIL)
REAL = (CLEAN, CORRUPT, " Mary", " John")


@pytest.fixture(scope="module")
def llama() -> lk.LanguageModel:
    return loud("llama")


@pytest.fixture(scope="module")
def scored(llama) -> lk.EdgeScores:
    return lk.edge_attribution(llama, *PAIR, steps=4, progress=False)


@pytest.fixture(scope="module")
def real(lm4) -> lk.EdgeScores:
    return lk.edge_attribution(lm4, *REAL, progress=False)


def by_hand(hf, x, reads):
    """A Llama model written out, each receiver by itself: it reads `reads(name, stream, said)`; the metric, and `said`.

    `said` maps each sender so far to what it added, (seq, d_model).
    """
    base, config = hf.model, hf.config
    heads, kv, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    said = {"embed": x}
    stream = x
    turn = base.rotary_emb(x[None], torch.arange(len(x))[None])
    hidden = torch.full((len(x), len(x)), -torch.inf).triu(1)
    for n, block in enumerate(base.layers):
        attention, before = block.self_attn, stream

        def projected(kind, head, block=block, before=before, said=said, n=n):
            read = block.input_layernorm(reads(f"{kind}.{n}.{head}", before, said))
            out = getattr(block.self_attn, f"{kind}_proj")(read)
            return out[:, head * width : (head + 1) * width][None, None]  # (1, 1, seq, d_head)

        keys, values = ([projected(kind, h) for h in range(kv)] for kind in "kv")
        spoken = {}
        for h in range(heads):
            q, k = apply_rotary_pos_emb(projected("q", h), keys[h * kv // heads], *turn)
            pattern = (q @ k.transpose(2, 3) * width**-0.5 + hidden).softmax(-1)
            z = (pattern @ values[h * kv // heads])[0, 0]
            spoken[f"z.{n}.{h}"] = z @ attention.o_proj.weight[:, h * width : (h + 1) * width].T
        said |= spoken
        stream = stream + sum(spoken.values())
        said[f"mlp_out.{n}"] = block.mlp(block.post_attention_layernorm(reads(f"mlp_in.{n}", stream, said)))
        stream = stream + said[f"mlp_out.{n}"]
    logits = hf.lm_head(base.norm(reads("logits", stream, said)))[-1]
    return logits[ANSWER] - logits[FOIL], said


def plainly(name, stream, said):
    return stream


def test_scores_equal_integrated_gradients_taken_edge_by_edge(llama, scored):
    hf, wiring, steps = llama.hf, scored.wiring, 4
    clean, corrupt = (hf.model.embed_tokens(ids)[0].detach() for ids in (IDS, CORRUPT_IDS))
    with torch.no_grad():
        (_, says), (_, said) = by_hand(hf, clean, plainly), by_hand(hf, corrupt, plainly)
    change = torch.stack([says[name] - said[name] for name in wiring.senders])
    naive = torch.zeros(wiring.exists.shape)
    for step in range(1, steps + 1):
        # one number an edge: how much of the sender's change its receiver hears besides; the gradient is at none
        share = torch.zeros(wiring.exists.shape, requires_grad=True)

        def hears(name, stream, _, share=share):
            return stream + torch.einsum("s,spd->pd", share[:, wiring.receivers.index(name)], change)

        metric, _ = by_hand(hf, corrupt + step / steps * (clean - corrupt), hears)
        naive += torch.autograd.grad(metric, share)[0] / steps
    wanted = naive.numpy()[wiring.exists]
    assert np.abs(wanted).max() > 1e-3
    assert np.abs(scored.values[wiring.exists] - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())
    assert np.isnan(scored.values[~wiring.exists]).all()


def test_a_circuit_alone_equals_a_forward_pass_written_out(llama, scored):
    hf, wiring = llama.hf, scored.wiring
    clean, corrupt = (hf.model.embed_tokens(ids)[0].detach() for ids in (IDS, CORRUPT_IDS))
    streams = {}
    with torch.no_grad():
        _, said = by_hand(hf, corrupt, lambda name, stream, _: streams.setdefault(name, stream))
    for n_edges in (6, 20, 60):
        circuit = scored.circuit(n_edges)

        def hears(name, _, now, kept=circuit.kept):
            on = [wiring.senders[n] for n in np.flatnonzero(kept[:, wiring.receivers.index(name)])]
            return streams[name] + sum((now[sender] - said[sender] for sender in on), torch.zeros_like(corrupt))

        with torch.no_grad():
            wanted, _ = by_hand(hf, clean, hears)
        assert 0 < circuit.n_edges <= n_edges
        assert circuit.faithfulness(llama, [PAIR]).circuit[0] == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "qwen3", "gpt_neox", "cohere", "granite", "gpt_oss"])
def test_all_edges_are_the_clean_run_and_none_the_corrupt_one(model_type):
    lm = loud(model_type)
    work = prepared(lm, PairSpec(*PAIR))
    edges = lk.edge_attribution(lm, *PAIR, steps=1, progress=False)
    every = edges.wiring.exists
    scale = max(1.0, abs(edges.clean), abs(edges.corrupt))
    assert patched(work, every, edges.wiring) == pytest.approx(edges.clean, abs=1e-4 * scale)
    assert patched(work, np.zeros_like(every), edges.wiring) == pytest.approx(edges.corrupt, abs=1e-4 * scale)
    # with one step, a score is the derivative of the metric by how much of the edge is cut
    for n in edges.scores.index[:5]:
        edge = edges.scores.loc[n]
        at = edges.wiring.senders.index(edge.sender), edges.wiring.receivers.index(edge.receiver)
        ends = []
        for much in (1.02, 0.98):
            kept = every.astype(np.float64)
            kept[at] = much
            ends.append(patched(work, kept, edges.wiring))
        assert (ends[0] - ends[1]) / 0.04 == pytest.approx(edge.score, rel=0.02, abs=1e-4 * scale), (
            edge.sender,
            edge.receiver,
        )


def test_a_model_that_cannot_be_taken_apart_says_why():
    for model_type, why in (("bloom", "has no q"), ("gemma3n_text", "has no edges"), ("mamba", "has no q")):
        lm = loud(model_type)
        with pytest.raises(ValueError, match=why):
            lk.edge_attribution(lm, *PAIR, progress=False)


def test_edges_lead_only_to_what_comes_after():
    wiring = Wiring.of([4, 4], [2, 2], [False, True])
    edge = lambda a, b: bool(wiring.exists[wiring.senders.index(a), wiring.receivers.index(b)])  # noqa: E731
    assert edge("embed", "q.0.0")
    assert edge("z.0.1", "mlp_in.0")
    assert not edge("z.1.1", "mlp_in.1")  # side by side
    assert edge("mlp_out.0", "v.1.1")
    assert not edge("mlp_out.0", "q.0.1")
    assert edge("mlp_out.1", "logits")
    assert wiring.leads_to("k.1.1") == ["z.1.2", "z.1.3"]
    assert [wiring.senders[wiring.senders_of_layer(1)][n] for n in (0, -1)] == ["z.1.0", "mlp_out.1"]
    assert [wiring.receivers[wiring.receivers_of_layer(1)][n] for n in (0, -1)] == ["q.1.0", "mlp_in.1"]


def test_pruning_leaves_paths_from_the_embedding_to_the_logits():
    wiring = Wiring.of([2, 2], [1, 1], [False, False])
    kept = np.zeros_like(wiring.exists)
    path = [("embed", "k.0.0"), ("z.0.1", "mlp_in.1"), ("mlp_out.1", "logits")]
    dead = [("embed", "mlp_in.0"), ("z.1.0", "logits"), ("mlp_out.0", "q.1.1")]
    for a, b in path + dead:
        kept[wiring.senders.index(a), wiring.receivers.index(b)] = True
    left = wiring.pruned(kept)
    assert [(wiring.senders[a], wiring.receivers[b]) for a, b in np.argwhere(left)] == path


def kinds(circuit):
    """How many edges there are of each kind of sender and layer to each kind of receiver and layer."""
    senders, receivers = ([".".join(name.split(".")[:2]) for name in names] for names in both(circuit.wiring))
    return Counter((senders[a], receivers[b]) for a, b in np.argwhere(circuit.kept))


def both(wiring):
    return wiring.senders, wiring.receivers


@pytest.mark.parametrize(
    "wiring",
    [
        Wiring.of([4, 4, 4], [2, 2, 2], [False] * 3),
        Wiring.of([3, 3], [3, 3], [True, True]),
        Wiring.of([4, 0, 6], [1, 0, 3], [False, False, True]),
    ],
    ids=["grouped", "parallel", "a layer without heads"],
)
def test_a_random_circuit_has_as_many_edges_of_each_kind_between_the_same_layers_and_is_whole(wiring):
    values = np.where(wiring.exists, np.random.default_rng(3).normal(size=wiring.exists.shape), np.nan)
    circuit = lk.EdgeScores(values.astype(np.float32), wiring, 1.0, 0.0, {"metric": "x", "code": ""}).circuit(25)
    drawn = [circuit.random(seed) for seed in range(6)]
    for control in drawn:
        assert kinds(control) == kinds(circuit)
        assert np.array_equal(wiring.pruned(control.kept), control.kept)  # all on paths from embed to logits
    assert np.array_equal(drawn[2].kept, circuit.random(2).kept)
    assert len({control.kept.tobytes() for control in [circuit, *drawn]}) > 4


def test_in_four_bits_a_circuit_does_the_task_and_one_through_other_heads_does_less(lm4, real):
    circuit = real.circuit(1200)
    assert 0.7 < circuit.faithfulness(lm4, [REAL]).value < 1.2  # 0.77 to 0.85, by how a processor rounds
    assert abs(circuit.completeness(lm4, [REAL]).value) < 0.1
    controls = [circuit.random(seed) for seed in range(3)]
    assert all(kinds(control) == kinds(circuit) for control in controls)
    found = [control.faithfulness(lm4, [REAL]).value for control in controls]
    assert max(found) < 0.75  # which heads they are matters
    assert np.mean(found) > 0.1  # and what is the same in both does something: size alone is no fair control
    assert real.scores.head(3).sender.tolist()[1:] == ["z.23.3", "mlp_out.0"]


def test_scores_and_circuits_are_repeated_by_their_code_and_kept_in_files(lm4, real, tmp_path):
    again = lk.open_edges(real.save(tmp_path / "edges.npz"))
    assert repr(again) == repr(real)
    assert np.array_equal(again.values, real.values, equal_nan=True)
    circuit = real.circuit(60)
    code = (
        circuit.code().replace("lk.load(bits=4)", "the_model").replace("foil=' John',", "foil=' John', progress=False,")
    )
    names: dict = {}
    exec(code, {"the_model": lm4}, names)
    assert np.array_equal(names["circuit"].kept, circuit.kept)
    assert repr(names["circuit"]) == repr(circuit)
    with pytest.raises(FileNotFoundError):
        lk.open_edges(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"bad")
    with pytest.raises(ValueError, match="is not edge scores saved by labkit"):
        lk.open_edges(tmp_path / "bad.npz")


def test_a_circuit_of_several_pairs_comes_from_their_mean(llama, scored):
    other = lk.edge_attribution(llama, CORRUPT_IDS, IDS, ANSWER, FOIL, steps=4, progress=False)
    mean = lk.EdgeScores.mean([scored, other])
    assert np.allclose(mean.values, (scored.values + other.values) / 2, equal_nan=True)
    assert mean.code().count("lk.edge_attribution(") == 2
    compile(mean.code(), "code", "exec")
    circuit = mean.circuit(20)
    both = circuit.faithfulness(llama, [PAIR, {"clean": IDS, "corrupt": CORRUPT_IDS, "answer": ANSWER, "foil": FOIL}])
    assert both.to_frame().normalized.nunique() == 1
    assert "on 2 pairs" in repr(both)
    cut = circuit.edges.iloc[0]
    less = circuit.without(cut.sender, cut.receiver)
    assert less.n_edges < circuit.n_edges


def test_what_cannot_work_is_said(llama, scored):
    for call, says in (
        (lambda: lk.edge_attribution(llama, *PAIR, steps=0), "steps must be at least 1"),
        (lambda: lk.edge_attribution(llama, IDS, CORRUPT_IDS[:, :5], ANSWER, FOIL), "clean has 12 tokens, corrupt 5"),
        (lambda: scored.circuit(), "give the size"),
        (lambda: scored.circuit(10, threshold=0.1), "give the size"),
        (lambda: scored.circuit(threshold=99.0), "no path from the embedding"),
        (lambda: scored.circuit(30).faithfulness(llama, []), "at least one pair"),
        (lambda: scored.circuit(30).faithfulness(llama, ["abcd"]), "a pair is"),
        (lambda: scored.circuit(30).without("embed", "z.1.1"), "is not an edge of this circuit"),
        (lambda: lk.EdgeScores.mean([]), "at least one EdgeScores"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            call()


def test_a_circuit_view_shows_the_circuit_and_leaves_a_picture(lm4, real):
    circuit = real.circuit(80)
    view = lk.CircuitView(circuit)
    assert repr(view) == f"CircuitView({repr(circuit)[8:-1]})"
    assert view.code() == circuit.code() + "lk.CircuitView(circuit)\n"
    assert len(view.names) == len(view.strengths) == circuit.n_edges
    assert {node[0] for node in view.nodes} == set(circuit.nodes)
    picture = opened(view.snapshot())
    assert picture.count("<path") == len(view.lines) >= circuit.n_edges
    assert ">23.3</text>" in picture
    assert len(view.snapshot()) < 60_000
    sent = view.get_state()
    assert sent["strengths"]["data"].nbytes == 4 * circuit.n_edges
    for trait, wrong in (("selection", circuit.n_edges), ("node", "z.0.99")):
        with pytest.raises(traitlets.TraitError):
            setattr(view, trait, wrong)
    evil = lk.CircuitView(circuit, title="<script>harm()</script>")
    assert "<script" not in opened(evil.snapshot())


def test_pairs_that_were_measured_survive_one_that_fails(llama, scored):
    pairs = [PAIR, (CORRUPT_IDS, IDS, FOIL, ANSWER), (IDS, IDS[:, :-1], ANSWER, FOIL)]
    whole = scored.circuit(n_edges=20).faithfulness(llama, pairs[:2])
    with pytest.raises(ValueError, match="tokens") as failed:
        scored.circuit(n_edges=20).faithfulness(llama, pairs)
    np.testing.assert_array_equal(failed.value.faithfulness.circuit, whole.circuit)
    assert "2 of 3 pairs were done" in failed.value.__notes__[0]
