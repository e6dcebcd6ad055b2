"""Every kind of object that goes over the wire. To send another, add its class here.

Data classes are sent field by field and made again by their constructors, with the checks that those make.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from labkit.activations.batch import Batch
from labkit.activations.run import Run
from labkit.activations.sites import Site
from labkit.attention_maps.ablation import KnockOut
from labkit.attention_maps.patterns import AttentionPatterns
from labkit.attention_maps.weighting import LogitContribution
from labkit.attribution.deletion import DeletionCurve
from labkit.attribution.result import InputAttribution
from labkit.attribution.units import Unit
from labkit.audits.choices import Choices
from labkit.audits.steering_search import SteeringTest
from labkit.circuits.graph import Wiring
from labkit.circuits.scores import EdgeScores
from labkit.datasets.tasks import PromptPair
from labkit.elsewhere import LISTENER, Nobody
from labkit.features.head_circuit import HeadCircuit
from labkit.features.head_circuits import HeadCircuits
from labkit.features.writes import Writer, Writes
from labkit.generation.continuations import Continuation
from labkit.generation.readings import Readings
from labkit.generation.result import Generation
from labkit.generation.sampling import Sampling
from labkit.generation.score import Score
from labkit.generation.token_table import GeneratedToken, Record
from labkit.lens.direct_attribution import DirectAttribution
from labkit.lens.logit_lens import LogitLens
from labkit.lens.patchscope_result import Patchscope, PatchscopeRow, Wrote
from labkit.models.handle import PerModel
from labkit.models.memory import MemoryReport
from labkit.patching.cell_report import CellReport, JointReport
from labkit.patching.continued import Continued
from labkit.patching.grid import PatchGrid
from labkit.patching.patch import PatchJob
from labkit.patching.path_grid import PathGrid
from labkit.patching.perturbations import Mean, Noise, Resample, Zero
from labkit.patching.spec import PatchSpec
from labkit.remote.wire import KINDS, Kind, pack
from labkit.sanity.checks import ControlsJob, ControlsSpec
from labkit.sanity.report import Check, Controls
from labkit.steering.vector import Steering, SteeringVector
from labkit.text.chat import Chat
from labkit.text.tokens import Token

SENT = (
    ControlsSpec, InputAttribution, LogitLens, Mean, Noise, PatchGrid, Resample, Sampling, Site, Steering,
    SteeringVector, Token, Unit, Wiring, Zero,
)  # fmt: skip
"""Data classes that are arguments, too."""
RETURNED = (
    Batch, CellReport, Check, Choices, Continuation, Continued, Controls, DeletionCurve, DirectAttribution, EdgeScores,
    GeneratedToken, Generation, HeadCircuit, HeadCircuits, JointReport, KnockOut, LogitContribution, MemoryReport,
    Patchscope, PatchscopeRow, PathGrid, Run, Score, Writes, Wrote,
)  # fmt: skip
AT_ONCE = 4
"""Prompts whose attention calls are kept between two questions about them."""


def _data(cls: Any, *, sent: bool) -> Kind:
    """A data class, by the arguments of its constructor."""
    names = [one.name for one in fields(cls) if one.init]
    return Kind(cls, lambda of: {name: getattr(of, name) for name in names}, lambda of, lm: cls(**of), sent)


def _of_record(record: Record) -> dict[str, Any]:
    names = record.dtype.names or ()
    return {"alternatives": record.alternatives, **{name: record.rows[name] for name in names}}


def _record(of: dict[str, Any], _: Any) -> Record:
    record = Record(min(int(of.pop("alternatives")), 1000))
    rows = np.zeros(len(of["id"]), record.dtype)
    for name in record.dtype.names or ():
        rows[name] = of[name]
    return Record(record.alternatives, rows)


def _of_readings(readings: Readings) -> dict[str, Any]:
    readings.flush()
    if readings.folder is not None:
        raise TypeError("what was kept in a folder (store=) cannot be sent")
    left = ("folder", "shards", "_waiting", "_size")
    return {one.name: getattr(readings, one.name) for one in fields(readings) if one.name not in left}


def _of_spec(spec: PatchSpec) -> dict[str, Any]:
    """The request as it was made: the corrupt prompt that a spec fills in by itself is left out."""
    given = {one.name: getattr(spec, one.name) for one in fields(PatchSpec) if one.init}
    if spec.corrupt is spec.clean and (spec.source is not None or spec.perturbation is not None):
        given["corrupt"] = None
    return given


def _job(cls: Any, spec: str) -> Kind:
    """A job of a model, by its spec. The client has made it already, and told what there is to be warned of."""

    def made(of: dict[str, Any], lm: Any) -> Any:
        token = LISTENER.set(Nobody())
        try:
            return cls(lm, of["spec"])
        finally:
            LISTENER.reset(token)

    return Kind(cls, lambda of: {"spec": getattr(of, spec)}, made, sent=True)


_patterns: PerModel[OrderedDict[Any, AttentionPatterns]] = PerModel(OrderedDict)
_writers: PerModel[dict[str, Writer]] = PerModel(dict)


def _attention(of: dict[str, Any], lm: Any) -> AttentionPatterns:
    """Patterns of a prompt: those that were asked about before, while they are kept."""
    new = AttentionPatterns(lm, of["prompt"])
    kept, key = _patterns[lm], tuple(new.ids[0].tolist())
    found = kept[key] = kept.pop(key, new)
    while len(kept) > AT_ONCE:
        kept.popitem(last=False)
    return found


_tests: PerModel[dict[bytes, SteeringTest]] = PerModel(dict)


def _test(of: dict[str, Any], lm: Any) -> SteeringTest:
    """What a search is measured on: the one that was asked about before, while it is the same."""
    kept, key = _tests[lm], pack(of, lm=lm)
    if key not in kept:
        kept.clear()
        kept[key] = SteeringTest(lm, of["held_out"], of["effect"], of["neutral_ids"])
    return kept[key]


def _writer(_: dict[str, Any], lm: Any) -> Writer:
    return _writers[lm].setdefault("", Writer(lm))


def forget(lm: Any) -> None:
    """Drop what is kept between questions: the model is steered, or no longer is."""
    _patterns[lm].clear()
    _tests[lm].clear()


def _of_test(of: SteeringTest) -> dict[str, Any]:
    return {"held_out": of.held_out, "effect": of.effect, "neutral_ids": of.neutral_ids}


def _by_name(of: Mapping[str, Any], _: Any) -> PromptPair:
    return PromptPair(**of)


KINDS |= {cls.__name__: _data(cls, sent=True) for cls in SENT}
KINDS |= {cls.__name__: _data(cls, sent=False) for cls in RETURNED}
KINDS |= {
    kind.cls.__name__: kind
    for kind in (
        Kind(AttentionPatterns, lambda of: {"prompt": of.prompt}, _attention, sent=True),
        Kind(Chat, lambda of: of.to_dict(), lambda of, _: Chat.from_dict(of), sent=True),
        _job(ControlsJob, "_asked"),
        _job(PatchJob, "spec"),
        Kind(PatchSpec, _of_spec, lambda of, _: PatchSpec(**of), sent=True),
        Kind(PromptPair, lambda of: of._asdict(), _by_name, sent=True),
        Kind(Readings, _of_readings, lambda of, _: Readings(**{**of, "folder": None})),
        Kind(Record, _of_record, _record),
        Kind(SteeringTest, _of_test, _test, sent=True),
        Kind(Writer, lambda of: {}, _writer, sent=True),
    )
}
