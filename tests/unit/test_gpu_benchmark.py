"""`benchmarks/gpu.py` runs from end to end on a machine without a GPU, and is honest about what it left out."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bring
import shapes
from conformance import tokenizer
from timed_table import Row, Table

import labkit as lk
from labkit.models.memory import empty_model, predict
from labkit.models.packed_experts import PackedExperts

ROOT = Path(__file__).parents[2]
V2_LITE, QWEN = "deepseek-ai/DeepSeek-V2-Lite", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


def benchmark(folder, *arguments):
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--reduced", "--device", "cpu", "--out", folder, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(Path(folder).glob("*.json"))
    assert [f.name for f in files] == ["gpu-cpu-reduced.json"], done.stderr[-2000:]
    return done, json.loads(files[0].read_text())


@pytest.mark.long
def test_it_runs_complete_on_the_cpu_at_reduced_size(tmp_path):
    done, record = benchmark(tmp_path, "--only", "Llama-2", "--length", "8", "--sample", "2")
    assert done.returncode == 0, done.stdout[-3000:]
    what = " | ".join(f"{row['model']}: {row['what']}: {row['labkit']}" for row in record["rows"])
    for part in ("weights in NF4", "reads nothing", "reads every site", "generation", "exact resid_pre grid, 4 x 8",
                 "peak memory", "one forward a cell", "of the matmul rate", "4 bits beside 16", "across precisions",
                 "attention view", "reading every resid_post", "4 pairs of 4 tokens together", "compiled blocks",
                 "one call of attention a layer", "attribution resid_pre", "exact z grid", "attribution z", "nnsight",
                 "TransformerLens", "default model", "promises in fp32", "weights on the CPU"):  # fmt: skip
        assert part in what
    assert "failed" not in what
    assert not [row for row in record["rows"] if row["kept"] is False]
    grid = next(row for row in record["rows"] if row["what"].startswith("exact resid_pre grid, 4"))
    assert grid["numbers"]["engine"] == "wavefront"
    assert record["title"].count("nothing of a GPU's speed")
    text = (tmp_path / "gpu-cpu-reduced.md").read_text()
    quoted = text[text.index("What one would quote") : text.index("| model |")].splitlines()
    assert len([line for line in quoted if line.startswith("- Llama")]) >= 8
    assert (tmp_path / "gpu-cpu-reduced.md").read_text() in done.stdout


def test_what_time_does_not_allow_for_is_named(tmp_path):
    done, record = benchmark(tmp_path, "--only", "Llama-2", "--seconds", "1")
    assert done.returncode == 0
    assert all("out of time" in row["labkit"] for row in record["rows"][:-1])
    assert len(record["rows"]) > 5


def test_a_table_that_is_cut_off_is_there_up_to_its_last_row(tmp_path):
    table = Table(tmp_path / "cut", {"device": "none"}, title="A table.", seconds=60)
    table.measure("a", "one", 1, lambda: Row("", "", "1 s"))
    table.measure("a", "two", 1, lambda: 1 / 0)
    assert [row["labkit"] for row in json.loads((tmp_path / "cut.json").read_text())["rows"]] == [
        "1 s", "failed: ZeroDivisionError: division by zero",
    ]  # fmt: skip
    assert (tmp_path / "cut.md").read_text().count("\n| a |") == 2
    assert len(table.failed) == 1


@pytest.mark.parametrize("name", [QWEN, V2_LITE])
def test_shapes_take_the_bytes_that_are_predicted_and_hold_what_their_classes_hold(name):
    config = shapes.config_of(name, reduced=True)
    expected = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lm = shapes.build(config, tokenizer(), name=name, device=torch.device("cpu"), dtype=torch.bfloat16)
    predicted = predict(empty_model(config), bits=4, dtype=torch.bfloat16)
    assert predicted <= lm.memory().total <= 1.1 * predicted
    assert not [n for n, t in [*lm.hf.named_parameters(), *lm.hf.named_buffers()] if t.device.type == "meta"]
    assert any(isinstance(m, PackedExperts) for m in lm.hf.modules()) == (name == V2_LITE)
    buffers = dict(lm.hf.named_buffers())
    rotary = [n for n, _ in expected.named_buffers() if "inv_freq" in n]
    assert rotary
    assert all(torch.allclose(buffers[n].float(), expected.get_buffer(n)) for n in rotary)
    again = shapes.build(config, tokenizer(), name=name, device=torch.device("cpu"), dtype=torch.bfloat16)
    ids = torch.arange(12)[None]
    logits = lm.run(ids).logits
    assert torch.equal(logits, again.run(ids).logits)
    assert bool(logits.isfinite().all())
    assert float(logits.float().std()) > 0.01


def test_sixteen_bits_are_the_numbers_that_four_were_made_of():
    config = shapes.config_of(QWEN, reduced=True)
    made = {
        bits: shapes.build(config, tokenizer(), name=QWEN, device=torch.device("cpu"), dtype=torch.bfloat16, bits=bits)
        for bits in (4, 16)
    }
    assert {bits: lm.bits for bits, lm in made.items()} == {4: 4, 16: 16}
    four, sixteen = (made[bits].weight("down_proj", 1, dtype=torch.float32) for bits in (4, 16))
    assert 0.02 < float((four - sixteen).norm() / sixteen.norm()) < 0.15  # what NF4 rounds
    for name, parameter in made[16].hf.named_parameters():
        if name.endswith(("bias", "norm.weight", "embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(parameter, made[4].hf.get_parameter(name)), name
    predicted = predict(empty_model(config), bits=16, dtype=torch.bfloat16)
    assert predicted <= made[16].memory().total <= 1.1 * predicted


def test_attribution_goes_through_layers_with_biases_in_the_dtype_that_a_laptop_computes_in():
    lm = shapes.build(
        shapes.config_of(QWEN, reduced=True), tokenizer(), name=QWEN, device=torch.device("cpu"), dtype=torch.bfloat16
    )
    clean, corrupt = torch.arange(12)[None], torch.arange(12)[None] + 50
    exact, estimate = (
        lk.patch(lm, clean, corrupt, 5, 6, site="mlp_out", method=method, progress=False).values
        for method in ("exact", "attribution")
    )
    last = (exact[-1, -1], estimate[-1, -1])  # above it there is only the last norm: nearly linear
    assert abs(last[0] - last[1]) <= 0.2 * max(1, abs(last[0]))
    assert float(np.corrcoef(exact.ravel(), estimate.ravel())[0, 1]) > 0.5


# -- what is brought to a machine without a network -------------------------------------------------------------------


def wheel(folder, *, parts):
    """A wheel that holds one module, cut into parts."""
    file = folder / "brought_along-1.0-py3-none-any.whl"
    info = "brought_along-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("brought_along.py", "here = True\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: brought-along\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    (folder / "SHA256SUMS").write_text(f"{bring.sha256(file)}  {file.name}\n")
    data = file.read_bytes()
    file.unlink()
    size = -(-len(data) // parts)
    for n in range(parts):
        (folder / f"{file.name}.part{n:02}").write_bytes(data[n * size : (n + 1) * size])


def test_wheels_in_parts_are_joined_checked_and_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", parts=3)
    assert bring.install(tmp_path / "wheels", tmp_path / "into") == ["brought_along-1.0-py3-none-any.whl"]
    found = subprocess.check_output(
        [sys.executable, "-c", "import brought_along; print(brought_along.here)"], text=True
    )
    assert found.strip() == "True"
    assert sys.path[0] == str(tmp_path / "into/site")


def test_a_missing_or_broken_part_is_told_before_anything_is_done(tmp_path):
    wheel(tmp_path, parts=3)
    part = next(tmp_path.glob("*.part01"))
    good = part.read_bytes()
    part.write_bytes(good[:-1] + b"?")
    with pytest.raises(SystemExit, match="SHA-256"):
        bring.whole(tmp_path, tmp_path / "into")
    part.unlink()
    with pytest.raises(SystemExit, match="one is missing"):
        bring.whole(tmp_path, tmp_path / "into")
