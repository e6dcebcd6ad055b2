"""A grid while it is computed: in chunks and in order, out of memory, interrupted, cancelled, from two threads."""

import threading
import warnings

import numpy as np
import pytest
import torch
from naive import close
from pair import CLEAN, CORRUPT, LONG, PAIR

import labkit as lk
from labkit.activations.hooks import hooked
from labkit.models.handle import PerModel
from labkit.patching import pair_runs
from labkit.patching import patch as patching
from labkit.patching.patch import CHECKED, PatchJob


def test_small_chunks_give_the_same_grid(lm32, monkeypatch):
    whole = lk.patch(lm32, *PAIR, progress=False)
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 40)
    job = PatchJob(lm32, *PAIR)
    steps = list(job.steps())
    assert len(steps) > 5
    assert steps == sorted(steps)
    assert np.abs(job.grid.values - whole.values).max() < 1e-4


def test_results_stream_in_order_of_estimated_importance(lm32, monkeypatch):
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 60)
    job = PatchJob(lm32, *PAIR)
    effects, seen = [], np.zeros((lm32.n_layers, 14), bool)
    for _ in job.steps():
        new = ~np.isnan(job.grid.values) & ~seen
        seen |= new
        effects.append(np.abs(job.grid.values[new] - job.grid.corrupt).max(initial=0))
    first, last = np.mean(effects[1:4]), np.mean(effects[-3:])
    assert first > last


def test_out_of_memory_halves_the_batch_and_goes_on(lm32, monkeypatch):
    whole = lk.patch(lm32, *PAIR, progress=False)
    job = PatchJob(lm32, *PAIR)
    real, sizes = job._values, []

    def tight(cells):
        sizes.append(len(cells))
        if len(cells) > 40:
            raise torch.OutOfMemoryError("out of memory")
        return real(cells)

    monkeypatch.setattr(job, "_values", tight)
    list(job.steps())
    assert max(sizes) > 40
    assert np.abs(job.grid.values - whole.values).max() < 1e-4


def test_an_interrupt_keeps_what_was_computed_and_the_next_call_works(lm, monkeypatch):
    before = lm.run(CLEAN).logits
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 60)
    block = lm.anatomy.blocks[20].module
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    CHECKED[lm].add("resid_pre")
    handle = block.register_forward_pre_hook(interrupt)
    try:
        with pytest.warns(UserWarning, match=r"interrupted: \d+ of 420 cells are in the grid"):
            partial = lk.patch(lm, *PAIR, progress=False)
    finally:
        handle.remove()
    done = ~np.isnan(partial.values)
    assert not partial.complete
    assert 9 * 30 < done.sum() < 420
    assert torch.equal(lm.run(CLEAN).logits, before)
    monkeypatch.undo()
    whole = lk.patch(lm, *PAIR, progress=False)
    assert whole.complete
    assert close(lm, partial.values[done], whole.values[done])


def test_a_cancelled_job_keeps_what_is_done_and_can_go_on(lm32, monkeypatch):
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 60)
    job = PatchJob(lm32, *PAIR)
    for n, _ in enumerate(job.steps()):
        if n == 3:
            job.cancel()
    kept = job.grid.values.copy()
    assert 0 < job.done < job.total
    list(job.steps())
    assert job.grid.complete
    assert np.array_equal(job.grid.values[~np.isnan(kept)], kept[~np.isnan(kept)])


def test_a_job_cancelled_before_it_begins_does_nothing_and_can_go_on(lm4):
    job = PatchJob(lm4, *PAIR, site="z")
    job.cancel()
    list(job.steps())
    assert job.done < job.total
    list(job.steps())
    assert job.done == job.total


