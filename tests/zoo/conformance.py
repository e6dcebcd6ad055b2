"""DESIGN's promises on one architecture: each is `yes`, `no` with what went wrong, or absent.

Used by `test_zoo.py`, and by `table.py`, which writes docs/architectures.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_texts import naive_texts
from shrink import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.activations import ACT2FN

import labkit as lk
from labkit.activations.site_kinds import KINDS
from labkit.activations.sites import Site, adds_keys, layers_with
from labkit.activations.unembedding import SOFTCAPS, End, softcap_of
from labkit.engine.cells import layers_of
from labkit.models.weights import bias_of
from labkit.patching.patch import PatchJob

IDS = torch.tensor([[11, 42, 7, 99, 3, 58, 120, 64, 33, 5, 77, 21]])
CORRUPT = IDS.clone()
CORRUPT[0, 5] = 140
ANSWER, FOIL = 9, 10
ABSENT = "-"
GRIDS = (
    "resid_pre", "attn_in", "mlp_out", "mlp_up", "mlp_pre", "q_pre", "scores", "z", "pattern", "head_out", "router",
)  # fmt: skip
SINKS = ("deepseek_v4", "flint", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4", "inkling2_text", "mimo_v2_flash")
# what attention takes is mixed of several residual streams or layers, or has the embeddings beside it
OTHER_INPUTS = ("deepseek_v4", "gemma3n_text", "hy_v4", "inkling2_text", "qwen4_exp_text", "zamba", "zamba2")
NORM = re.compile(r"norm|ln|layernorm")
CACHES = ("past_key_values", "cache_params")
MIXES_ROWS = ("rwkv",)  # transformers' own, with a state and one token per row


class Absent(Exception):
    """The architecture has no such site."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    vocabulary = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert a.shape == b.shape
    off = (a - b).abs().masked_fill(a == b, 0)  # the same infinity
    worst = float(off.max())
    b = b.masked_fill(b.isinf(), 0)
    assert worst <= tolerance * max(1.0, float(b.abs().max())), f"off by {worst:.1e}"


def here(lm: lk.LanguageModel, *kinds: str) -> list[str]:
    found = [kind for kind in kinds if layers_with(lm, kind)]
    if not found:
        raise Absent
    return found


# -- the promises ---------------------------------------------------------------------------------------------------


def logits(lm: lk.LanguageModel) -> None:
    """The plain forward's, also when everything is read; left-padded rows give what single rows give."""
    with torch.no_grad():
        plain = lm.hf(IDS, use_cache=False).logits
    close(lm.run(IDS).logits, plain, 1e-5)
    everything = here(lm, "embed", "resid_pre", "q", "k", "v", "pattern", "z", "head_out", "router")
    close(lm.run(IDS, read=everything).logits, plain)


def written_back(lm: lk.LanguageModel, *kinds: str) -> None:
    """Writing what was read changes nothing; writing something else does."""
    plain = lm.run(IDS).logits
    for kind in here(lm, *kinds):
        for layer in layers_with(lm, kind):
            site = f"{kind}.{layer}" if KINDS[kind].by_layer else kind
            run = lm.run(IDS, read=[site])
            close(run.logits, plain)
            close(lm.run(IDS, write={site: run[site]}).logits, plain)
            # to a norm, half of a residual stream is the same; the rows of a pattern have to sum to no more than 1
            other = (lambda x: x.flip(-1)) if kind.startswith("resid") else (lambda x: x * 0.5)
            written = lm.run(IDS, write={site: other}, read=[site])
            close(written[site], other(run[site]))
            assert not torch.equal(written.logits, plain), f"writing {site} changes nothing"


def resid(lm: lk.LanguageModel) -> None:
    """Write-back, and the clean resid_pre.0 at every position gives the clean logits."""
    written_back(lm, "resid_pre", "resid_mid", "resid_post")
    clean = lm.run(IDS, read=["resid_pre.0", "embed"])
    if not uses_ids_inside(lm):
        close(lm.run(CORRUPT, write={"embed": clean["embed"]}).logits, clean.logits)


