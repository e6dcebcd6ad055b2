"""Where the host waits for a device: a stated number of times for a pass, a grid and a token, whatever their size.

On a GPU each wait leaves it idle until the host has gone on. `tests/elsewhere.py` counts them on the CPU.
"""

from contextlib import suppress
from functools import lru_cache

import pytest
import torch
import transformers
from elsewhere import WrongDevice, elsewhere, moved
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, tokenizer
from packaging.version import Version
from shrink import small_config
from transformers import AutoModelForCausalLM

import labkit as lk
from labkit.activations import metrics
from labkit.attention_maps import head_scores
from labkit.engine import cells, wavefront
from labkit.engine.wavefront import Wavefront
from labkit.patching import patch as patching
from labkit.steering import vector

P = (IDS, CORRUPT_IDS, ANSWER, FOIL)
NO = {"progress": False}

RUN = {
    "activations/batch.py:logits _local_scalar_dense": 1,  # transformers looks whether the mask has padding
    "text/encode.py:_encoded to the device": 1,
}
# What a pair costs once: its ids as text and as a recipe, the two plain runs, and what rounding leaves to be seen.
PAIR = {
    "activations/unembedding.py:last_logits _local_scalar_dense": 1,
    "patching/gap.py:measured _local_scalar_dense": 4,
    "patching/gap.py:measured equal": 1,
    "patching/pair_runs.py:_run_both equal": 1,
    "results/recipe.py:recipe_of tolist": 4,
    "text/encode.py:following tolist": 2,
    "text/encode.py:_encoded to the device": 2,
    "text/pair.py:_pair tolist": 2,
}
GRID = PAIR | {
    "models/devices.py:done cpu": 1,
    "patching/pair_runs.py:first _local_scalar_dense": 2,
    "patching/pair_runs.py:first nonzero": 2,
    "patching/patch.py:_prepare _local_scalar_dense": 2,
    "patching/patch.py:read cpu": 1,  # a batch of cells
}
ATTRIBUTION = PAIR | {
    "activations/unembedding.py:last_logits _local_scalar_dense": 2,
    "models/devices.py:done cpu": 2,
    "patching/pair_runs.py:first _local_scalar_dense": 1,
    "patching/pair_runs.py:first nonzero": 1,
    "patching/patch.py:_prepare _local_scalar_dense": 2,
}
PATHS = {name: n for name, n in PAIR.items() if "_run_both" not in name} | {
    "activations/unembedding.py:last_logits _local_scalar_dense": 2,
    "patching/paths.py:_measure _local_scalar_dense": 2,
    "patching/paths.py:_prepare nonzero": 1,
    "patching/paths.py:_values cpu": 1,
}
EDGES = {name: n for name, n in PAIR.items() if "_run_both" not in name} | {
    "circuits/prepare.py:prepared _local_scalar_dense": 2,
    "engine/block_runner.py:_equal equal": 3,  # what all blocks of two runs get besides the residual stream
    "patching/pair_runs.py:_run_both equal": 1,
    "text/pair.py:differ nonzero": 1,
    "text/pair.py:differ tolist": 1,
}
BY_LAYER = {
    "circuits/edge_attribution.py:_products cpu"
}  # every layer's edges, and the logits', are shown as they come
DIRECT = {
    "activations/unembedding.py:last_logits _local_scalar_dense": 1,
    "lens/direct_attribution.py:__call__ _local_scalar_dense": 1,
    "lens/direct_attribution.py:of _local_scalar_dense": 9,
    "models/devices.py:done cpu": 1,
    "text/encode.py:_encoded to the device": 1,
    "text/encode.py:_encoded tolist": 1,
    "text/encode.py:tokens_of tolist": 1,
}
VIEW = {
    "activations/unembedding.py:last_logits _local_scalar_dense": 1,
    "attention_maps/head_scores.py:__init__ cpu": 1,
    "attention_maps/patterns.py:pattern cpu": 1,
    "models/devices.py:done cpu": 2,  # pictures and scores of all heads
    "text/encode.py:_encoded to the device": 1,
    "text/encode.py:_encoded tolist": 1,
    "text/encode.py:tokens_of tolist": 1,
}
LENS = {
    "activations/unembedding.py:last_logits _local_scalar_dense": 1,
    "lens/logit_lens.py:logit_lens tolist": 1,
    "models/devices.py:done cpu": 2,
    "text/encode.py:_encoded to the device": 1,
    "text/encode.py:_encoded tolist": 1,
    "text/encode.py:tokens_of tolist": 1,
}


