"""The promises that are cheap to look at, where the model computes in float16, as on GPUs without bfloat16."""

import numpy as np
import pytest
import torch
from conformance import ANSWER, CORRUPT, FOIL, IDS, tokenizer
from shrink import tiny
from test_zoo import zoo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import labkit as lk
from labkit.activations.site_kinds import KINDS
from labkit.activations.sites import Site, layers_with
from labkit.patching.patch import PatchJob

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TOLERANCE = 1e-2  # of the largest logit: float16 has eleven bits, and each of a few layers rounds
# in transformers itself one matrix or state of these stays in float32 and meets float16
TRANSFORMERS_FAILS = ("inkling2_text", "xlstm")


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, of the largest number."""
    a, b = a.float(), b.float()
    assert bool(torch.isfinite(a).all())
    assert bool(torch.isfinite(b).all())
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


@pytest.mark.parametrize("name", zoo())
def test_a_model_in_float16_keeps_the_cheap_promises(name):
    lm = lk.wrap(tiny(name).half(), tokenizer())
    assert lm.dtype == torch.float16
    if name in TRANSFORMERS_FAILS:
        with torch.no_grad(), pytest.raises(RuntimeError, match="same dtype, but got: float != c10::Half"):
            lm.hf(IDS, use_cache=False)
        return
    with torch.no_grad():
        plain = lm.hf(IDS, use_cache=False).logits
    kinds = [kind for kind in ("resid_pre", "resid_mid", "attn_out", "mlp_out", "z") if layers_with(lm, kind)]
    run = lm.run(IDS, read=kinds)
    assert off(run.logits, plain) <= TOLERANCE
    for kind in kinds:
        site = f"{kind}.{layers_with(lm, kind)[-1]}"
        assert run[site].dtype != torch.bfloat16, f"{site} is in bfloat16"
        assert bool(torch.isfinite(run[site]).all()), f"{site} overflows"
        assert off(lm.run(IDS, write={site: run[site]}).logits, plain) <= TOLERANCE, f"writing {site} back"
    if "resid_pre" not in kinds:  # its layers run more than once
        return
    job = PatchJob(lm, IDS, CORRUPT, ANSWER, FOIL)
    list(job.steps())
    clean = lm.run(IDS, read=["resid_pre"])
    for i, cell in enumerate(job.cells):
        if i % 7 == 5:
            at = Site("resid_pre", cell.layer, None, cell.position)
            logits = lm.run(CORRUPT, write={at: clean[at]}).logits[0, -1].float()
            worst = abs(float(job.grid.values.reshape(-1)[i]) - float(logits[ANSWER] - logits[FOIL]))
            assert worst <= TOLERANCE * max(1.0, float(logits.abs().max())), f"cell {at}"


class Dtypes(TorchDispatchMode):
    """The dtypes of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_nothing_is_bfloat16_in_a_model_of_four_bits_that_computes_in_float16(name, tmp_path):
    tiny(name).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lm = lk.load(tmp_path, bits=4, dtype=torch.float16, device="cpu", progress=False)
    assert lm.dtype == torch.float16
    kept = [*lm.hf.parameters(), *lm.hf.buffers()]
    states = [state for x in kept if (state := getattr(x, "quant_state", None)) is not None]
    assert states
    assert torch.bfloat16 not in {x.dtype for x in (*kept, *states)}
    with Dtypes() as dtypes:
        run = lm.run(IDS, read=["resid_post", "z"])
        lm.generate(IDS, max_new_tokens=2)
        lk.patch(lm, IDS, CORRUPT, ANSWER, FOIL, progress=False)
    assert torch.float16 in dtypes.seen
    assert torch.bfloat16 not in dtypes.seen
    assert run["resid_post.1"].dtype == torch.float16


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_a_residual_stream_near_the_largest_float16_makes_nothing_infinite(name):
    """As in Gemma and Qwen, whose largest activations are that large: what squares or sums them has to be wider."""
    lm = lk.wrap(tiny(name).half(), tokenizer())
    kinds = [kind for kind in KINDS if layers_with(lm, kind) and kind not in ("scores", "embed")]
    large = lambda x: (x.float() * (6e4 / x.abs().max().float())).to(x.dtype)  # noqa: E731
    run = lm.run(IDS, read=kinds, write={"resid_pre.0": large})
    assert float(run["resid_pre.0"].abs().max()) > 5e4
    sites = [f"{k}.{n}" if KINDS[k].by_layer else k for k in kinds for n in layers_with(lm, k)]
    assert not [site for site in sites if not bool(torch.isfinite(run[site]).all())]
    with torch.no_grad():  # and what the kit makes of them
        table = lm.hf.get_input_embeddings().weight
        table.copy_(table.float() * (4e4 / float(lm.run(IDS, read=["resid_pre.0"])["resid_pre.0"].abs().max())))
    assert float(lm.run(IDS, read=["resid_pre.1"])["resid_pre.1"].abs().max()) > 1e4
    lens = lk.logit_lens(lm, IDS)
    found = lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL)
    values = [lk.patch(lm, IDS, CORRUPT, ANSWER, FOIL, site=site, progress=False).values for site in ("resid_pre", "z")]
    values += [lk.patch(lm, IDS, CORRUPT, ANSWER, FOIL, method="attribution", progress=False).values]
    for numbers in (lens.kl, lens.entropy, found.attn, found.mlp, *values):
        assert np.isfinite(numbers).all()