def uses_ids_inside(lm: lk.LanguageModel) -> bool:
    """Some layers look at the token ids again: embeddings by layer (Gemma 3n), routing by hash (DeepSeek-V4)."""
    names = " ".join(name for name, _ in lm.hf.named_modules())
    return any(word in names for word in ("per_layer", "ngram", "value_embed")) or "hash" in str(lm.config).lower()


def pattern(lm: lk.LanguageModel) -> None:
    """Rows sum to at most 1, nothing ahead is looked at, pattern @ v = z; write-back."""
    written_back(lm, *here(lm, "pattern"))
    run = lm.run(IDS, read=["pattern", "v", "z"])
    for layer in layers_with(lm, "pattern"):
        shown, v, z = (run[f"{kind}.{layer}"] for kind in ("pattern", "v", "z"))
        assert float(shown.sum(-1).max()) <= 1 + 1e-4
        assert float(shown.min()) >= 0
        ahead = torch.ones(shown.shape[-2:]).triu(1).bool()
        ahead[:, IDS.shape[1] :] = False  # DeepSeek-V4's compressed keys come after those of the positions
        assert float(shown[..., ahead].max()) == 0, "a pattern looks ahead"
        shared = v.repeat_interleave(shown.shape[1] // v.shape[2], 2)
        close(torch.einsum("bhqk,bkhd->bqhd", shown, shared), z)


def inputs(lm: lk.LanguageModel) -> None:
    """What attention takes is the norm of resid_pre, or resid_pre itself where norms come later; write-back."""
    written_back(lm, "attn_in", "mlp_in")
    run = lm.run(IDS, read=here(lm, "attn_in", "resid_pre", "mlp_in"))
    for layer in layers_with(lm, "attn_in"):
        taken, stream = run[f"attn_in.{layer}"], run[f"resid_pre.{layer}"]
        norms = [m for name, m in lm.anatomy.blocks[layer].module.named_modules() if NORM.search(name)]
        normed = list(made_of(norms, stream))
        normed += [twice for once in normed for twice in made_of(norms, once)]  # RWKV's first layer has two
        if lm.config.model_type not in OTHER_INPUTS:
            assert any(same(made, taken) for made in (stream, *normed)), f"attn_in.{layer} is no norm of resid_pre"


def made_of(modules: Iterable[nn.Module], *given: torch.Tensor) -> Iterable[torch.Tensor]:
    for module in modules:
        try:
            with torch.no_grad():
                yield module(*given)
        except Exception:
            continue


def same(a: object, b: torch.Tensor) -> bool:
    if not isinstance(a, torch.Tensor) or a.shape != b.shape:
        return False
    return float((a - b).abs().max()) <= 1e-4 * max(1e-3, float(b.abs().max()))


def gates(lm: lk.LanguageModel) -> None:
    """act(gate) * up, or act(pre), are the neurons; write-back."""
    written_back(lm, "mlp_gate", "mlp_up", "mlp_pre")
    run = lm.run(IDS, read=here(lm, "mlp_gate", "mlp_up", "mlp_pre", "mlp_act"))
    for kind in here(lm, "mlp_gate", "mlp_pre"):
        for layer in layers_with(lm, kind):
            parts = [m for m in lm.anatomy.blocks[layer].module.modules() if m not in lm.anatomy.adapted]
            acts = [*ACT2FN.values(), *(m for m in parts if "act" in type(m).__name__.lower())]
            acts = [
                act() if isinstance(act, type) else act[0](**act[1]) if isinstance(act, tuple) else act for act in acts
            ]
            made = [
                x * (run[f"mlp_up.{layer}"] if kind == "mlp_gate" else 1) for x in made_of(acts, run[f"{kind}.{layer}"])
            ]
            norms = [m for m in parts if "norm" in type(m).__name__.lower()] if lm.config.model_type == "bitnet" else []
            made += [y for x in made for y in made_of(norms, x)]
            assert any(same(x, run[f"mlp_act.{layer}"]) for x in made), f"{kind}.{layer} does not make the neurons"


def before_rotary(lm: lk.LanguageModel) -> None:
    """Turning a head's query or key keeps its length, up to one factor for all; write-back."""
    written_back(lm, "q_pre", "k_pre")
    for kind in here(lm, "q_pre", "k_pre"):
        for layer in layers_with(lm, kind):
            sites = [f"{kind}.{layer}", f"{kind[0]}.{layer}"]
            run = lm.run(IDS, read=sites)
            before, after = (run[site].norm(dim=-1) for site in sites)
            assert not same(run[sites[0]], run[sites[1]])
            close(before * (after.sum() / before.sum()), after)


def scores(lm: lk.LanguageModel) -> None:
    """Their softmax is the pattern, less a sink's share; write-back."""
    written_back(lm, "scores")
    for layer in layers_with(lm, "scores"):
        run = lm.run(IDS, read=[f"scores.{layer}", f"pattern.{layer}"])
        shown, pattern = run[f"scores.{layer}"].softmax(-1), run[f"pattern.{layer}"]
        if lm.config.model_type in SINKS:
            pattern = pattern / pattern.sum(-1, keepdim=True)
        close(shown, pattern)
        ahead = torch.ones(shown.shape[-2:]).triu(1).bool()
        ahead[:, IDS.shape[1] :] = False
        assert bool((run[f"scores.{layer}"][..., ahead] == -torch.inf).all())


def final_norm(lm: lk.LanguageModel) -> None:
    """Unembedded it gives the logits, up to a scale and a soft cap; write-back."""
    written_back(lm, *here(lm, "final_norm"))
    run = lm.run(IDS, read=["final_norm"])
    x, tail = run["final_norm"], list(lm.anatomy.tail)
    with torch.no_grad():
        if lm.anatomy.final_norm in tail:
            for module in tail[tail.index(lm.anatomy.final_norm) + 1 :]:
                x = module(x)
        made = lm.anatomy.unembed(x).float()
    end = End(softcap=softcap_of(lm))
    close(End(end.fitted(made[0, -1], run.logits[0, -1]), end.softcap)(made), run.logits, 1e-3)


def head_out(lm: lk.LanguageModel) -> None:
    """The heads' outputs and the bias add up to attention's; write-back."""
    written_back(lm, *here(lm, "head_out"))
    run = lm.run(IDS, read=["head_out", "attn_out"])
    for layer in layers_with(lm, "head_out"):
        bias = bias_of(lm.anatomy.blocks[layer].output_projection)
        close(run[f"head_out.{layer}"].sum(-2) + (0 if bias is None else bias), run[f"attn_out.{layer}"], 2e-4)


def router(lm: lk.LanguageModel) -> None:
    """Each token is taken by some experts and not by all; another choice gives other logits; write-back."""
    written_back(lm, *here(lm, "router"))
    for layer in layers_with(lm, "router"):
        taken = lm.run(IDS, read=[f"router.{layer}"])[f"router.{layer}"] != 0
        assert taken.shape[:2] == IDS.shape
        assert 0 < int(taken.sum(-1).min()) <= int(taken.sum(-1).max()) < taken.shape[-1]
        turned = lm.run(IDS, write={f"router.{layer}": lambda x: x.roll(1, -1)}).logits
        assert not torch.equal(turned, lm.run(IDS).logits), "turning the experts round changes nothing"
        run = lm.run(IDS, read=[f"router.{layer}", f"experts.{layer}"])
        weights, chosen = run[f"router.{layer}"], run[f"experts.{layer}"]
        assert not chosen.is_floating_point()
        heaviest = weights.topk(chosen.shape[-1]).indices.sort(-1).values
        zero = weights.gather(-1, heaviest) == 0  # which of those without weight come last in topk is by chance
        assert bool((zero | (heaviest == chosen.sort(-1).values)).all()), "the experts are not those with weight"


def direct(lm: lk.LanguageModel) -> None:
    """The parts' shares add up to the logit difference, the heads' to their attention's."""
    logits = lm.run(IDS).logits[0, -1]
    try:
        found = lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL)
    except ValueError as error:
        if "has no direct attribution" in str(error):
            raise Absent from None
        raise
    size = max(1.0, float(abs(found.attn).sum() + abs(found.mlp).sum()))
    if not any(getattr(lm.config, name, None) for name in SOFTCAPS):
        assert abs(found.total - float(logits[ANSWER] - logits[FOIL])) <= 1e-4 * size, "not the model's logits"
    assert abs(found.rest) <= 1e-4 * size, f"{found.rest:.1e} is left over"
    for layer in layers_with(lm, "head_out"):
        names = [name for name, _ in lm.anatomy.blocks[layer].attention.named_parameters()]
        if not any(name.endswith("bias") for name in names):
            assert abs(found.attn_bias[layer]) <= 1e-4 * size, "the heads do not add up to attention"