def steered(lm: lk.LanguageModel) -> None:
    ahead = lk.SteeringVector.of(torch.ones(lm.d_model), 0)
    with lm.steer(ahead, 0.1, layer=range(lm.n_layers)), lm.steer(ahead, manner="clamp", high=1.0):
        lm.run(IDS)


TOKENS = 4
# In transformers 5.17 generation itself waits once more a token than in 5.23, from the third on.
OLDER = Version(transformers.__version__) < Version("5.23")
MORE = TOKENS - 2 if OLDER else 0
TEXT = {  # three a token: is it the last (transformers), which one is it, and what else was likely
    "generation/loop.py:extend_records _local_scalar_dense": TOKENS + 4 + MORE,
    "generation/loop.py:extend_records cpu": TOKENS + 1,
    "generation/loop.py:extend_records list to the device": 2,
    "generation/token_table.py:row cpu": TOKENS,
    "text/encode.py:_encoded to the device": 1,
    "text/encode.py:_encoded tolist": 1,
    "text/encode.py:tokens_of tolist": 1,
}
READING = {
    "generation/loop.py:__call__ _local_scalar_dense": TOKENS - 1,  # does this token's pass have padding?
    "generation/loop.py:extend_records _local_scalar_dense": TOKENS + 3 + MORE + OLDER,
    "generation/loop.py:extend_records cpu": TOKENS + 2,
    "generation/loop.py:extend_records list to the device": 1,
    "generation/token_table.py:row cpu": TOKENS,
    "models/devices.py:on_the_cpu cpu": 1,  # 32 MB of what was read, of all sites and layers
    "text/encode.py:_encoded to the device": 1,
    "text/encode.py:_encoded tolist": 1,
    "text/encode.py:tokens_of tolist": 1,
}


def viewed(lm: lk.LanguageModel) -> None:
    maps = lk.attention(lm, IDS)
    maps.thumbnails()
    maps.pattern(lm.n_layers - 1, 0)


ASKED = {
    "run": (lambda lm: lm.run(IDS), RUN),
    "run, reading": (lambda lm: lm.run(IDS, read=["resid_pre", "pattern", "z", "scores", "q_pre", "mlp_gate"]), RUN),
    "run, writing": (lambda lm: lm.run(IDS, write={f"z.{n}": lambda x: x * 0.5 for n in range(lm.n_layers)}), RUN),
    "grid": (lambda lm: lk.patch(lm, *P, **NO), GRID),
    "grid of heads": (lambda lm: lk.patch(lm, *P, site="z", **NO), GRID),
    "grid of patterns": (lambda lm: lk.patch(lm, *P, site="pattern", **NO), GRID),
    "grid of neurons": (lambda lm: lk.patch(lm, *P, site="mlp_act", **NO), GRID),
    "attribution": (lambda lm: lk.patch(lm, *P, method="attribution", **NO), ATTRIBUTION),
    "paths": (lambda lm: lk.path_patch(lm, *P, **NO), PATHS),
    "lens": (lambda lm: lk.logit_lens(lm, IDS), LENS),
    "edges": (lambda lm: lk.edge_attribution(lm, *P, **NO), EDGES),
    "direct attribution": (lambda lm: lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL), DIRECT),
    "attention view": (viewed, VIEW),
    "steered run": (steered, RUN),
    "text": (lambda lm: lm.generate(IDS, max_new_tokens=TOKENS), TEXT),
    "text, reading": (lambda lm: lm.generate(IDS, max_new_tokens=TOKENS, read=["resid_post", "z"]), READING),
}


@lru_cache
def layers(n: int) -> lk.LanguageModel:
    """A tiny Llama of n layers, on the device."""
    config = small_config("llama")
    config.num_hidden_layers = n
    torch.manual_seed(0)
    return lk.wrap(moved(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()), tokenizer())


