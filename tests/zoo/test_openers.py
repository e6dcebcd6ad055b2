"""How answers begin, read once from the cache: the same in every way to keep a cache, or without one."""

import numpy as np
import pytest
import torch
from conformance import tokenizer
from shrink import tiny

import labkit as lk
from labkit.audits.openers import opener_logprobs

OPENERS = [(5,), (6, 7), (6, 8), (6, 9, 10), (11, 12, 13)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gpt_oss", "bloom", "deepseek_v3", "jamba", "qwen3_next", "mamba", "minimax"]
)
def test_beginnings_after_a_prompt_read_once_are_those_after_the_prompt_read_again(name):
    lm = lk.wrap(tiny(name), tokenizer())
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, min(lm.n_vocab, 60), (1, length), generator=draw) for length in (7, 7, 9, 12)]
    together = opener_logprobs(lm, prompts, OPENERS)
    for n, prompt in enumerate(prompts):
        for m, ids in enumerate(OPENERS):
            logprobs = lm.run(torch.cat([prompt, torch.tensor([ids])], 1)).logits[0].double().log_softmax(-1)
            whole = sum(float(logprobs[prompt.shape[1] - 1 + k, id]) for k, id in enumerate(ids))
            np.testing.assert_allclose(together[n, m], whole, atol=1e-3)
