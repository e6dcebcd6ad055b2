"""The same on a processor without AVX-512, as most laptops are: size, dtype, numbers; acted by a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pair import CLEAN

import labkit as lk
from labkit.models.load import compute_dtype

TESTS = Path(__file__).parents[1]
SETTINGS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "none": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
THERE = f"""
import json, sys, warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

import labkit as lk
from labkit.models import unpacked_layers as fast

CLEAN = {CLEAN!r}

def about():
    import bitsandbytes.functional
    lm = lk.load(progress=False)
    report, code = lm.memory().total, lm.code()
    kernel = bool(bitsandbytes.functional.has_avx512bf16())
    return str(lm.dtype), report, code, kernel, lm.run(CLEAN).logits[0, -1].float().tolist()

def main():
    warnings.simplefilter("error")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        child = pool.submit(about)
        here, there = about(), child.result()
    found = dict(zip(("dtype", "memory", "code", "kernel", "logits"), here))
    found["spawned"] = list(here) == list(there)
    lm = lk.load(progress=False)
    kept = lm.run(CLEAN).logits
    found["kept"] = lm.fast.size
    text = lm.generate(CLEAN, max_new_tokens=6).text
    with_gradients = lk.patch(lm, CLEAN, CLEAN.replace("John gave", "Mary gave"), " Mary", " John",
                              method="attribution", progress=False).values
    lm.fast.drop()
    fast.installed = lambda: 8 * 10**8
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found["packed is unpacked"] = torch.equal(lm.run(CLEAN).logits, kept)
        found["same text"] = lm.generate(CLEAN, max_new_tokens=6).text == text
    found["said"] = [text for text in (str(warning.message) for warning in said) if "slow" in text]
    found["kept without room"] = lm.fast.size
    found["finite"] = bool(torch.tensor(with_gradients).isfinite().all())
    eight = lk.load(bits=8, progress=False)
    found["int8"] = float(eight.run(CLEAN).logits[0, -1].float().softmax(-1).max())
    print(json.dumps(found))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module", params=SETTINGS)
def there(request, tmp_path_factory):
    """What a process with another processor found."""
    script = tmp_path_factory.mktemp("there") / "there.py"
    script.write_text(THERE)
    path = [str(TESTS / "without_avx512"), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | SETTINGS[request.param] | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_default_model_is_the_same_there(there, lm4):
    assert not there["kernel"]
    assert there["dtype"] == str(lm4.dtype) == "torch.bfloat16"
    assert there["code"] == lm4.code()
    assert there["memory"] == pytest.approx(113e6, rel=0.02)
    assert lm4.memory().total == pytest.approx(113e6, rel=0.02)


def test_a_spawned_process_decides_and_computes_the_same(there):
    assert there["spawned"]


def test_logits_differ_there_by_rounding_alone(there, lm4):
    logits, here = torch.tensor(there["logits"]), lm4.run(CLEAN).logits[0, -1].float()
    assert int(logits.argmax()) == int(here.argmax())
    assert float((logits.softmax(-1) - here.softmax(-1)).abs().max()) <= 0.02


def test_unpacked_weights_give_the_very_same_numbers(there):
    assert there["kept"] == 106168320 * 2
    assert there["packed is unpacked"]
    assert there["same text"]
    assert there["finite"]


def test_what_it_costs_is_said_once_where_there_is_no_room(there):
    assert there["kept without room"] == 0
    (said,) = there["said"]
    assert "no 4-bit kernel" in said
    assert "212.3 MB more" in said


def test_8_bits_work_there(there):
    assert there["int8"] > 0.8


def test_the_compute_dtype_is_a_rule():
    assert [compute_dtype("cpu", bits) for bits in (4, 8, 16, 32)] == [*3 * [torch.bfloat16], torch.float32]
    assert compute_dtype("mps", 4) == torch.float16


def test_an_explicit_dtype_is_repeated():
    lm = lk.load(dtype="float32", progress=False)
    assert lm.code() == "import labkit as lk\n\nlm = lk.load(bits=4, dtype='float32')\n"
    assert lm.dtype == torch.float32
    assert lm.run(CLEAN, read=["resid_pre.0"])["resid_pre.0"].dtype == torch.float32
    assert lm.memory().total == pytest.approx(113e6, rel=0.02)  # the embedding stays in 16 bits
    with pytest.raises(ValueError, match="dtype must be 'float32', 'bfloat16' or 'float16'; got 'float33'"):
        lk.load(dtype="float33", progress=False)
