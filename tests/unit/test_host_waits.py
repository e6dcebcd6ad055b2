"""Where the host waits for a device: a stated number of times for a pass, a grid and a token, whatever their size.

On a GPU each wait leaves it idle until the host has gone on. `tests/elsewhere.py` counts them on the CPU.
"""

from functools import lru_cache

import pytest
import torch
from elsewhere import elsewhere, moved
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, tokenizer
from shrink import small_config
from transformers import AutoModelForCausalLM

import labkit as lk

P = (IDS, CORRUPT_IDS, ANSWER, FOIL)
NO = {"progress": False}

RUN = {"activations/batch.py:logits _local_scalar_dense": 1}
# What a pair costs once: its ids as text and as a recipe, the two plain runs, and what rounding leaves to be seen.
PAIR = {
    "activations/unembedding.py:last_logits _local_scalar_dense": 1,
    "patching/gap.py:measured _local_scalar_dense": 4,
    "patching/gap.py:measured equal": 1,
    "patching/pair_runs.py:_run_both equal": 1,
    "results/recipe.py:recipe_of tolist": 4,
    "text/encode.py:following tolist": 2,
    "text/pair.py:align tolist": 2,
}
GRID = PAIR | {
    "models/devices.py:done cpu": 1,
    "patching/pair_runs.py:first _local_scalar_dense": 2,
    "patching/pair_runs.py:first nonzero": 2,
    "patching/patch.py:_prepare _local_scalar_dense": 2,
    "patching/patch.py:read cpu": 1,  # a batch of cells
}
LENS = {
    "activations/unembedding.py:last_logits _local_scalar_dense": 1,
    "lens/logit_lens.py:logit_lens tolist": 1,
    "models/devices.py:done cpu": 2,
    "text/encode.py:_encoded tolist": 1,
    "text/encode.py:tokens_of tolist": 1,
}
PATHS = PAIR | {}
TOKENS = 4
TEXT = {}
ASKED = {
    "run": (lambda lm: lm.run(IDS), RUN),
    "run, reading": (lambda lm: lm.run(IDS, read=["resid_pre", "pattern", "z", "scores", "q_pre", "mlp_gate"]), RUN),
    "run, writing": (lambda lm: lm.run(IDS, write={f"z.{n}": lambda x: x * 0.5 for n in range(lm.n_layers)}), RUN),
    "grid": (lambda lm: lk.patch(lm, *P, **NO), GRID),
    "grid of heads": (lambda lm: lk.patch(lm, *P, site="z", **NO), GRID),
    "grid of patterns": (lambda lm: lk.patch(lm, *P, site="pattern", **NO), GRID),
    "grid of neurons": (lambda lm: lk.patch(lm, *P, site="mlp_act", **NO), GRID),
    "attribution": (lambda lm: lk.patch(lm, *P, method="attribution", **NO), GRID),
    "paths": (lambda lm: lk.path_patch(lm, *P, **NO), PATHS),
    "lens": (lambda lm: lk.logit_lens(lm, IDS), LENS),
    "text": (lambda lm: lm.generate(IDS, max_new_tokens=TOKENS), TEXT),
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
    two, six = (warm(layers(n), ask) for n in (2, 6))
    assert two == six
    assert six == table
