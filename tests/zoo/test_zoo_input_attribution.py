"""Removing a part of the prompt is, on every architecture, what a whole forward pass without it gives."""

import numpy as np
import pytest
import torch
from conformance import IDS, model
from test_zoo import zoo

import labkit as lk

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WRITTEN, OTHER = (9, 61), 33


def scored(lm, ids):
    """The log-probability of the last tokens of ids (1, seq), as many as were written, after ids without them."""
    said = torch.tensor(WRITTEN)
    with torch.no_grad():
        logits = lm.hf(torch.cat([ids, said[None, :-1]], 1), use_cache=False).logits[0, -len(said) :].float()
    return float(logits.log_softmax(-1).gather(-1, said[:, None]).sum())


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("name", zoo())
def test_removing_a_part_of_a_prompt_is_what_a_whole_run_without_it_gives(name, bits, tmp_path):
    lm = model(name, bits, tmp_path)
    result = lk.input_attribution(
        lm, IDS, written=WRITTEN, by=[(0, 1), (3, 5), (11, 12)], replace=OTHER, progress=False
    )
    found = []
    for unit in result.units:
        ids = IDS.clone()
        ids[0, unit.start : unit.stop] = OTHER
        found.append(scored(lm, IDS) - scored(lm, ids))
    np.testing.assert_allclose(result.values, found, atol=1e-4 + 0.01 * np.abs(found).max())
    assert np.abs(found).max() > 0