def grid(lm: lk.LanguageModel) -> None:
    """Fast grid = naive grid, also of unequal prompts, texts, zero and noise; identical prompts have no effect."""
    slow = False
    for site in here(lm, *GRIDS):
        job = PatchJob(lm, IDS, CORRUPT, ANSWER, FOIL, site=site)
        list(job.steps())
        fast = torch.tensor(job.grid.values).flatten()
        assert not bool(fast.isnan().any())
        slow |= job.engine == "whole runs"
        whole = []
        for cell in job.cells:
            at = Site(site, cell.layer, cell.head, cell.position)
            value = lm.run(IDS, read=[at])[at]
            patched = lm.run(CORRUPT, write={at: value}).logits[0, -1]
            whole.append(float(patched[ANSWER] - patched[FOIL]))
        worst = float((fast - torch.tensor(whole)).abs().max())
        effect = float((torch.tensor(whole) - job.grid.corrupt).abs().max())
        allowed = min(1e-4, 2e-6 + 0.01 * effect)  # rounding alone gives up to 3e-6, of effects of 0.04
        assert worst <= allowed, f"{site}: off by {worst:.1e}, and the largest effect is {effect:.1e}"
    same = PatchJob(lm, IDS, IDS, ANSWER, FOIL)
    list(same.steps())
    assert float(abs(same.grid.values - same.grid.clean).max()) == 0
    for site in here(lm, "resid_pre", "z"):
        unequal(lm, site)
        perturbed(lm, site)
    if slow:
        raise Slow


