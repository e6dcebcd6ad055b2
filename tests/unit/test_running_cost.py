"""What running a model costs: the numbers are there or the reason is, and counters are read as they count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stopped import stopped

import labkit as lk
from labkit.audits.energy import CarbonMeter, Counter, Meter, meter_for, of_gpus, of_processor
from labkit.results.recipe import names_of

SMALL = Path(__file__).parents[1] / "files" / "small_llama"
PROMPT = "When Mary and John went to the store"
SETTINGS = {"tokens": 4, "prompt": PROMPT, "repeats": 2, "idle": 0.1, "progress": False}


@pytest.fixture(scope="module")
def small() -> lk.LanguageModel:
    return lk.load(SMALL, bits=32, device="cpu", progress=False)


def zone(root: Path, name: str, title: str, energy: int, most: int = 1_000_000) -> Path:
    """A folder as Linux shows a counter."""
    folder = root / name
    folder.mkdir()
    for file, value in (("name", title), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


# -- counters -------------------------------------------------------------------------------------------------------


def test_processors_and_their_memory_are_counted_once_each(tmp_path):
    for name, title in (
        ("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0"),
    ):  # fmt: skip
        zone(tmp_path, name, title, 0)
    counters, why = of_processor(tmp_path)
    assert [counter.name for counter in counters] == ["package-0 (RAPL)", "dram (RAPL)", "package-1 (RAPL)"]
    assert why == ""


def test_a_meter_adds_what_its_counters_counted_also_where_one_began_again(tmp_path):
    folders = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 900_000) for n in range(2)]
    meter = Meter(of_processor(tmp_path)[0])
    meter.start()
    for folder, now in zip(folders, (950_000, 100_000), strict=True):
        (folder / "energy_uj").write_text(f"{now}\n")
    assert meter.stop() == pytest.approx(0.05 + 0.2)


def test_without_counters_the_answer_is_why(tmp_path):
    counters, why = of_processor(tmp_path)
    assert counters == []
    assert "virtual machines and containers hide them" in why
    meter = Meter([], [why])
    meter.start()
    assert np.isnan(meter.stop())
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("n/a")
    assert "cannot be read: invalid literal" in of_processor(tmp_path)[1]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_counters_that_only_root_may_read_are_said_to_be(tmp_path):
    (zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").chmod(0)
    counters, why = of_processor(tmp_path)
    assert counters == []
    assert "by root alone" in why


def test_a_gpu_that_is_not_there_is_no_error():
    if not torch.cuda.is_available():
        try:
            import pynvml  # noqa: F401
        except ImportError:
            assert "pip install nvidia-ml-py" in of_gpus([torch.device("cuda")])[1]
    assert meter_for([torch.device("cpu")]).names or meter_for([torch.device("cpu")]).missing


def test_kilowatt_hours_of_codecarbon_become_joules():
    tasks: list[str] = []
    tracker = SimpleNamespace(start_task=tasks.append, stop_task=lambda: SimpleNamespace(energy_consumed=2e-6))
    meter = CarbonMeter(tracker)
    meter.start()
    assert meter.stop() == pytest.approx(7.2)
    meter.start()
    assert tasks == ["labkit 1", "labkit 2"]
    assert "estimate" in meter.names[0]


def test_a_counter_that_does_not_wrap_may_not_be_turned_round():
    assert Counter("GPU", lambda: 5.0).since(2.0) == 3.0
    assert Counter("GPU", lambda: 1.0, wraps=10.0).since(9.0) == 2.0


# -- the cost -------------------------------------------------------------------------------------------------------


def test_speed_and_memory_are_measured_and_energy_or_why_not(small):
    cost = lk.running_cost(small, **SETTINGS)
    (row,) = cost.to_frame().to_dict("records")
    assert row["bits"] == 32
    assert row["weights"] == small.memory().total
    assert row["peak"] > row["weights"]
    for what in ("read", "write"):
        assert 0 < row[f"{what}_low"] <= row[what] <= row[f"{what}_high"]
    if cost.counters:
        assert row["write_joules"] > 0
        assert "other programs' included" in " ".join(cost.notes)
    else:
        assert np.isnan([row["idle_watts"], row["read_joules"], row["write_joules"]]).all()
        assert "Energy: not measurable here: " in cost.words()
    assert "tokens per second and writes" in cost.words()
    assert "RunningCost" in repr(cost)


def test_several_models_are_rows_and_the_code_measures_them_again(small):
    cost = lk.running_cost([small, small], **SETTINGS)
    names = list(cost.to_frame().index)
    assert names == names_of([small, small])
    assert len(set(names)) == 2
    assert "with all of these models in it" in " ".join(cost.notes)
    code = cost.code()
    assert "model_0 = lk.load(" in code
    assert "[model_0, model_1], tokens=4, prompt='When Mary" in code.replace("\n    ", " ")
    scope: dict = {}
    exec(code, scope)
    assert list(scope["cost"].to_frame().index) == names


def test_an_interrupt_keeps_the_repeats_that_were_timed(small, tmp_path):
    lk.running_cost(small, **{**SETTINGS, "repeats": 1})  # what is looked at once per model
    with stopped(small, 10**6) as passes:
        lk.running_cost(small, **{**SETTINGS, "repeats": 1})
    with stopped(small, passes[0] + 3), pytest.warns(UserWarning, match="interrupted: 1 of 2 repeats are in the cost"):
        cost = lk.running_cost(small, **SETTINGS)  # interrupted while it writes
    row = cost.to_frame().iloc[0]
    assert row["write_low"] == row["write"] == row["write_high"]
    assert "It ended early: 1 of 2 repeats were timed." in cost.words()
    with stopped(small, 1, MemoryError("no more")), pytest.raises(MemoryError) as error:
        lk.running_cost(small, **SETTINGS)
    none = error.value.cost
    assert repr(none) == "RunningCost(nothing measured)"
    assert none.to_frame().empty
    assert lk.open_running_cost(none.save(tmp_path / "none.npz")).words() == none.words()


def test_it_is_saved_opened_and_drawn(small, tmp_path):
    cost = lk.running_cost([small, small], **SETTINGS)
    opened = lk.open_running_cost(cost.save(tmp_path / "cost.npz"))
    assert opened.to_frame().equals(cost.to_frame())
    assert (repr(opened), opened.words(), opened.code()) == (repr(cost), cost.words(), cost.code())
    read, write, weights, peak = cost.figure().data
    assert list(read.x) == cost.to_frame()["read"].tolist()
    assert list(write.error_x.array) == (cost.to_frame()["write_high"] - cost.to_frame()["write"]).tolist()
    assert all(most > least for most, least in zip(peak.x, weights.x, strict=True))


def test_the_usual_settings_are_left_out_of_the_code(small):
    cost = lk.running_cost(small, repeats=1, tokens=2, idle=0, progress=False)
    assert cost.code().endswith("cost = lk.running_cost(lm, tokens=2, repeats=1, idle=0)\n")


def test_the_most_memory_is_that_of_the_time_watched():
    # in a process of its own: one that has freed a lot takes what it is asked for from there
    script = """
from types import SimpleNamespace
import torch
from labkit.audits.cost import _watched
lm = SimpleNamespace(devices=[torch.device("cpu")])
with _watched(lm) as before:
    pass
with _watched(lm) as during:
    held = torch.ones(20_000_000)
    held += 1
del held
with _watched(lm) as after:
    pass
print(before(), during(), after())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split())
    assert during - before > 60_000_000
    assert during - after > 60_000_000


@pytest.mark.parametrize(
    ("models", "settings", "says"),
    [
        ([], {}, "no model to measure"),
        (None, {"tokens": 1}, "at least 2 tokens and 1 repeat"),
        (None, {"repeats": 0}, "at least 2 tokens and 1 repeat"),
        (None, {"tokens": 200}, "more than the 128 of"),
        (None, {"prompt": ""}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_is_timed(small, models, settings, says):
    with pytest.raises(ValueError, match=says):
        lk.running_cost(small if models is None else models, **{**SETTINGS, **settings})
