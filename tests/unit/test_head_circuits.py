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