def test_cancelling_from_another_thread_ends_soon(lm32):
    clean, corrupt = LONG.format("John", "John"), LONG.format("Mary", "Mary")
    job = PatchJob(lm32, clean, corrupt, " Mary", " John")
    assert job.ready()
    assert job.estimates.shape == job.grid.values.shape  # cells go in the order of these
    blocks, cancelled_at = [0], []
    handles = [block.module.register_forward_pre_hook(lambda *_: blocks.__setitem__(0, blocks[0] + 1))
               for block in lm32.anatomy.blocks]  # fmt: skip
    mlps = [block.mlp.register_forward_pre_hook(lambda *_: cancel()) for block in lm32.anatomy.blocks[12:13]]

    def cancel():
        """From another thread, in the middle of a pass."""
        if not cancelled_at:
            thread = threading.Thread(target=job.cancel)
            thread.start()
            thread.join()
            cancelled_at.append(blocks[0])

    try:
        list(job.steps())
    finally:
        for handle in (*handles, *mlps):
            handle.remove()
    assert cancelled_at
    assert blocks[0] - cancelled_at[0] <= 1  # it ends before the next block
    assert job.done < job.total


@pytest.mark.long
def test_fifty_runs_and_cancels_leave_the_same_logits_and_no_hook(lm4):
    before = lm4.run(CLEAN).logits
    for _ in range(50):
        job = PatchJob(lm4, *PAIR, site="z")
        steps = job.steps()
        next(steps)
        job.cancel()
        list(steps)
    assert torch.equal(lm4.run(CLEAN).logits, before)


def test_two_threads_that_patch_one_model_take_turns(lm32):
    alone = lk.patch(lm32, *PAIR, layers=[5], progress=False).values
    found, problems = [], []

    def work():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found.append(lk.patch(lm32, *PAIR, layers=[5], progress=False).values)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert all(np.abs(values - alone).max() < 1e-4 for values in found)


def test_a_model_that_cannot_be_restarted_falls_back_to_whole_runs_with_a_warning(lm32, monkeypatch):
    fast = lk.patch(lm32, *PAIR, layers=[5], progress=False)

    def refuse(base):
        raise patching.Unsupported("no readout")

    monkeypatch.setattr(pair_runs, "readout_of", refuse)
    with pytest.warns(UserWarning, match="one full forward pass per cell"):
        whole = lk.patch(lm32, *PAIR, layers=[5], progress=False)
    assert np.abs(fast.values - whole.values).max() < 1e-4
    estimate = lk.patch(lm32, *PAIR, layers=[5], method="attribution", progress=False)  # restarts nothing
    assert estimate.complete


def test_a_failure_half_way_hands_over_what_was_computed(lm32, monkeypatch):
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 60)
    seen = []

    def breaks(logits):
        seen.append(1)
        if len(seen) > 6:
            raise RuntimeError("a metric of my own")
        return logits[:, 0]

    CHECKED[lm32].add("resid_pre")
    with pytest.raises(RuntimeError, match="a metric of my own") as caught:
        lk.patch(lm32, CLEAN, CORRUPT, metric=breaks, progress=False)
    assert 270 < (~np.isnan(caught.value.grid.values)).sum() < 420
    assert "cells were done" in caught.value.__notes__[0]


def test_a_wrong_fast_path_is_found_out_and_not_used(lm32, monkeypatch):
    right = lk.patch(lm32, *PAIR, layers=[5], site="attn_out", progress=False)
    monkeypatch.setattr(patching, "CHECKED", PerModel(set))
    real = patching.Wavefront.__call__
    monkeypatch.setattr(patching.Wavefront, "__call__", lambda self, cells, **kw: real(self, cells, **kw) * 1.5 + 1)
    with pytest.warns(UserWarning, match="where whole runs gave"):
        grid = lk.patch(lm32, *PAIR, layers=[5], site="attn_out", progress=False)
    assert np.abs(grid.values - right.values).max() < 1e-4


@pytest.mark.parametrize("site", ["resid_pre", "z", "scores"])
def test_both_prompts_of_a_grid_are_run_once(lm32, site):
    """Their logits and what is put in come from the same pass."""
    ask = {"site": site, "layers": [20, 21], "progress": False}
    lk.patch(lm32, *PAIR, **ask)  # the first grid of a site checks some cells by whole passes
    rows: list[int] = []
    with hooked(lm32, set(), {("embed", 0): lambda x: rows.append(len(x)) or x}):
        lk.patch(lm32, *PAIR, **ask)
    assert rows == [2]
