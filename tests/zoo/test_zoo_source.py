"""Patching between the precisions of one model, on every architecture: as two whole forwards give it."""

import numpy as np
import pytest
from conformance import ANSWER, FOIL, IDS, close, model
from test_zoo import zoo

import labkit as lk
from labkit.activations.sites import layers_with

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ENDS = {"denoise": ("clean", "corrupt"), "noise": ("corrupt", "clean")}
MORE_AFTER_THE_LAST_BLOCK = ("gemma3n_text", "modernbert-decoder")  # linear layers, which have 4 bits too
NO_STREAM = ("hrm_text",)


@pytest.mark.parametrize("name", zoo())
def test_a_cell_is_what_two_forwards_give(name, tmp_path):
    lm32, lm4 = model(name, 32, tmp_path), model(name, 4, tmp_path)
    for site, direction in (("resid_pre", "denoise"), ("mlp_out", "noise"), ("z", "denoise")):
        if not layers_with(lm4, site):
            continue
        job = lk.PatchJob(
            lm4, IDS, answer=ANSWER, foil=FOIL, source=lm32, site=site, direction=direction, progress=False
        )
        for _ in job.steps():
            pass
        assert job.grid.complete
        source, base = (job.runs.models[end] for end in ENDS[direction])
        for cell in (job.cells[0], job.cells[len(job.cells) // 2], job.cells[-1]):
            place = ".".join(str(part) for part in (site, cell.layer, cell.head) if part is not None)
            place += "" if cell.position is None else f"@{cell.position}"
            logits = base.run(IDS, write={place: source.run(IDS, read=[place])[place]}).logits[0, -1]
            fast = job.grid.values.reshape(-1)[job.cells.index(cell)]
            close(logits[ANSWER] - logits[FOIL], logits.new_tensor(np.float32(fast)))


@pytest.mark.parametrize("name", zoo())
def test_with_everything_put_in_the_logits_are_those_of_the_other(name, tmp_path):
    lm32, lm4 = model(name, 32, tmp_path), model(name, 4, tmp_path)
    if name in NO_STREAM:
        assert not layers_with(lm4, "resid_post")
        return
    last = f"resid_post.{lm32.n_layers - 1}"
    put = lm4.run(IDS, write={last: lm32.run(IDS, read=[last])[last]}).logits
    # what is left are the final norm and the unembedding, which stay in 16 bits or more
    close(put, lm32.run(IDS).logits, 0.1 if name in MORE_AFTER_THE_LAST_BLOCK else 0.02)
