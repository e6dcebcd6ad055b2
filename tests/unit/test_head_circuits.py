"""Circuits of heads from weights alone: the same as multiplying the matrices out."""

import numpy as np
import pytest
import torch
from loud import loud

import labkit as lk


def matrices(lm: lk.LanguageModel, layer: int, head: int) -> dict[str, torch.Tensor]:
    """The head's matrices, written out per architecture: q, k, v (d_head, d_model), o (d_model, d_head), the gains of
    the norms before attention and at the end, and whether they centre."""
    name, n, kv = lm.config.model_type, lm.n_heads, lm.n_kv_heads
    if name == "gpt2":
        block = lm.hf.transformer.h[layer]
        q, k, v = (part.T for part in block.attn.c_attn.weight.split(lm.d_model, dim=1))
        o, norm, final = block.attn.c_proj.weight.T, block.ln_1, lm.hf.transformer.ln_f
    else:
        block = lm.hf.model.layers[layer]
        q, k, v, o = (getattr(block.self_attn, f"{x}_proj").weight for x in "qkvo")
        norm, final = block.input_layernorm, lm.hf.model.norm
    plus = 1 if name == "gemma" else 0
    d = q.shape[0] // n
    mine, shared = slice(head * d, (head + 1) * d), head // (n // kv)
    theirs = slice(shared * d, (shared + 1) * d)
    found = {"q": q[mine], "k": k[theirs], "v": v[theirs], "o": o[:, mine]}
    found |= {"gain": norm.weight + plus, "final": final.weight + plus}
    return {key: value.detach() for key, value in found.items()}


def normed(lm: lk.LanguageModel, x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True) if lm.config.model_type == "gpt2" else x
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-9)  # padding has no embedding


def centred(lm: lk.LanguageModel, x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True) if lm.config.model_type == "gpt2" else x


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma"])
def tiny(request: pytest.FixtureRequest) -> lk.LanguageModel:
    lm = loud(request.param)
    with torch.no_grad():  # so that norms' gains, biases and epsilons matter, or do not
        for n, (name, parameter) in enumerate(lm.hf.named_parameters()):
            if parameter.ndim == 1:
                draw = torch.Generator().manual_seed(n)
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
            if "embed" in name or "wte" in name:
                parameter *= 3
    return lm


def close(a: np.ndarray, b: torch.Tensor) -> bool:
    return float(np.abs(a - b.numpy()).max()) <= 2e-3 * float(b.abs().max())


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 3)])
def test_what_a_head_writes_and_where_it_looks_are_products_of_its_matrices(tiny, layer, head) -> None:
    ids = [5, 40, 77]
    circuit = lk.head_circuit(tiny, (layer, head), tokens=ids, top=6, sample=64)
    with torch.no_grad():
        w = matrices(tiny, layer, head)
        every = normed(tiny, tiny.embedding) * w["gain"]
        unembed = tiny.hf.get_output_embeddings().weight
        ov = centred(tiny, every @ w["v"].T @ w["o"].T) * w["final"] @ unembed.T  # (vocab, vocab)
        logits = ov[ids]
        best, worst = logits.topk(6), (-logits).topk(6)
        assert close(circuit.promoted, best.values)
        assert close(circuit.suppressed, -worst.values)
        assert (circuit.promoted_ids == best.indices.numpy()).all()
        assert circuit.own_ranks.tolist() == [
            1 + int((row > row[id]).sum()) for row, id in zip(logits, ids, strict=True)
        ]
        sample = torch.linspace(0, min(tiny.n_vocab, len(tiny.tokenizer)) - 1, 64).round().long()
        some = ov[sample]
        ranks = (some > some.gather(1, sample[:, None])).sum(1)
        assert circuit.copying == float((ranks < 5).float().mean())
        eigenvalues = np.linalg.eigvals(some[:, sample].double().numpy())
        assert abs(circuit.eigen - eigenvalues.sum().real / np.abs(eigenvalues).sum()) < 5e-3
        if tiny.config.model_type != "gpt2":  # whose queries and keys have biases
            scores = every[ids] @ w["q"].T @ (every @ w["k"].T).T / w["q"].shape[0] ** 0.5
            assert close(circuit.keys, (scores - scores.mean(1, keepdim=True)).topk(6).values)


