"""Sweeps: averages over pairs, on any executor, resumed where they ended; and what happens when something fails."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock

import labkit as lk
from labkit.shards import workers
from labkit.shards.workers import fingerprint, free_gpu, plan_for
from labkit.sweeps import sweep as sweep_module

HERE = Path(__file__).parent
FEW = {"layers": [4, 24], "positions": [10, 14], "progress": False}  # of the indirect object: the name, and the end


@pytest.fixture(scope="module")
def pairs(lm4):
    return lk.task("indirect object").pairs(lm4, n=8)


@pytest.fixture(scope="module")
def swept(lm4, pairs):
    return lk.sweep(lm4, pairs, **FEW)


@pytest.fixture(scope="module")
def by_twos(lm4, pairs):
    """The same in shards of two: pairs that share a pass round differently from those that have one each."""
    return lk.sweep(lm4, pairs, **FEW, shard=2)


def times(store: Path) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*.npz")}


def same(a: lk.Sweep, b: lk.Sweep) -> bool:
    return a.pairs == b.pairs and all(np.array_equal(x.values, y.values) for x, y in zip(a.grids, b.grids, strict=True))


# -- averages ----------------------------------------------------------------------------------------------------------


def test_a_sweep_is_the_grids_of_its_pairs_and_their_mean(lm4, pairs, swept):
    grids = [lk.patch(lm4, *pair, **FEW) for pair in pairs]
    assert swept.complete
    assert all(np.array_equal(a.values, b.values) for a, b in zip(swept.grids, grids, strict=True))
    values = np.stack([grid.values for grid in grids]).astype(np.float64)
    assert np.allclose(swept.mean, values.mean(0))
    assert np.allclose(swept.error, values.std(0, ddof=1) / np.sqrt(8))
    clean, corrupt = (np.mean([getattr(grid, side) for grid in grids]) for side in ("clean", "corrupt"))
    assert np.allclose(swept.normalized, (values.mean(0) - corrupt) / (clean - corrupt))


def test_intervals_hold_the_mean_and_are_the_same_for_a_seed(swept):
    low, high = swept.interval()
    assert (low <= swept.normalized).all()
    assert (swept.normalized <= high).all()
    assert low[0, 0] > 0.9  # at layer 4 the answer is at the name, in every pair
    again = swept.interval(seed=0)
    assert np.array_equal(low, again[0])
    narrow = swept.interval(level=0.5)
    assert (narrow[1] - narrow[0] <= high - low).all()
    frame = swept.to_frame()
    assert list(frame.columns) == ["layer", "position", "mean", "error", "normalized", "low", "high", "pairs"]
    assert len(frame) == 4


def test_positions_of_different_layouts_are_not_averaged(lm4):
    mixed = lk.task("indirect object").pairs(lm4, n=6, aligned=False)
    swept = lk.sweep(lm4, mixed, layers=[24], progress=False)
    with pytest.raises(
        ValueError, match=r"positions cannot be averaged .* layouts: .* tokens, different at .*by_layout"
    ):
        _ = swept.mean
    parts = swept.by_layout()
    assert sum(len(part.pairs) for part in parts.values()) == 6
    for layout, part in parts.items():
        assert part.mean.shape == (1, layout.tokens)
    assert "layouts" in repr(swept)


def test_heads_and_positions_from_the_end_are_averaged_over_any_layouts(lm4):
    mixed = lk.task("indirect object").pairs(lm4, n=4, aligned=False)
    assert lk.sweep(lm4, mixed, site="z", layers=[23], progress=False).mean.shape == (1, lm4.n_heads)
    last = lk.sweep(lm4, mixed, layers=[24], positions=[-1], progress=False)
    assert last.index == ([24], [-1])
    assert last.labels("position") == ["-1 ·to"]
    assert last.normalized[0, 0] > 0.5


def test_a_figure_names_the_tokens_that_all_pairs_share(swept):
    figure = swept.figure()
    assert figure.data[0].x == ("10 …", "14 ·to")
    title = "resid_pre: clean activation put into the corrupt run (logit_diff, mean of 8 pairs)"
    assert figure.layout.title.text.replace("<br>", " ").replace("\u00a0", " ") == title
    assert figure.data[0].zmin == -figure.data[0].zmax
    sure = swept.figure(sure=True).data[0].z
    low, high = swept.interval()
    assert ((sure == 0) == ((low <= 0) & (high >= 0))).all()


def test_code_repeats_the_sweep(swept):
    names: dict = {}
    exec(swept.code(), names)
    assert same(names["sweep"], swept)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_the_same_call_goes_on_and_does_not_compute_again(lm4, pairs, swept, tmp_path):
    store = tmp_path / "sweep"
    first = lk.sweep(lm4, pairs, **FEW, store=store, shard=3)
    for one, other in zip(first.grids, swept.grids, strict=True):  # in shards other pairs share a pass: rounding in NF4
        np.testing.assert_allclose(one.values, other.values, atol=0.25)
    before = times(store)
    assert len(before) == 3
    (store / "shard-00001.npz").unlink()
    assert same(lk.sweep(lm4, pairs, **FEW, store=store), first)  # ... with the size of shards that it has
    after = times(store)
    assert [name for name in before if before[name] != after[name]] == ["shard-00001.npz"]
    opened = lk.open_sweep(store)
    assert same(opened, first)
    assert repr(opened) == repr(swept)
    assert opened.code() == swept.code()


@pytest.mark.parametrize("harm", ["cut", "bit", "swapped", "empty"])
def test_a_damaged_shard_is_computed_again(lm4, pairs, by_twos, tmp_path, harm):
    pairs = pairs[:4]
    lk.sweep(lm4, pairs, **FEW, store=tmp_path, shard=2)
    before, victim = times(tmp_path), tmp_path / "shard-00001.npz"
    data = bytearray(victim.read_bytes())
    if harm == "bit":
        data[len(data) // 2] ^= 4
    victim.write_bytes(
        {"cut": data[:-200], "bit": data, "empty": b"", "swapped": (tmp_path / "shard-00000.npz").read_bytes()}[harm]
    )
    with pytest.warns(UserWarning, match=r"shard-00001\.npz is damaged"):
        again = lk.sweep(lm4, pairs, **FEW, store=tmp_path, shard=2)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(again.grids, by_twos.grids, strict=False))
    assert times(tmp_path)["shard-00000.npz"] == before["shard-00000.npz"]
    assert same(lk.open_sweep(tmp_path), again)


def test_another_sweep_in_the_same_folder_is_refused(lm4, pairs, tmp_path):
    lk.sweep(lm4, pairs[:2], **FEW, store=tmp_path)
    files = times(tmp_path)
    for other, says in (
        ({"site": "resid_post"}, "site is 'resid_pre' there and 'resid_post' here"),
        ({"direction": "noise"}, "direction is 'denoise' there and 'noise' here"),
        ({"metric": lambda logits: logits[:, 0]}, "metric is None there and"),
    ):
        with pytest.raises(ValueError, match=f"holds another sweep: {says}"):
            lk.sweep(lm4, pairs[:2], **{**FEW, **other}, store=tmp_path)
    with pytest.raises(ValueError, match=r"its pairs differ \(2 there, 3 here\)"):
        lk.sweep(lm4, pairs[:3], **FEW, store=tmp_path)
    assert times(tmp_path) == files


def test_two_processes_do_not_write_to_one_folder(lm4, pairs, tmp_path):
    lk.sweep(lm4, pairs[:2], **FEW, store=tmp_path)
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(ValueError, match="another process is writing a sweep"):
            lk.sweep(lm4, pairs[:2], **FEW, store=tmp_path)
        assert lk.open_sweep(tmp_path).complete  # ... but one may look


def test_a_folder_without_a_sweep_is_told_of(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no file sweep\.json"):
        lk.open_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match="is not a sweep saved by labkit: it is a folder whose"):
        lk.open_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 99, "recipe": {}, "pairs": [], "shard": 1, "notes": {}}))
    with pytest.raises(ValueError, match="newer labkit"):
        lk.open_sweep(tmp_path)


# -- who does the work -------------------------------------------------------------------------------------------------


def test_threads_share_the_model(lm4, pairs, by_twos, monkeypatch):
    monkeypatch.setattr(workers, "load", lambda **spec: pytest.fail("a thread loaded the model again"))
    with ThreadPoolExecutor(2) as executor:
        assert same(lk.sweep(lm4, pairs, **FEW, executor=executor, shard=2), by_twos)


@pytest.mark.long
def test_processes_load_their_own_model_and_give_the_same(lm4, pairs, swept, tmp_path):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        assert same(lk.sweep(lm4, pairs, **FEW, executor=executor, store=tmp_path), swept)


def test_forked_processes_are_refused(lm4, pairs):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        with pytest.raises(ValueError, match="mp_context="):
            lk.sweep(lm4, pairs, **FEW, executor=executor)
    with pytest.raises(TypeError, match=r"concurrent\.futures\.Executor or a distributed\.Client"):
        lk.sweep(lm4, pairs, **FEW, executor=2)


def test_a_worker_loads_the_model_once_and_only_the_right_one(lm4):
    plan = dataclasses.replace(plan_for(lm4, {}, call="sweep"), home=-1)  # as it is in any other process
    first = plan.model()
    assert first is not lm4
    assert first is plan.model()
    next_sweep = dataclasses.replace(plan_for(lm4, {"site": "z"}, call="sweep"), home=-1)
    assert first is next_sweep.model()
    assert (first.name, first.bits, first.dtype) == (lm4.name, lm4.bits, lm4.dtype)
    changed = dataclasses.replace(plan, key="another", weights="0" * 16)
    with pytest.raises(ValueError, match=r"with other weights than the model that lk\.sweep was given"):
        changed.model()


def test_a_model_is_known_by_its_weights(lm4, lm32):
    before = fingerprint(lm32)
    assert before == fingerprint(lm32)
    assert before != fingerprint(lm4)
    norm = lm32.hf.model.norm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm[0] += 1
    assert fingerprint(lm32) != before
    with torch.no_grad():
        norm.copy_(kept)
    assert fingerprint(lm32) == before


def test_a_model_can_be_loaded_where_the_work_is_done(lm4, pairs, swept):
    def here() -> lk.LanguageModel:
        return lm4

    assert same(lk.sweep(here, pairs, **FEW), swept)
    with pytest.raises(TypeError, match=r"lk\.sweep needs a model"):
        lk.sweep(7, pairs)


def test_each_process_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_gpu", None)
    with FileLock(tmp_path / "labkit-gpu-a.lock"):
        assert free_gpu(["a", "b"], folder=tmp_path) == 1
        assert free_gpu(["a", "b"], folder=tmp_path) == 1  # it keeps the one that it has
    workers._gpu[1].release()
    monkeypatch.setattr(workers, "_gpu", None)
    assert free_gpu(["a", "b"], folder=tmp_path) == 0
    workers._gpu[1].release()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_the_model_runs(lm4, pairs, monkeypatch):
    monkeypatch.setattr(sweep_module, "each", lambda *_: pytest.fail("the model ran"))
    silent = (*pairs[0][:2], "", pairs[0][3])
    for wrong, says in (
        ([], "no pairs"),
        ([*pairs, silent], r"1 of 9 pairs cannot be patched; the first, pair 8: the answer is empty"),
        ([("a",)], "got 1 parts"),
        (pairs[0], "a list of tuples"),
    ):
        with pytest.raises(ValueError, match=says):
            lk.sweep(lm4, wrong)
    with pytest.raises(ValueError, match="elsewhere"):
        lk.sweep(lm4, pairs, site="elsewhere")
    with pytest.raises(ValueError, match="layer 99 is out of range"):
        lk.sweep(lm4, pairs, layers=[99])
    with pytest.raises(ValueError, match="at least one pair"):
        lk.sweep(lm4, pairs, shard=0)


def refusing(lm: lk.LanguageModel, pair: lk.PromptPair):
    """A metric of one's own that fails on one pair, known by what its corrupt run says."""
    foil = lm.encode(pair.foil)[0, -1]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        if (logits.argmax(-1) == foil).any():
            raise ArithmeticError("not this one")
        return logits[:, 0]

    return metric


