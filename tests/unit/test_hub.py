"""A class of six on a real JupyterHub: every student has a kernel, and all kernels together one copy of the weights."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.models.cache import cache_folder
from labkit.models.processors import usable
from labkit.models.sources.pinned import checkpoint

STUDENTS = 6
CELL = f"""
import hashlib, json, os
import torch
import labkit as lk

threads = []
lm = lk.load(progress=False)
note = lambda x: (threads.append(torch.get_num_threads()), x)[1]
lm.run({CLEAN!r}, write={{"resid_pre.3": note}})
grid = lk.patch(lm, {CLEAN!r}, {CORRUPT!r}, " Mary", " John", progress=False)
print(json.dumps({{
    "pid": os.getpid(), "threads": max(threads), "values": hashlib.sha256(grid.values.tobytes()).hexdigest(),
    "near": grid.values.tolist(), "mapped": len(lm.fast.mapped), "own": lm.fast.size,
}}))
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a hub is for Linux, as is PSS")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache with the default model, and with one copy of its weights for all, made by the command for that."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").mkdir()
    (folder / checkpoint(4)).symlink_to(cache_folder() / checkpoint(4), target_is_directory=True)
    command = [sys.executable, "-m", "labkit.cli", "pull", "--shared"]
    done = subprocess.run(command, env=os.environ | {"LABKIT_CACHE": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "one copy for all" in done.stdout
    return folder


@pytest.fixture
def mapped(cache, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(cache))
    return lk.load(progress=False)


def test_mapped_weights_give_the_same_numbers_and_take_no_memory_of_ones_own(lm4, mapped):
    for call in (lambda lm: lm.run(CLEAN).logits, lambda lm: lm.weight("down_proj", 3)):
        assert torch.equal(call(mapped), call(lm4))
    values = [lk.patch(lm, CLEAN, CORRUPT, " Mary", " John", progress=False).values for lm in (mapped, lm4)]
    assert (values[0] == values[1]).all()
    assert len(mapped.fast.mapped) == 7 * mapped.n_layers
    assert mapped.fast.size == 0 < lm4.fast.size


def test_what_one_process_writes_into_mapped_weights_is_its_own(mapped, cache):
    (file,) = cache.glob("shared/*/weights.bin")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    weight, logits = mapped.hf.model.layers[5].mlp.down_proj.weight, mapped.run(CLEAN).logits
    grid = lk.patch(mapped, CLEAN, CORRUPT, " Mary", " John", progress=False)
    with torch.no_grad():
        weight.zero_()
    assert not torch.equal(mapped.run(CLEAN).logits, logits)
    assert not mapped.fast.mapped[mapped.hf.model.layers[5].mlp.down_proj].belongs_to(weight)
    again = lk.patch(mapped, CLEAN, CORRUPT, " Mary", " John", progress=False)
    assert abs(again.values - grid.values).max() > 0.01  # not computed with the copy of what was there
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


@pytest.mark.long
def test_six_students_take_under_3_gb_and_get_the_same_answers(cache, tmp_path):
    pytest.importorskip("jupyterhub", reason="not in this environment (Colab's, or the oldest)")
    from hub import hub, memory

    with hub(tmp_path, cache) as running, ThreadPoolExecutor(STUDENTS) as pool:
        answers = list(pool.map(lambda kernel: kernel.run(CELL), running.kernels(STUDENTS)))
        sizes = [memory(answer["pid"]) for answer in answers]
    print("MB per kernel:", [round(size) for size in sizes], "together", round(sum(sizes)))
    assert sum(sizes) < 3000
    assert len({answer["pid"] for answer in answers}) == STUDENTS
    first = torch.tensor(answers[0]["near"])
    assert all(torch.allclose(torch.tensor(answer["near"]), first, atol=0.05) for answer in answers)
    assert all(answer["mapped"] and answer["own"] == 0 for answer in answers)
    assert all(1 <= answer["threads"] <= usable() for answer in answers)