LONGER = torch.cat([CORRUPT[:, :4], torch.tensor([[66]]), CORRUPT[:, 4:]], 1)
SPANS = [((0, 4), (0, 4)), ((5, 12), (6, 13))]  # position 4 of clean and two of corrupt have no partner
TEXTS = ["ab", "ac"], ["d", "aef"]


def unequal(lm: lk.LanguageModel, site: str) -> None:
    """Texts share their runs where they begin alike. DeepSeek-V3.2 chooses among equal keys by how many follow:
    there a token that follows can change what is before it, and texts of one length are taken."""
    given = TEXTS if _looks_back_only(lm) else (["ab"], ["ac"])
    job = PatchJob(lm, IDS, LONGER, *given, site=site, alignment=SPANS)
    list(job.steps())
    fast = torch.tensor(job.grid.values).flatten()
    lone = torch.tensor(job.grid.unpaired).flatten()
    assert torch.equal(fast.isnan(), lone)
    assert int(lone.sum()) == ("position" in job.grid.over) * 2 * len(job.grid.index[0])
    texts = [[lm.tokenizer(text).input_ids for text in side] for side in given]
    some = [i for i in range(len(fast)) if not lone[i] and i % 3 == 0]
    whole = naive_texts(lm, IDS, LONGER, SPANS, *texts, [job.cells[i] for i in some], site)
    close(fast[some], torch.tensor(whole), 1e-4 if lm.bits == 32 else 2e-3)


def perturbed(lm: lk.LanguageModel, site: str) -> None:
    """Zeros in windows of two layers, and clean activations in a run with a noised subject: one whole run per cell."""
    read = layers_with(lm, site)
    clean = lm.run(IDS, read=[f"{site}.{layer}" for layer in read])
    for by, window in (("zero", 2), (lk.Noise((2, 3), samples=1), 1)):
        job = PatchJob(lm, IDS, None, ANSWER, FOIL, by=by, window=window, site=site)
        list(job.steps())
        (draw,) = job.pair.draws
        whole = []
        for cell in job.cells[::3]:
            write: dict = dict(zip(["embed"], draw.edits.values(), strict=False))
            for layer in set(layers_of(cell, window, lm.n_layers)) & set(read):
                at = Site(site, layer, cell.head, cell.position)
                value = clean[at]
                write[at] = torch.zeros_like(value) if by == "zero" else value
            logits = lm.run(IDS, write=write).logits[0, -1]
            whole.append(float(logits[ANSWER] - logits[FOIL]))
        fast = torch.tensor(job.grid.values).flatten()[::3]
        close(fast, torch.tensor(whole), 1e-4 if lm.bits == 32 else 2e-3)


