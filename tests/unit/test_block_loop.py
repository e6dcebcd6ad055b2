"""The other ways of packed rows through the blocks, off unless asked for, give the numbers of the usual one."""

import numpy as np
import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud, model

import labkit as lk
from labkit.engine import block_loop as loop
from labkit.engine.block_loop import Rows, Together, block_loop

P = (IDS, CORRUPT_IDS, ANSWER, FOIL)
# Nothing here needs a C++ compiler. "aot_eager" traces blocks as "inductor" does, and then runs PyTorch's operations.
WAYS = {
    "flex": {"flex": True, "backend": "eager"},
    "compiled": {"compiled": True, "backend": "aot_eager"},
    "both": {"compiled": True, "flex": True, "backend": "eager"},
}

pytestmark = pytest.mark.filterwarnings("ignore")  # FlexAttention says that it is not compiled


@pytest.fixture
def called(monkeypatch):
    """Which of the ways were gone."""
    found: list[str] = []

    def noted(name, real):
        return lambda *args, **kwargs: (found.append(name), real(*args, **kwargs))[1]

    monkeypatch.setattr(Together, "__call__", noted("flex", Together.__call__))
    monkeypatch.setattr(loop, "_compiling", noted("compiled", loop._compiling))
    return found


def grid(lm: lk.LanguageModel, **how) -> np.ndarray:
    return lk.patch(lm, *P, progress=False, **how).values


LONG = pytest.mark.long
# Llama's way, GPT-2's with biases, a mixture of experts, and capped scores, whose attention goes the usual way.
CASES = [pytest.param("llama", "both")] + [
    pytest.param(name, way, marks=LONG)
    for name in ("llama", "gpt2", "mixtral", "gemma2")
    for way in WAYS
    if (name, way) != ("llama", "both")
]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_grids_are_those_of_the_usual_way(name, way, called):
    lm = loud(name)
    usual = grid(lm)
    assert not called
    with block_loop(**WAYS[way]):
        found = grid(lm)
    assert ("flex" in called) == ("flex" in WAYS[way] and name != "gemma2")
    assert "compiled" in called or name == "gemma2"
    np.testing.assert_allclose(found, usual, rtol=1e-4, atol=1e-4)
    assert float(np.ptp(usual)) > 0.05
    called.clear()
    np.testing.assert_array_equal(grid(lm), usual)  # and it is off again
    assert not called


def test_several_pairs_and_layers_that_are_patched_inside():
    lm = loud("llama")
    pairs = [P, (CORRUPT_IDS, IDS, FOIL, ANSWER), (IDS.flip(1), CORRUPT_IDS, ANSWER, FOIL)]
    asked = [
        lambda: np.stack([g.values for g in lk.sweep(lm, pairs, shard=3, progress=False).grids]),
        lambda: grid(lm, site="z"),
        lambda: grid(lm, site="pattern"),
        lambda: grid(lm, site="mlp_out", window=2),
        lambda: lk.patch(lm, IDS, CORRUPT_IDS, ["ab", "ac"], ["d", "aef"], progress=False).values,
    ]
    usual = [ask() for ask in asked]
    with block_loop(**WAYS["both"]):
        found = [ask() for ask in asked]
    for a, b in zip(usual, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)


@LONG
@pytest.mark.parametrize("name", ["llama", "mixtral"])  # the second with packed experts
def test_linear_layers_and_experts_in_four_bits_stay_as_they_are(name, called, tmp_path):
    lm = model(name, 4, tmp_path)
    usual = grid(lm)
    with block_loop(**WAYS["both"]):
        found = grid(lm)
    assert set(called) == {"flex", "compiled"}
    assert not [m for m in lm.hf.modules() if "forward" in m.__dict__]
    scale = max(1.0, float(np.abs(usual).max()))
    np.testing.assert_allclose(found, usual, rtol=0, atol=0.02 * scale)


def test_a_token_sees_its_own_row_up_to_itself_and_its_run_before_that():
    """Several blocks of 128 tokens, two runs, and spare tokens at the end: each group against plain attention."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda heads, n: torch.randn(1, heads, n, 8, generator=generator)  # noqa: E731
    length, scale = 40, 0.3
    rows = [Rows(0, 0, length, 2), Rows(0, 11, length - 11, 4), Rows(0, 39, 1, 3), Rows(1, 5, length - 5, 6)]
    spare, tokens = 7, sum(r.length * r.count for r in rows)
    assert tokens > 2 * loop.BLOCK
    q, k, v = draw(4, tokens + spare), draw(2, tokens + spare), draw(2, tokens + spare)
    lanes = {n: (draw(2, length), draw(2, length)) for n in (0, 1)}

    def call(k, v, q=None):
        return loop.AttentionCall(torch.nn.Identity(), q, k, v, None, scale)

    stored = {n: call(*pair) for n, pair in lanes.items()}
    together = Together(rows, spare, q.device)
    with block_loop(flex=True, backend="eager"):
        z = together(call(k, v, q), stored)  # (1, tokens, head, d_head)
    begin = 0
    for one in rows:
        for _ in range(one.count):
            mine = slice(begin, begin + one.length)
            keys, values = (
                torch.cat([before[:, :, : one.start], own[:, :, mine]], 2)
                for before, own in zip(lanes[one.lane], (k, v), strict=True)
            )
            mask = torch.ones(one.length, length, dtype=torch.bool).tril(one.start)
            expected = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, mine], keys, values, attn_mask=mask, scale=scale, enable_gqa=True
            )
            torch.testing.assert_close(z[:, mine], expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
            begin += one.length
    # what a compiled kernel leaves out are blocks of keys of which no query of a block sees any
    whole = together.mask.to_dense()[0, 0].bool()
    ids = [torch.arange(n) for n in (tokens + spare, k.shape[2] + sum(together.before.values()))]
    seen = together.mask.mask_mod(torch.zeros(()), torch.zeros(()), ids[0][:, None], ids[1][None])
    at = seen.nonzero() // loop.BLOCK
    assert bool(whole[at[:, 0], at[:, 1]].all())
    assert not bool(whole.all())