def test_in_a_text_a_token_stands_for_what_reaches_the_layer_there(tiny) -> None:
    ids = torch.tensor([[5, 40, 77, 3]])
    circuit = lk.head_circuit(tiny, (1, 3), prompt=ids, positions=[1, -1], top=6, sample=64)
    assert [token.id for token in circuit.tokens] == [40, 3]
    with torch.no_grad():
        w = matrices(tiny, 1, 3)
        v = tiny.run(ids, read=["v.1"])["v.1"][0, [1, 3]]  # (position, kv_head, d_head)
        bias = tiny.hf.transformer.h[1].attn.c_attn.bias if tiny.config.model_type == "gpt2" else None
        v = v[:, 3 // (tiny.n_heads // v.shape[1])]
        if bias is not None:  # what a head gets of no token at all
            v = v - bias.split(tiny.d_model)[2][3 * v.shape[1] : 4 * v.shape[1]]
            v = v - tiny.hf.transformer.h[1].ln_1.bias @ w["v"].T
        logits = centred(tiny, v @ w["o"].T) * w["final"] @ tiny.hf.get_output_embeddings().weight.T
    assert close(circuit.promoted, logits.topk(6).values)
    assert (circuit.promoted_ids == logits.topk(6).indices.numpy()).all()
    whole = lk.head_circuit(tiny, (1, 3), prompt=ids, top=6, sample=64)
    assert np.allclose(whole.promoted[[1, 3]], circuit.promoted, rtol=1e-4, atol=1e-5)
    assert whole.copying == circuit.copying


@pytest.mark.parametrize("bits", [4, 32])
def test_one_head_knows_that_mary_is_she_and_john_he(bits, lm4, lm32) -> None:
    lm = lm4 if bits == 4 else lm32
    text = "When Mary and John went to the store, John gave a drink to"
    circuit = lk.head_circuit(lm, "26.0", prompt=text, positions=[1, 9], top=40)
    mary, john = ({word.strip("\u00b7").lower() for word, _ in circuit.rows("suppresses", n)[:12]} for n in (0, 1))
    assert {"she", "her"} <= mary
    assert {"he", "his"} <= john
    assert not {"he", "his"} & mary
    assert not {"she", "her"} & john


def test_composition_scores_are_those_of_whole_matrices(tiny) -> None:
    circuits = lk.head_circuits(tiny, sample=64, progress=False)
    n = tiny.n_heads
    assert circuits.q.shape == (2, n, 2, n)
    with torch.no_grad():
        for head in range(n):
            for before in range(n):
                one, two = matrices(tiny, 0, before), matrices(tiny, 1, head)
                wide = {key: centred(tiny, two[key] * two["gain"]) for key in "qkv"}
                first = one["o"] @ centred(tiny, one["v"] * one["gain"])  # what the earlier head reads, and writes
                reads = {"q": wide["k"].T @ wide["q"], "k": wide["q"].T @ wide["k"], "v": two["o"] @ wide["v"]}
                for kind, matrix in reads.items():
                    score = float((matrix @ first).norm() / (matrix.norm() * first.norm()))
                    assert abs(getattr(circuits, kind)[1, head, 0, before] - score) < 2e-3
    assert np.isnan(circuits.v[0]).all()
    assert np.isnan(circuits.v[:, :, 1]).all()
    for head in range(n):
        assert abs(circuits.eigen[1, head] - lk.head_circuit(tiny, (1, head), tokens=[5], sample=64).eigen) < 1e-5


def test_heads_turned_at_random_score_chance() -> None:
    from labkit.features.head_circuits import HeadCircuits

    draw = np.random.default_rng(0)
    d, k = 64, 8
    scores = []
    for _ in range(200):
        a, b = (draw.normal(size=(d, k)) @ draw.normal(size=(k, d)) for _ in range(2))
        scores.append(np.linalg.norm(a @ b) / np.linalg.norm(a) / np.linalg.norm(b))
    nothing = np.zeros((0, 0, 0, 0))
    chance = HeadCircuits((), nothing, nothing, nothing, np.zeros((0, 0)), d**-0.5).chance
    assert abs(np.sqrt(np.mean(np.square(scores))) - chance) < 0.01


def test_planted_heads_copy_and_compose() -> None:
    lm = loud("llama")
    with torch.no_grad():
        a, b = (layer.self_attn for layer in lm.hf.model.layers)
        d = a.head_dim
        out = torch.linalg.qr(torch.randn(lm.d_model, d, generator=torch.Generator().manual_seed(1)))[0]
        a.o_proj.weight[:, d : 2 * d] = out  # head 1 writes where
        b.k_proj.weight[:d] = out.T  # the keys of heads that share key head 0 read
    circuits = lk.head_circuits(lm, sample=16, progress=False)
    sharing = lm.n_heads // lm.n_kv_heads
    mine, rest = circuits.k[1, :sharing, 0, 1], circuits.k[1, :, 0, [n for n in range(lm.n_heads) if n != 1]]
    assert mine.min() > 0.9 * d**-0.5  # queries and values have nothing to do with each other in d_head dimensions
    assert rest.max() < 0.6 * d**-0.5
    with torch.no_grad():  # what it reads of a token it writes in the token's own direction
        weight = torch.randn(d, lm.d_model, generator=torch.Generator().manual_seed(2))
        a.v_proj.weight[:d] = weight
        a.o_proj.weight[:, :d] = weight.T
        lm.hf.get_output_embeddings().weight.copy_(lm.embedding)
        lm.hf.model.norm.weight.fill_(1)
        lm.hf.model.layers[0].input_layernorm.weight.fill_(1)
    copies = lk.head_circuit(lm, "0.0", sample=200)
    assert copies.eigen > 0.95
    with torch.no_grad():
        a.o_proj.weight[:, :d] *= -1
    assert lk.head_circuit(lm, "0.0", sample=200).eigen < -0.95


def test_rotary_turns_where_a_token_would_look() -> None:
    lm = loud("llama")
    near, far = (lk.head_circuit(lm, "1.0", tokens=[5], offset=n, top=5) for n in (1, 9))
    here = lk.head_circuit(lm, "1.0", tokens=[5], top=5)
    assert not np.allclose(near.keys, far.keys, rtol=0.01)
    run = lm.run(torch.tensor([[9, 5]]), read=["resid_pre.0"])  # as in a run, where layer 0 has the embeddings
    first = lk.head_circuit(lm, "0.0", tokens=[5], offset=1, top=len(lm.embedding))
    scores = lm.run(torch.tensor([[9, 5]]), read=["scores.0"])["scores.0"][0, 0, 1]
    other = lm.run(torch.tensor([[40, 5]]), read=["scores.0"])["scores.0"][0, 0, 1]
    by_id = dict(zip(first.keys_ids[0].tolist(), first.keys[0].tolist(), strict=True))
    assert abs((by_id[9] - by_id[40]) - float(scores[0] - other[0])) < 1e-3 * max(1.0, abs(by_id[9] - by_id[40]))
    assert run.logits.shape[1] == 2
    assert here.offset is None


def test_packed_weights_give_nearly_the_same_and_the_best_copier_stays(lm4, lm32) -> None:
    exact, packed = (lk.head_circuits(lm, layers=range(0, 30, 6), sample=256, progress=False) for lm in (lm32, lm4))
    assert np.nanmax(np.abs(exact.v - packed.v)) < 0.1
    assert float(np.corrcoef(exact.k[np.isfinite(exact.k)], packed.k[np.isfinite(packed.k)])[0, 1]) > 0.95
    best = np.unravel_index(int(exact.eigen.argmax()), exact.eigen.shape)
    for circuits in (exact, packed):
        assert circuits.eigen[best] > np.median(circuits.eigen) + 0.5


def test_results_show_save_and_repeat_themselves(tmp_path) -> None:
    lm = loud("llama")
    circuits = lk.head_circuits(lm, sample=16, progress=False)
    opened = lk.open_head_circuits(circuits.save(tmp_path / "circuits.npz"))
    assert repr(opened) == repr(circuits)
    assert np.array_equal(opened.q, circuits.q, equal_nan=True)
    frame = circuits.to_frame()
    assert len(frame) == lm.n_heads**2
    assert frame.earlier_layer.eq(0).all()
    assert circuits.figure("k").data[0].z.shape == (2 * lm.n_heads,) * 2
    assert circuits.figure("q", head=(1, 2)).data[0].z.shape == (2, lm.n_heads)
    assert circuits.figure("copying").data[0].zmax == 1
    assert "lk.head_circuits(lm, sample=16)" in circuits.code()
    circuit = lk.head_circuit(lm, "1.2", tokens=[5, 6], top=3)
    assert len(circuit.to_frame()) == 2 * 3 * 3
    assert "lk.head_circuit(lm, '1.2', tokens=[5, 6], top=3)" in circuit.code()
    for name in ("promotes", "suppresses", "looks at"):
        assert circuit.figure(name).data[0].z.shape == (2, 3)
    assert not any("<" in word for row in circuit.figure().data[0].text for word in row)
    in_text = lk.head_circuit(lm, "1.2", prompt="To Mary", positions=[-1], top=3)
    opened = lk.open_head_circuit(in_text.save(tmp_path / "circuit.npz"))
    assert "lk.head_circuit(lm, '1.2', prompt='To Mary', positions=[6], top=3)" in opened.code()
    assert "in a text" in opened.figure().layout.title.text


@pytest.mark.parametrize(
    ("head", "more", "error"),
    [
        ("9.0", {}, "out of range"),
        ("1.9", {}, "out of range"),
        ("resid_post.1", {}, "is not one head"),
        ("z.1", {}, "is not one head"),
        ((1, 2, 3), {}, "a head is"),
        ("1.2", {"tokens": []}, "names no token"),
        ("1.2", {"tokens": ["two words"]}, "the token"),
        ("1.2", {"top": 0}, "top must be"),
        ("1.2", {"offset": -1}, "offset must be"),
        ("1.2", {"positions": [1]}, "give prompt="),
        ("1.2", {"prompt": "a b", "tokens": ["a"]}, "not both"),
        ("1.2", {"prompt": "a b", "positions": [3]}, "position 3 is out of range; the prompt has 3 tokens"),
        ("1.2", {"prompt": "a b", "positions": []}, "names no token"),
        ("1.2", {"prompt": "a b", "positions": [0.5]}, "a position must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(head, more, error) -> None:
    with pytest.raises(ValueError, match=error):
        lk.head_circuit(loud("llama"), head, **more)


@pytest.mark.parametrize("name", ["deepseek_v3", "mamba", "bloom", "qwen3_next", "qwen3", "gemma2"])
def test_architectures_say_what_their_heads_lack(name) -> None:
    lm = loud(name)
    lacks = {"mamba": "no attention", "bloom": "does not go through transformers' interface", "qwen3_next": "is gated"}
    if name in lacks:
        with pytest.raises(ValueError, match=lacks[name]):
            lk.head_circuits(lm, progress=False)
    elif name == "deepseek_v3":
        with pytest.raises(ValueError, match="its values are no linear map"):
            lk.head_circuits(lm, progress=False)
        assert lk.head_circuit(lm, (1, 0), tokens=[5]).promoted.shape == (1, 10)
    else:
        circuits = lk.head_circuits(lm, sample=16, progress=False)
        assert np.isfinite(circuits.v[1, :, 0]).all()
        assert set(circuits.missing) == (set("qk") if name == "qwen3" else set())
        if circuits.missing:
            with pytest.raises(ValueError, match="normed"):
                circuits.figure("q")
