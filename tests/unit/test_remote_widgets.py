"""The tools on a model that is elsewhere show what they show on one that is here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from next_room import CLEAN, PAIR, NextRoom

import labkit as lk
from labkit.patching import patch as patching
from labkit.remote import calls
from labkit.remote.model import RemoteModel
from labkit.sanity import checks
from labkit.widgets.patch_lab import live_grid

if TYPE_CHECKING:
    from held import Hold

LONG = 120


def prompt_lab(lm: lk.LanguageModel) -> Any:
    lab = lk.PromptLab(lm, CLEAN, max_new_tokens=8)
    lab.run(LONG)
    lab.branch(1, " and")
    lab.wait(LONG)
    return lab


def scoring(lm: lk.LanguageModel) -> Any:
    lab = lk.PromptLab(lm, CLEAN, mode="score")
    lab.run(LONG)
    return lab


def attention_view(lm: lk.LanguageModel) -> Any:
    view = lk.AttentionView(lm, CLEAN, answer=" Susan")
    view.run(LONG)
    view.knock_out(LONG)
    view.what_it_writes(LONG)
    view.finder.score = "repeated_induction"
    view.wait(LONG)
    for weighting in ("value", "rollout", "logit"):
        view.weighting = weighting
        view.wait(LONG)
    return view


def lens_view(lm: lk.LanguageModel) -> Any:
    view = lk.LensView(lm, CLEAN, follow=" William")
    view.run(LONG)
    view.selection = (2, 15)
    view.patchscope(LONG)
    return view


def direct(lm: lk.LanguageModel) -> Any:
    view = lk.LensView(lm, CLEAN, face="direct")
    view.run(LONG)
    return view


def patch_lab(lm: lk.LanguageModel) -> Any:
    lab = lk.PatchLab(lm, *PAIR)
    lab.run(LONG)
    lab.selection = (2, 12)
    lab.wait(LONG)
    lab.continue_under(LONG)
    return lab


def several_cells(lm: lk.LanguageModel) -> Any:
    lab = lk.PatchLab(lm, *PAIR, chosen=[(1, 9), (2, 12)])
    lab.run(LONG)
    lab.chosen = []
    lab.arrow = ((1, 9), (2, 11))
    lab.wait(LONG)
    return lab


def heads(lm: lk.LanguageModel) -> Any:
    lab = lk.PatchLab(lm, *PAIR, site="z")
    lab.run(LONG)
    lab.selection = (2, 3)
    lab.wait(LONG)
    return lab


def steer_lab(lm: lk.LanguageModel) -> Any:
    sides = {"positive": "I love it\nGreat", "negative": "I hate it\nBad"}
    lab = lk.SteerLab(lm, CLEAN, **sides, max_new_tokens=6, strength=1.5)
    lab.run(LONG)
    return lab


def audit_lab(lm: lk.LanguageModel) -> Any:
    lab = lk.AuditLab(lm, limit=20)
    lab.run(LONG)
    return lab


def timeless(text: str) -> str:
    return re.sub(r"[\d.]+ tokens/s|in [\d.]+ s|computed before", "", text)


TOOLS = (
    prompt_lab, scoring, attention_view, lens_view, direct, patch_lab, several_cells, heads, steer_lab, audit_lab,
)  # fmt: skip


@pytest.mark.parametrize("make", TOOLS, ids=lambda make: make.__name__)
def test_a_tool_shows_the_same_pictures(
    make: Callable[[lk.LanguageModel], Any], home: lk.LanguageModel, away: RemoteModel
) -> None:
    away.transport.calls.clear()
    here, there = make(home), make(away)
    assert away.transport.calls
    assert timeless(there.snapshot()) == timeless(here.snapshot())
    assert len(there.snapshot()) > 1500
    assert there.code() == here.code()
    assert repr(there) == repr(here)
    assert timeless(there.status.text) == timeless(here.status.text)


@pytest.mark.long
def test_an_audit_finds_the_heads_and_audits_again_without_them(lm4: lk.LanguageModel) -> None:
    """With the default model: a tiny one prefers nothing, and has no heads for that."""
    labs = [
        lk.AuditLab(lm, categories=["gender and occupation"], limit=24, background=False)
        for lm in (lm4, RemoteModel(NextRoom(lm4)))
    ]
    for lab in labs:
        lab.run()
        lab.where()
        assert not lab.ablate_button.disabled
        lab.ablate()
    here, there = labs
    assert there.found.heads() == here.found.heads()
    assert "without" in here.ablation_words.text
    assert there.ablation_words.text == here.ablation_words.text
    assert there.ablation.to_frame().equals(here.ablation.to_frame())
    assert there.snapshot() == here.snapshot()


def test_cells_of_a_grid_come_while_it_is_computed(
    home: lk.LanguageModel, away: RemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "FRAME", 0.0)
    monkeypatch.setattr(live_grid, "FRAME", 0.0)
    monkeypatch.setattr(patching, "tokens_at_once", lambda lm: 10)
    had = []
    lab = lk.PatchLab(away, background=False)
    lab.heatmap.observe(lambda _: had.append(int(np.isfinite(lab.grid.values).sum())), "estimated")
    lab.pair.use(*PAIR)
    lab.run()
    assert len(set(had)) > 3
    assert had == sorted(had)
    assert np.array_equal(lab.grid.values, lk.patch(home, *PAIR, progress=False).values)


def test_a_grid_that_is_paused_keeps_its_cells_and_goes_on(
    home: lk.LanguageModel, away: RemoteModel, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "FRAME", 0.0)
    straight = lk.patch(home, *PAIR, progress=False)
    go = hold(straight.values.size // 2)
    lab = lk.PatchLab(away, *PAIR)
    while lab.grid is None or np.isfinite(lab.grid.values).sum() < straight.values.size // 2:
        time.sleep(0.01)
    lab.pause()
    go.set()
    lab.wait(LONG)
    assert lab.status.text.startswith("Paused at ")
    assert 0 < np.isfinite(lab.grid.values).sum() < straight.values.size
    lab.start()
    lab.wait(LONG)
    assert np.array_equal(lab.grid.values, straight.values)


def test_sanity_checks_come_one_by_one(
    home: lk.LanguageModel, away: RemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "PLAIN", "The cat sat on the mat and saw a bird in the tree. " * 3)  # a short context
    here, there = (lk.PatchLab(lm, *PAIR) for lm in (home, away))
    for lab in (here, there):
        lab.run(LONG)
        lab.check(LONG)
    assert there.controls.list.checks == here.controls.list.checks
    job = lk.ControlsJob(away, *PAIR, progress=False)
    made = [check.name for check in job.steps()]
    assert list(dict.fromkeys(made)) == [check.name for check in job.result.checks]
    assert job.done == job.total
    again = lk.controls(away, *PAIR, progress=False)
    assert [(one.name, one.ok, one.says) for one in again.checks] == [
        (one.name, one.ok, one.says) for one in job.result.checks
    ]


@pytest.mark.parametrize("way", ["source", "lm"])
def test_a_grid_between_two_machines_is_refused(way: str, home: lk.LanguageModel, away: RemoteModel) -> None:
    models = (home, away) if way == "source" else (away, home)
    with pytest.raises(RuntimeError, match=r"on another machine: load both"):
        lk.QuantLab(*models, CLEAN, " Susan", " William")