def _looks_back_only(lm: lk.LanguageModel) -> bool:
    a, e = (torch.tensor([lm.tokenizer(text).input_ids]) for text in "ae")
    longer = [torch.cat([prompt, a, e], 1) for prompt in (IDS, LONGER)]
    return all(
        bool(torch.allclose(lm.run(ids[:, :-n]).logits, lm.run(ids).logits[:, :-n], rtol=0, atol=1e-4))
        for ids in longer
        for n in (1, 2)
    )


class Slow(Exception):
    """The promise holds, one whole run a cell."""


def state(lm: lk.LanguageModel) -> None:
    """What the cache has after a plain pass over any beginning of the prompt, and after one token at a time; read
    beside other sites, it leaves the logits as they are. In a batch each row has that of its prompt alone."""
    (kind,) = here(lm, "state")
    sites = [f"{kind}.{layer}" for layer in layers_with(lm, kind)]
    plain = lm.run(IDS).logits
    stepped: dict[str, Any] = {}  # what the cache is called, and the cache
    for n in range(IDS.shape[1]):  # as a text is written
        with torch.no_grad():
            out = lm.hf(IDS[:, n : n + 1], use_cache=True, **stepped)
        stepped = {name: out[name] for name in CACHES if name in out}
        if n in (0, 4, IDS.shape[1] - 1):
            run = lm.run(IDS[:, : n + 1], read=[*sites, "resid_post"])
            with torch.no_grad():
                whole = cache_of(lm.hf(IDS[:, : n + 1], use_cache=True))
            for layer, site in zip(layers_with(lm, kind), sites, strict=True):
                assert torch.equal(run[site], whole.layers[layer].recurrent_states[0])
                close(run[site], cache_of(stepped).layers[layer].recurrent_states[0])
            close(run.logits, plain[:, : n + 1])
    lm.tokenizer.pad_token = lm.tokenizer.convert_ids_to_tokens(0)  # a type's own is beyond a tiny vocabulary
    both = lm.run([IDS[0], IDS[0, :5]], read=sites)
    for site in sites:
        for row, ids in enumerate((IDS, IDS[:, :5])):
            close(both[site][row], lm.run(ids, read=[site])[site][0])
        with pytest.raises(ValueError, match=f"{site} has no row for each position"):
            lm.generate(IDS, read=[site])


def cache_of(out: Any) -> Any:
    """The cache that a pass has made, which transformers' Mamba calls otherwise."""
    return next(out[name] for name in CACHES if name in out)


def generation(lm: lk.LanguageModel) -> None:
    """The same tokens as transformers' own greedy generation."""
    ours = lm.generate(IDS, max_new_tokens=6)
    theirs = lm.hf.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(IDS))
    assert [t.id for t in ours.tokens] == theirs[0, IDS.shape[1] :].tolist()