def warm(lm: lk.LanguageModel, ask) -> dict[str, int]:
    """The waits of the second time: what a model is looked at for once is not among them."""
    with elsewhere():
        ask(lm)
    with elsewhere() as waits:
        ask(lm)
    return dict(waits)


@pytest.mark.parametrize("asked", ASKED)
def test_the_host_waits_as_often_for_two_layers_as_for_six_and_only_at_these_places(asked):
    ask, table = ASKED[asked]
    for n in (2, 6):
        waits = warm(layers(n), ask)
        by_layer = {place: waits.pop(place) for place in BY_LAYER if place in waits}
        assert waits == table
        assert by_layer == (dict.fromkeys(BY_LAYER, n + 1) if asked == "edges" else {})


def test_a_batch_of_cells_costs_one_wait_and_a_token_three(monkeypatch):
    lm, asked = layers(2), ASKED["grid"][0]
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 10)
    waits = warm(lm, asked)
    batches = waits.pop("patching/patch.py:read cpu")
    assert batches > 3
    estimate = {  # of several batches those with the strongest cells come first
        "activations/unembedding.py:last_logits _local_scalar_dense": 2,
        "models/devices.py:done cpu": 2,
    }
    assert waits == {name: n for name, n in (GRID | estimate).items() if "read cpu" not in name}
    more = warm(lm, lambda lm: lm.generate(IDS, max_new_tokens=TOKENS + 3))
    assert sum(more.values()) == sum(TEXT.values()) + 3 * (3 + OLDER)


class Forgets:
    """PyTorch as a module sees it, where one function forgets its device."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str):
        found = getattr(torch, name)
        return (lambda *args, device=None, **how: found(*args, **how)) if name == self.name else found


def before(monkeypatch, owner, name: str, fault) -> None:
    """Something that is done with a function's arguments before it."""
    real = getattr(owner, name)

    def faulty(*args, **how):
        fault(*args)
        return real(*args, **how)

    monkeypatch.setattr(owner, name, faulty)


def on_the_host(numbers, device):
    return torch.as_tensor(numbers)


FAULTS = {
    "an index on the CPU": ("grid", lambda m: m.setattr(wavefront, "to_index", on_the_host)),
    "a mask made on the CPU": ("grid", lambda m: m.setattr(wavefront, "torch", Forgets("ones"))),
    "positions made without a device": ("grid of heads", lambda m: m.setattr(cells, "torch", Forgets("arange"))),
    ".item() in the layer loop": (
        "grid",
        lambda m: before(m, Wavefront, "_block", lambda self, layer, groups, *_: groups[0].x.sum().item()),
    ),
    ".tolist() in the layer loop": (
        "grid",
        lambda m: before(m, wavefront, "put_rows", lambda x, *_: x[0, 0].tolist()),
    ),
    "a boolean index": ("grid of heads", lambda m: before(m, wavefront, "put_rows", lambda x, *_: x[x > 0])),
    ".cpu() inside a block": (
        "grid of patterns",
        lambda m: before(m, Wavefront, "_attend", lambda self, layer, groups, *_: groups[0].x.cpu()),
    ),
    "zeros without a device": ("head scores", lambda m: m.setattr(head_scores, "torch", Forgets("zeros"))),
    "an answer's id on the CPU": (
        "grid",
        lambda m: m.setattr(metrics, "columns_of", lambda x, columns: x[..., torch.tensor(columns)]),
    ),
    "a steering vector left on the CPU": ("steered run", lambda m: m.setattr(vector, "sent", lambda x, device: x)),
}


FAULTY = ASKED | {"head scores": (lambda lm: lk.attention(lm, IDS).scores(), None)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_only_a_gpu_would_show_is_found_here(fault, monkeypatch):
    asked, plant = FAULTS[fault]
    ask, table = FAULTY[asked]
    lm = layers(2)
    usual = warm(lm, ask)
    assert table is None or usual == table
    plant(monkeypatch)
    with suppress(WrongDevice):
        assert warm(lm, ask) != usual
