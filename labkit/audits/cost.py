"""What it costs to run a model here: tokens per second, memory, and energy where this machine can measure it.

Reading a prompt and writing after it are different work: a prompt is one pass over all of its tokens, and each written
token is a pass of its own. Both are timed several times and the median is given with the extremes; of several models
one repeat follows the other in turn, so that a machine that gets busy is slow for all. Energy is what the processor or
the GPU used as a whole meanwhile, whoever used it; what it uses at rest is measured first and said.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.run import run
from labkit.audits.energy import Meter, meter_for
from labkit.audits.openers import uninterrupted
from labkit.elsewhere import needs_weights
from labkit.generation.generate import room_for
from labkit.models.memory import in_words
from labkit.models.processors import free, usable
from labkit.precision.passage import PASSAGE
from labkit.results.file import open_arrays, reading, save_arrays
from labkit.results.job import finish
from labkit.results.recipe import loaded_as, made_with, names_of
from labkit.text.as_code import LM, Name, as_code, changed
from labkit.text.encode import encode
from labkit.text.prompts import as_json, asked, from_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

FILE = "running cost"
READ = 128  # tokens of the built-in prompt
WATCH = 0.01  # seconds between looks at the memory of the process
BUSY = 0.3  # processors that others may use before it is said


@dataclass(frozen=True, eq=False, repr=False)
class RunningCost:
    """Speed, memory and energy of one or more models on one machine.

    Attributes:
        rows: by model what `to_frame` shows.
        counters: what the energy was measured with; empty where it was not.
        notes: what has to be known to read the numbers: what cannot be measured and why, and who else used the machine.
        recipe: what repeats it.
    """

    rows: dict[str, dict[str, Any]]
    counters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per model.

        Columns: `bits`, `dtype`, `device`; `weights` and `peak`, bytes, the latter of the whole process on a CPU and of
        what PyTorch allocated on a GPU; `read` and `write`, tokens per second, medians, with `_low` and `_high`, the
        slowest and the fastest repeat; `idle_watts`; `read_joules` and `write_joules` per 1,000 tokens, and
        `write_above_idle`, the part of the latter beyond what idling takes. NaN where it cannot be measured.
        """
        import pandas as pd

        return pd.DataFrame.from_dict(self.rows, orient="index").rename_axis("model")

    def words(self) -> str:
        """The numbers in sentences, one or two per model, and what could not be measured."""
        said = []
        for name, row in self.rows.items():
            writes = (
                ""
                if np.isnan(row["write"])
                else f" and writes {row['write']:.1f} ({row['write_low']:.1f} to {row['write_high']:.1f})"
            )
            said.append(
                f"{name} in {row['bits']} bits reads {row['read']:.0f} tokens per second{writes} on {row['device']}; "
                f"{in_words(row['weights'])} of weights, {in_words(row['peak'])} at most."
            )
            if not np.isnan(row["write_joules"]):
                said.append(
                    f"Writing 1,000 tokens takes {row['write_joules']:,.0f} J ({row['write_joules'] / 3600:.2g} Wh)"
                    + (
                        "."
                        if np.isnan(row["idle_watts"])
                        else f", {row['write_above_idle']:,.0f} J of it beyond the {row['idle_watts']:.1f} W that are "
                        "used at rest."
                    )
                )
        return " ".join([*said, *self.notes])

    def figure(self) -> go.Figure:
        """On the left tokens per second, from the slowest to the fastest repeat, on the right memory, per model."""
        from plotly.subplots import make_subplots

        frame = self.to_frame()
        fig = make_subplots(1, 2, subplot_titles=("Speed", "Memory"), horizontal_spacing=0.06, shared_yaxes=True)
        for what, colour in (("read", "#2166ac"), ("write", "#b2182b")):
            spread = {"array": frame[f"{what}_high"] - frame[what], "arrayminus": frame[what] - frame[f"{what}_low"]}
            fig.add_scatter(
                x=frame[what], y=frame.index, name=what, mode="markers", marker={"color": colour, "size": 10}, row=1,
                col=1, error_x={**spread, "symmetric": False},
                hovertemplate=f"%{{y}}<br>{what}: %{{x:.1f}} tokens/s<extra></extra>",
            )  # fmt: skip
        for what, colour in (("weights", "#999"), ("peak", "#444")):
            fig.add_bar(
                x=frame[what] / 1e9, y=frame.index, name=what, orientation="h", marker={"color": colour}, row=1, col=2,
                hovertemplate=f"%{{y}}<br>{what}: %{{x:.2f}} GB<extra></extra>",
            )  # fmt: skip
        fig.update_xaxes(title="tokens per second", type="log", row=1, col=1)  # reading is many times as fast
        fig.update_xaxes(title="GB", row=1, col=2)
        fig.update_yaxes(autorange="reversed", type="category", automargin=True)
        return fig.update_layout(
            title={"text": "What it costs to run here", "font": {"size": 14}}, barmode="group",
            legend={"orientation": "h", "y": 1.12, "yanchor": "bottom", "x": 0},
            width=860, height=220 + 76 * len(frame), margin={"t": 110},
        )  # fmt: skip

    def code(self) -> str:
        """The Python that measures it again, on the machine where it runs."""
        told = {name: from_json(value) if name == "prompt" else value for name, value in self.recipe["asked"].items()}
        loads = [made["load"] for made in self.recipe["models"]]
        if len(loads) == 1:
            return as_code(loads[0], "cost = lk.running_cost", LM, **told)
        names = [Name(f"model_{n}") for n in range(len(loads))]
        before = "import labkit as lk\n\n" + "".join(map(loaded_as, names, loads))
        return as_code(before, "cost = lk.running_cost", names, **told)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one file (`.npz`), in one step; `labkit.open_running_cost` reads it."""
        about = {"rows": self.rows, "counters": self.counters, "notes": self.notes, "recipe": self.recipe}
        return save_arrays(path, FILE, about)

    def __repr__(self) -> str:
        if not self.rows:
            return "RunningCost(nothing measured)"
        shown = ["weights", "peak", "read", "write", "write_joules"]
        return "\n".join(["RunningCost", self.to_frame()[shown].round(1).to_string(), *self.notes])


def open_running_cost(path: str | os.PathLike[str]) -> RunningCost:
    """Open what `RunningCost.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or was saved by a newer labkit.
    """
    about, _ = open_arrays(path, FILE)
    with reading(path, FILE):
        return RunningCost(about["rows"], tuple(about["counters"]), tuple(about["notes"]), about["recipe"])


def running_cost(
    lm: LanguageModel | Sequence[LanguageModel],
    *,
    tokens: int = 32,
    prompt: Prompt | None = None,
    repeats: int = 3,
    idle: float = 2.0,
    progress: bool = True,
) -> RunningCost:
    """Measure what a model costs to run on this machine, or several models in turn.

    Args:
        lm: a model, or a list of models; all are in memory at once.
        tokens: how many are written.
        prompt: what is read; by default the first 128 tokens of a built-in passage.
        repeats: how often each is timed, after a first time that is not counted.
        idle: seconds for which the power at rest is measured, where it can be.
        progress: show a progress bar.

    Returns:
        A `RunningCost`. Energy that this machine does not show is NaN, with the reason in `notes`. After an interrupt,
        or as `cost` on an error, it has the repeats timed until then.

    Raises:
        ValueError: no model, a bad prompt, fewer than 2 tokens or 1 repeat, or a prompt that leaves no room for them in
            the context; before anything is timed.
    """
    models = list(lm) if isinstance(lm, Sequence) else [lm]
    if not models:
        raise ValueError("there is no model to measure; give one or a list of them")
    needs_weights("lk.running_cost measures the machine that it runs on", *models, instead="run it there")
    if tokens < 2 or repeats < 1 or idle < 0:
        raise ValueError(
            f"speed needs at least 2 tokens and 1 repeat, and idle may not be negative; got tokens={tokens}, "
            f"repeats={repeats}, idle={idle}"
        )
    ids = [room_for(one, _built_in(one, tokens) if prompt is None else prompt, tokens) for one in models]
    said = None if prompt is None else as_json(asked(models[0], prompt))
    given: dict[str, Any] = {"tokens": tokens, "prompt": said, "repeats": repeats, "idle": idle}
    usual: dict[str, Any] = {"tokens": 32, "prompt": None, "repeats": 3, "idle": 2.0}
    recipe = {"models": [made_with(one) for one in models], "asked": changed(usual, given)}

    job = CostJob(models, ids, tokens, repeats, idle, recipe)
    finish(job, "running cost", unit="repeat", kept="cost", progress=progress)
    return job.cost


class CostJob:
    """Models timed in turn, so that it can be watched and stopped."""

    def __init__(
        self, models: Sequence[LanguageModel], prompts: Sequence[torch.Tensor], tokens: int, repeats: int, idle: float,
        recipe: dict[str, Any],
    ) -> None:  # fmt: skip
        self._models, self._prompts, self._recipe = models, prompts, recipe
        self._tokens, self._repeats, self._idle = tokens, repeats, idle
        self._times: list[list[_Once]] = [[] for _ in models]
        self._meter, self._watts = meter_for([device for one in models for device in one.devices]), float("nan")
        self._notes = _notes(self._meter, models)

    @property
    def total(self) -> int:
        return self._repeats * len(self._models)

    @property
    def done(self) -> int:
        return sum(map(len, self._times))

    def steps(self) -> Iterator[int]:
        """The power at rest, a first time that is not counted, and one repeat of each model after the other."""
        if self._meter.names and self._idle:
            self._meter.start()
            begun = time.perf_counter()
            time.sleep(self._idle)
            self._watts = self._meter.stop() / (time.perf_counter() - begun)
        for one, read in zip(self._models, self._prompts, strict=True):
            uninterrupted(one, read, max_new_tokens=2)
        for _ in range(self._repeats):
            for one, read, own in zip(self._models, self._prompts, self._times, strict=True):
                own.append(_once(one, read, self._tokens, self._meter))
                yield self.done

    @property
    def cost(self) -> RunningCost:
        """What was timed so far."""
        timed = [
            (name, one, own)
            for name, one, own in zip(names_of(self._models), self._models, self._times, strict=True)
            if own
        ]
        rows, notes = {name: _row(one, own, self._watts) for name, one, own in timed}, [*self._notes]
        if ended := [name for name, row in rows.items() if np.isnan(row["write"])]:
            notes.append(f"{', '.join(ended)} ended the text at once, so writing was not timed; give another prompt.")
        if self.done < self.total:
            notes.append(f"It ended early: {self.done} of {self.total} repeats were timed.")
        return RunningCost(rows, self._meter.names, tuple(notes), self._recipe)


@dataclass(frozen=True)
class _Once:
    """One repeat: seconds and joules of reading so many tokens and of writing so many, and the most memory held."""

    read: int
    read_seconds: float
    read_joules: float
    written: int
    write_seconds: float
    write_joules: float
    peak: int


def _once(lm: LanguageModel, ids: torch.Tensor, tokens: int, meter: Meter) -> _Once:
    begun: list[float] = []

    def first(token: Any) -> None:
        if not begun:  # from the first token on: what comes before it is the prompt
            meter.start()
            begun.append(time.perf_counter())

    with _watched(lm) as peak:
        meter.start()
        start = time.perf_counter()
        run(lm, ids, logits="last", to="cpu")
        read, used = time.perf_counter() - start, meter.stop()
        written = len(uninterrupted(lm, ids, max_new_tokens=tokens, on_token=first, alternatives=1).tokens) - 1
        write, burnt = time.perf_counter() - begun[0], meter.stop()
    return _Once(ids.shape[1], read, used, written, write, burnt, peak())


def _row(lm: LanguageModel, times: Sequence[_Once], watts: float) -> dict[str, Any]:
    reads = [one.read / one.read_seconds for one in times]
    writes = [one.written / one.write_seconds if one.written else float("nan") for one in times]
    written = sum(one.written for one in times) or float("nan")
    joules = 1e3 * sum(one.write_joules for one in times) / written
    at_rest = 1e3 * watts * sum(one.write_seconds for one in times) / written
    return {
        "bits": lm.bits,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": ", ".join(dict.fromkeys(map(str, lm.devices))),
        "weights": lm.memory().total,
        "peak": max(one.peak for one in times),
        "read": float(np.median(reads)),
        "read_low": min(reads),
        "read_high": max(reads),
        "write": float(np.median(writes)),
        "write_low": min(writes),
        "write_high": max(writes),
        "idle_watts": watts,
        "read_joules": 1e3 * sum(one.read_joules for one in times) / sum(one.read for one in times),
        "write_joules": joules,
        "write_above_idle": joules - at_rest,
    }


@contextmanager
def _watched(lm: LanguageModel) -> Iterator[Any]:
    """Yields a function that gives the most bytes that were held while the block ran."""
    gpus = [device for device in lm.devices if device.type == "cuda"]
    if gpus:
        for device in gpus:
            torch.cuda.reset_peak_memory_stats(device)
        yield lambda: sum(torch.cuda.max_memory_allocated(device) for device in gpus)
        return
    import psutil

    process, over, seen = psutil.Process(), threading.Event(), [0]

    def look() -> None:
        seen[0] = max(seen[0], int(process.memory_info().rss))

    def keep_looking() -> None:
        while not over.wait(WATCH):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    look()
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        over.set()
        thread.join()
        look()  # also where the block was shorter than the time between two looks


def _built_in(lm: LanguageModel, tokens: int) -> torch.Tensor:
    """The beginning of the built-in passage, shorter where the context has less room beside what is written."""
    return encode(lm, PASSAGE, most=None)[:, : min(READ, max(1, (lm.context or READ + tokens) - tokens))]


def _notes(meter: Meter, models: Sequence[LanguageModel]) -> list[str]:
    notes = []
    if meter.names:
        notes.append(f"Energy is that of {', '.join(meter.names)}, other programs' included.")
    for why in meter.missing:
        notes.append(f"{'Not all energy is measurable' if meter.names else 'Energy: not measurable'} here: {why}.")
    if len(models) > 1 and any(device.type == "cpu" for one in models for device in one.devices):
        notes.append("The memory at most is that of this process, with all of these models in it.")
    if (taken := usable() - free()) > BUSY:
        notes.append(f"Other programs used {taken:.1f} of {usable()} processors when this began, which slows it down.")
    return notes