def while_writing(lm: lk.LanguageModel) -> None:
    """What is read with the cache on is what a run over prompt and text has at the same places, all sites at once;
    writing what is there changes nothing, and writing something else does what it does in that run. Texts of a batch
    are those that are written alone.
    """
    plain = lm.generate(IDS, max_new_tokens=5)
    by_key = ("k_pre", "k", "v", "scores", "pattern")
    sites = []
    kinds = [name for name, kind in KINDS.items() if kind.by_layer and kind.by_position]
    for site in (f"{kind}.{n}" for kind in kinds for n in layers_with(lm, kind)):
        kind, layer = site.split(".")
        if kind in by_key and adds_keys(lm, int(layer)):
            with pytest.raises(ValueError, match=f"{re.escape(site)}: layer {layer} of .* adds compressed keys"):
                lm.generate(IDS, read=[site])
        else:
            sites.append(site)
    sites += here(lm, "embed", "final_norm")
    read = lm.generate(IDS, max_new_tokens=5, read=sites, read_at="all")
    assert read.record.ids == plain.record.ids
    whole = lm.run(torch.cat([IDS, torch.tensor([read.record.ids])], 1), read=sites)
    for site in sites:
        assert read[site].shape == whole[site][0].shape
        close(read[site], whole[site][0])
    writable = [site for site in sites if KINDS[Site.parse(site).kind].writable]
    for nothing in (lambda x: x, None):
        write = {site: nothing or read[site] for site in writable}
        again = lm.generate(IDS, max_new_tokens=len(plain.record), write=write)
        assert again.record.ids == plain.record.ids
        close(*(torch.tensor(one.record.rows["logprob"].copy()) for one in (again, plain)))
    some = ("k.", "pattern.", "z.", "k_pre.", "scores.", "mlp_in.", "mlp_up.")
    for site in dict.fromkeys([*(s for s in sites if s.startswith(some)), sites[-1]]):
        write = {site: lambda x: x * 0.5}
        other = lm.generate(IDS, max_new_tokens=5, write=write).record
        logits = lm.run(torch.cat([IDS, torch.tensor([other.ids])], 1), write=write).logits[0, IDS.shape[1] - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(other.ids)[:, None])[:, 0]
        close(torch.tensor(other.rows["logprob"].copy()), expected)
    settings = {"samples": 2, "seed": 1, "temperature": 1.0, "max_new_tokens": 4, "read": sites[-4:]}
    if lm.config.model_type in MIXES_ROWS:
        with pytest.raises(ValueError, match="mixes the rows of a batch while it writes"):
            lm.generate(IDS, batch=2, **settings)
        return
    for one, other in zip(lm.generate(IDS, batch=2, **settings), lm.generate(IDS, **settings), strict=True):
        assert one.record.ids == other.record.ids
        for site in sites[-4:]:
            close(one[site], other[site])


def clean_up(lm: lk.LanguageModel) -> None:
    """After an exception in the middle of a run no hook of ours is left, and the logits are the same."""
    plain = lm.run(IDS).logits

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    for kind in here(lm, "embed", "resid_post", "pattern", "head_out"):
        with pytest.raises(RuntimeError, match="on purpose"):
            lm.run(IDS, write={f"{kind}.{layers_with(lm, kind)[-1]}": fail})
    with pytest.raises(RuntimeError, match="on purpose"):
        lm.generate(IDS, read=["embed"], write={"embed": fail}, write_at="written")
    hooks = [h for m in lm.hf.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not [h for h in hooks if getattr(h, "__module__", "").startswith("labkit")]
    assert torch.equal(lm.run(IDS).logits, plain)


PROMISES: dict[str, Callable[[lk.LanguageModel], None]] = {
    "logits": logits,
    "resid": resid,
    "attn/mlp out": lambda lm: written_back(lm, "attn_out", "mlp_out", "mlp_act", "latent"),
    "attn/mlp in": inputs,
    "gates": gates,
    "before rotary": before_rotary,
    "q/k/v": lambda lm: written_back(lm, "q", "k", "v"),
    "scores": scores,
    "pattern": pattern,
    "z": lambda lm: written_back(lm, "z"),
    "head_out": head_out,
    "router": router,
    "state": state,
    "final norm": final_norm,
    "direct": direct,
    "fast = naive": grid,
    "generation": generation,
    "clean up": clean_up,
    "while writing": while_writing,
}


def conformance(lm: lk.LanguageModel, promises: Iterable[str] = PROMISES) -> dict[str, str]:
    """Each promise: `yes`, `-` (no such site), `slow` (kept, one whole run a cell), or `no: ` and what went wrong."""
    row = {}
    for name in promises:
        try:
            PROMISES[name](lm)
            row[name] = "yes"
        except Absent:
            row[name] = ABSENT
        except Slow:
            row[name] = "slow"
        except Exception as error:
            row[name] = f"no: {type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}".strip()
    return row


def passes(row: dict[str, str]) -> bool:
    return not any(value.startswith("no") for value in row.values())


def model(model_type: str, bits: int, folder: Path) -> lk.LanguageModel:
    """A tiny model of a type: in 32 bits as made, in 4 bits saved to a folder and loaded as any model is."""
    hf = tiny(model_type)
    if bits == 32:
        return lk.LanguageModel(hf, tokenizer(), name=model_type, bits=32)
    hf.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return lk.load(folder, bits=bits, dtype=torch.float32, device="cpu", progress=False)