def test_a_pair_that_fails_is_reported_and_the_others_go_on(lm4, pairs, tmp_path):
    metric = refusing(lm4, pairs[2])
    hit = [i for i, pair in enumerate(pairs) if pair.foil == pairs[2].foil]
    with pytest.warns(UserWarning, match=r"of 8 pairs failed; the first, pair \d: ArithmeticError: not this one"):
        swept = lk.sweep(lm4, pairs, **FEW, metric=metric, store=tmp_path, shard=2)
    assert set(hit) <= set(swept.failures)
    assert len(swept.done) == 8 - len(swept.failures) > 0
    assert swept.mean.shape == (2, 2)
    before = times(tmp_path)
    with pytest.warns(UserWarning, match="pairs failed"):  # what failed is tried again, the rest is not
        lk.sweep(lm4, pairs, **FEW, metric=metric, store=tmp_path)
    again = {name for name, when in times(tmp_path).items() if when != before[name]}
    assert again == {f"shard-{i // 2:05}.npz" for i in swept.failures}


def test_if_every_pair_fails_that_is_an_error_with_what_there_is(lm4, pairs):
    def metric(logits: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("never")

    with pytest.raises(RuntimeError, match="8 of 8 pairs failed") as failed:
        lk.sweep(lm4, pairs, **FEW, metric=metric)
    assert len(failed.value.sweep.failures) == 8


def test_an_interrupt_keeps_what_was_done(lm4, pairs, tmp_path):
    calls = []

    def metric(logits: torch.Tensor) -> torch.Tensor:
        calls.append(len(logits))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return logits[:, 0] - logits[:, 1]

    with pytest.warns(UserWarning, match="interrupted: . of 8 pairs are in the sweep"):
        partial = lk.sweep(lm4, pairs, **FEW, metric=metric, store=tmp_path, shard=1)
    assert 0 < len(partial.done) < 8
    before = times(tmp_path)
    assert len(before) == len(partial.done)
    whole = lk.sweep(lm4, pairs, **FEW, metric=metric, store=tmp_path, shard=1)
    assert whole.complete
    after = times(tmp_path)
    assert all(after[name] == when for name, when in before.items())


# -- on Dask -----------------------------------------------------------------------------------------------------------


def wait_for(store: Path, shards: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 600
    while len(times(store)) < shards:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{len(times(store))} shards after ten minutes"
        time.sleep(0.02)


def started(store: Path) -> tuple[subprocess.Popen, list[int]]:
    """The sweep of 200 pairs in a process of its own, and the process ids of its two Dask workers."""
    command = [sys.executable, str(HERE / "dask_sweep.py"), str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.long
def test_200_pairs_on_dask_survive_a_killed_kernel_and_a_killed_worker(lm4, tmp_path):
    from dask_sweep import SITE, pairs

    kernel, pids = started(tmp_path)
    wait_for(tmp_path, 10, kernel)
    kernel.send_signal(signal.SIGKILL)
    kernel.communicate()
    before = times(tmp_path)
    assert 10 <= len(before) < 45
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=300)
    assert not any(map(psutil.pid_exists, pids))  # no worker is left behind

    kernel, pids = started(tmp_path)
    assert len(set(pids)) == 2
    wait_for(tmp_path, len(before) + 6, kernel)
    os.kill(pids[0], signal.SIGKILL)
    out, errors = kernel.communicate(timeout=600)
    assert kernel.returncode == 0, errors
    assert out.startswith("Sweep(resid_pre, denoise, 200 pairs, 2 layers x 2 positions")
    after = times(tmp_path)
    assert len(after) == 50
    assert all(after[name] == when for name, when in before.items())  # finished shards were not computed again

    swept = lk.open_sweep(tmp_path)
    assert swept.complete
    assert swept.pairs == [tuple(pair) for pair in pairs(lm4)]
    # pairs that share a pass: with others, or alone, rounding in NF4 is another on some processors
    here = lk.sweep(lm4, swept.pairs[40:44], **SITE, shard=4, progress=False)
    assert all(np.array_equal(swept.grids[40 + i].values, grid.values) for i, grid in enumerate(here.grids))
    some = range(0, 200, 20)
    here = lk.sweep(lm4, [swept.pairs[i] for i in some], **SITE, progress=False)
    for i, grid in zip(some, here.grids, strict=True):
        np.testing.assert_allclose(swept.grids[i].values, grid.values, atol=0.25)
