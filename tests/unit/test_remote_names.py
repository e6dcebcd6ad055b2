"""Every public name that takes a model works on one that is elsewhere, or says before any work why it does not.

A new function that takes a model has to be entered here: in `WORKS` with what it gives, in `REFUSED`, or among those
that other tests use.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from next_room import CLEAN, CORRUPT, PAIR, NextRoom

import labkit as lk
from labkit.elsewhere import BLOCKS, CALLS, Elsewhere
from labkit.generation import continuations
from labkit.remote.model import RemoteModel
from labkit.sweeps import workers

HERE = Path(__file__).parent
PAIRS = [PAIR, (CORRUPT, CLEAN, " William", " Susan")]


def edges(lm: Any) -> Any:
    return lk.edge_attribution(lm, *PAIR, progress=False).circuit(40)


def three(found: Any) -> Any:
    return found.clean, found.corrupt, found.circuit


def collected(lm: Any, **how: Any) -> Any:
    texts = ["Hello there", "A cat sat on the mat", CLEAN]
    found = lk.collect(lm, texts, read=["resid_post.2", "z.1.3"], progress=False, **how)
    return found["resid_post.2"], found["z.1.3"], found.ids, found.rows.position.to_numpy()


def swept(lm: Any, **how: Any) -> Any:
    found = lk.sweep(lm, PAIRS, site="z", layers=[1, 3], progress=False, **how)
    return [(grid.values, grid.clean, grid.corrupt) for grid in found.grids], [grid.code() for grid in found.grids]


def ablated(lm: Any) -> Any:
    pairs = lk.audit(lm, limit=2, progress=False)
    found = lk.audit_without(
        lm, pairs, [(1, 3), (2, 0)], categories=pairs.categories[:1], controls=1, text=CLEAN, quality_limit=1,
        progress=False,
    )  # fmt: skip
    logprobs = [one.logprobs for one in found.audits], [one.logprobs for one in found.quality]
    assert np.abs(logprobs[0][1] - logprobs[0][0]).max() > 1e-3
    return logprobs, found.surprisals, found.heads, found.controls


def refusals(lm: Any) -> Any:
    pairs = [("tell of cats", "kill cats"), ("paint rain", "steal rain"), ("see dogs", "hurt dogs"), ("a word", "burn")]
    found = lk.refusal_direction(
        lm, pairs, layers=[1, 2], controls=2, new_tokens=2, refusals=["No"], answers=["Yes"], progress=False
    )
    return found.vector.values, found.to_frame().to_numpy()


def searched(lm: Any) -> Any:
    sides = ([f"{begin} {end}" for end in ("cats", "dogs", "rain", "it")] for begin in ("I love", "I hate"))
    found = lk.steering_search(lm, *sides, layers=[1, 2], strengths=[1.0, 4.0], random=1, progress=False)
    return found.to_frame().to_numpy()


def injected(lm: Any) -> Any:
    text = "It rained a lot."
    how = {"question": "What?", "answer": "rain", "instructed": "cat", "controls": 1}
    found = lk.injection(lm, text, "Say cat", progress=False, **how)
    return found.log_odds, found.random, found.attention, found.elsewhere


def carried(lm: Any) -> Any:
    sides = (CLEAN, CORRUPT, "Susan", True), (CORRUPT, CLEAN, "William", False)
    pairs = [
        lk.MinimalPair("names", (here, f" {word}"), (there, f" {word}"), "one", word, "both", first)
        for here, there, word, first in sides
    ]
    found = lk.audit_heads(lm, lk.audit(lm, pairs, progress=False), "names", progress=False)
    return found.effects, found.direct, found.direct_mlp, found.gaps


WORKS: dict[str, Callable[[Any], Any]] = {
    "Circuit.faithfulness": lambda lm: three(edges(lm).faithfulness(lm, PAIRS)),
    "Circuit.completeness": lambda lm: three(edges(lm).completeness(lm, PAIRS, metric="logprob")),
    "sweep": swept,
    "audit_without": ablated,
    "audit_heads": carried,
    "audit": lambda lm: lk.audit(lm, limit=6, progress=False).logprobs,
    "benchmark": lambda lm: lk.benchmark(lm, "mini", limit=2, compare=lm, progress=False).logprobs,
    "memorisation": lambda lm: lk.memorisation(lm, [CLEAN, CORRUPT], given=6, progress=False).logprobs,
    "refusal_direction": refusals,
    "steering_search": searched,
    "injection": injected,
    "collect": collected,
    "collect last": lambda lm: collected(lm, positions="last"),
    "collect by a function": lambda lm: collected(lm, positions=lambda tokens: [0, len(tokens) - 1]),
    "Task.pairs": lambda lm: lk.task("indirect object").pairs(lm, n=3),
    "Task.verify": lambda lm: repr(lk.task("indirect object").verify(lm, PAIRS)),
}


def ways(lm: Any, tmp: Path) -> dict[str, Callable[[], Any]]:
    functions = {
        "sweep with a function": lambda: lk.sweep(lm, PAIRS, metric=lambda x: x[:, 0], progress=False),
        "Circuit.faithfulness with a function": lambda: CIRCUIT[0].faithfulness(lm, PAIRS, metric=lambda x: x[:, 0]),
        "steering_search with a function": lambda: lk.steering_search(
            lm, ["a cat"], ["a dog"], prompts=["x"], effect=lambda x: x[:, 0], progress=False
        ),
    }
    return functions | {
        "sweep on workers": lambda: lk.sweep(lm, PAIRS, executor=ThreadPoolExecutor(1), progress=False),
        "collect on workers": lambda: lk.collect(
            lm, ["a"], read=["z"], executor=ThreadPoolExecutor(1), store=tmp / "c", progress=False
        ),
        "compare_findings": lambda: lk.compare_findings(lm, lm, PAIRS, progress=False),
        "quantisation_report": lambda: lk.quantisation_report({"one": lm, "other": {"bits": 4}}, progress=False),
        "what_to_keep": lambda: lk.what_to_keep(lm, lm, CLEAN, " Susan", progress=False),
        "running_cost": lambda: lk.running_cost(lm, progress=False),
        "QuantLab": lambda: lk.QuantLab(lm, lm, CLEAN, " Susan", " William"),
        "PairRuns": lambda: lk.PairRuns(lm, lm.encode(CLEAN), lm.encode(CORRUPT)).base("clean"),
    }


REFUSED = (
    "sweep with a function", "Circuit.faithfulness with a function", "steering_search with a function",
    "sweep on workers", "collect on workers", "compare_findings", "quantisation_report", "what_to_keep", "running_cost",
    "QuantLab", "PairRuns",
)  # fmt: skip
CIRCUIT: list[Any] = []

IN = ("test_remote_model.py", "test_remote_widgets.py")
"""Tests in which the other names are used on a model elsewhere, as `lk.NAME(` or `lm.NAME(`."""
MADE = {
    "AttentionPatterns": "attention", "Branch": "LanguageModel.tree", "Tree": "LanguageModel.tree",
    "InputAttribution": "input_attribution", "KnockOut": "knock_out", "LogitLens": "logit_lens",
    "Run": "LanguageModel.run", "Tree.from_dict": "LanguageModel.tree", "PatchLab.open": "PatchLab",
    "Findings": "compare_findings", "KeepSearch": "what_to_keep", "Patchscope": "patchscope", "Site.layers": "patch",
    **{f"{one}.{what}": "patch" for one in ("Mean", "Noise", "Resample", "Zero")
       for what in ("draws", "told", "positions")},
    "Audit": "audit",
}  # fmt: skip
"""Of what is not made from a model by hand: the name that it comes with."""
OPENED = {"open_lens", "open_input_attribution", "load_mib", "load_control_vector"}
"""They read a file and check that it is of this model; tested below."""
A_MODEL = re.compile(r"\b(LanguageModel|ModelSource|Models?)\b")


def takes_a_model(function: Any) -> bool:
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(one.name == "lm" or A_MODEL.search(str(one.annotation)) for one in given)


def public() -> set[str]:
    """The public names that take a model, with methods that do, and what a model itself does."""
    found = set()
    for name in dir(lk):
        thing = getattr(lk, name)
        if name.startswith("_") or not callable(thing) or thing is lk.RemoteModel:
            continue
        if takes_a_model(thing):
            found.add(name)
        if inspect.isclass(thing):
            methods = {one: inspect.getattr_static(thing, one) for one in dir(thing) if not one.startswith("_")}
            for one, method in methods.items():
                if (inspect.isfunction(method) or isinstance(method, classmethod | staticmethod)) and (
                    takes_a_model(getattr(thing, one)) or (thing is lk.LanguageModel and inspect.isfunction(method))
                ):
                    found.add(f"{name}.{one}")
    return found


INSIDE = {"LanguageModel.busy", "LanguageModel.for_patching", "LanguageModel.regions"}
"""Methods of a model that its own machine uses, or that need its tokenizer alone."""


def test_every_public_name_that_takes_a_model_is_accounted_for() -> None:
    said = "".join((HERE / name).read_text("utf-8") for name in IN)
    shown = lambda name: re.search(rf"\b(?:lk|lm|away)\.{name.rpartition('.')[2]}\(", said)  # noqa: E731
    mine = {name.split(" ")[0] for name in (*WORKS, *REFUSED)} | OPENED | INSIDE
    names = public()
    assert {"sweep", "Circuit.faithfulness", "AuditLab", "LanguageModel.run"} <= names
    left = {name for name in names - mine if not shown(MADE.get(name, name))}
    assert not left, f"do they work on a model that is elsewhere? Enter them in this file: {sorted(left)}"


def near(here: Any, there: Any) -> None:
    if isinstance(here, list | tuple) and not isinstance(here, str):
        assert len(here) == len(there)
        for a, b in zip(here, there, strict=True):
            near(a, b)
    elif isinstance(here, torch.Tensor | np.ndarray):
        a, b = np.asarray(here), np.asarray(there)
        assert a.shape == b.shape
        if a.dtype == object:
            near([*a.ravel()], [*b.ravel()])
        else:
            assert np.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
    elif isinstance(here, float):
        assert there == pytest.approx(here, rel=1e-4, abs=1e-4, nan_ok=True)
    else:
        assert here == there


@pytest.mark.parametrize("name", WORKS)
def test_it_gives_the_numbers_that_it_gives_here(
    name: str, home: lk.LanguageModel, away: RemoteModel, next_room: NextRoom
) -> None:
    there = WORKS[name](away)
    assert next_room.calls or name == "Task.pairs"  # which needs the tokenizer alone
    near(WORKS[name](home), there)


@pytest.mark.parametrize("name", REFUSED)
def test_it_says_before_any_work_why_not(
    name: str, home: lk.LanguageModel, away: RemoteModel, next_room: NextRoom, tmp_path: Path
) -> None:
    if not CIRCUIT:
        CIRCUIT.append(edges(home))
    with pytest.raises((Elsewhere, TypeError), match=r"on another machine|runs no code of yours") as caught:
        ways(away, tmp_path)[name]()
    assert not next_room.calls
    assert not [*tmp_path.iterdir()]
    said = str(caught.value)
    assert "lk.load(" in said or "leave it out" in said or "run it there" in said
    page = (HERE.parents[1] / "docs" / "serve.md").read_text("utf-8")
    what = {"with": "function", "on": "executor="}.get(name.split(" ")[1] if " " in name else "", name.split(" ")[0])
    assert what in page


def test_files_of_the_served_model_open_with_it(home: lk.LanguageModel, away: RemoteModel, tmp_path: Path) -> None:
    vector = lk.steering_vector(away, ["I love it"], ["I hate it"], 2)
    path = lk.save_control_vector([vector], tmp_path / "vector.gguf")
    near(lk.load_control_vector(away, path)[2].values, lk.load_control_vector(home, path)[2].values)
    lens = lk.open_lens(lk.logit_lens(away, CLEAN).save(tmp_path / "lens.npz"), away)
    near(lens.logits(2), lk.logit_lens(home, CLEAN).logits(2))
    said = lk.input_attribution(away, CLEAN, written=" Susan", progress=False)
    opened = lk.open_input_attribution(said.save(tmp_path / "said.npz"), lm=away)
    near(opened.to_frame().to_numpy(), said.to_frame().to_numpy())
    mib = edges(away).save_mib(tmp_path / "edges.json", d_model=away.d_model)
    assert lk.load_mib(mib, away).n_edges == edges(home).n_edges


def test_a_long_sweep_is_asked_for_in_pieces_and_goes_on_from_its_store(
    home: lk.LanguageModel, away: RemoteModel, next_room: NextRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "TOGETHER", 2)
    pairs = [PAIR] * 6
    asked = {"site": "z", "layers": [1], "shard": 2, "store": tmp_path / "sweep", "progress": False}
    done: list[bytes] = []

    class Gone(NextRoom):
        def call(self, body: bytes, **how: Any) -> bytes:
            done.append(body)
            if sum(b"sweeps.workers" in one for one in done) == 3:
                raise KeyboardInterrupt
            return super().call(body, **how)

    with pytest.warns(UserWarning, match=r"interrupted: 4 of 6 pairs are in the sweep"):
        begun = lk.sweep(RemoteModel(Gone(home)), pairs, **asked)
    assert len(begun.done) == 4
    whole = lk.sweep(away, pairs, **asked)
    assert sum(b"sweeps.workers" in one for one in next_room.calls) == 1
    near([grid.values for grid in whole.grids], [lk.patch(home, *PAIR, site="z", layers=[1]).values] * 6)


def test_an_interrupt_ends_all_pieces_and_keeps_what_is_done(
    home: lk.LanguageModel, away: RemoteModel, next_room: NextRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuations, "PIECE", 8)
    pieces = 0

    def interrupt(told: dict[str, Any]) -> None:
        nonlocal pieces
        pieces += told.get("done") == told.get("total")
        if pieces == 2:
            raise KeyboardInterrupt

    next_room.on_report = interrupt
    with pytest.warns(UserWarning, match=r"interrupted: \d+ of \d+ texts are in the benchmark"):
        found = lk.benchmark(away, "mini", limit=8, progress=False)
    assert len(next_room.calls) == 2
    done = np.isfinite(found.logprobs).all(1)
    assert 0 < done.sum() < len(done)
    whole = lk.benchmark(home, "mini", limit=8, progress=False)
    near(whole.logprobs[done], found.logprobs[done])


def test_an_interrupt_during_a_small_call_is_one(away: RemoteModel, next_room: NextRoom) -> None:
    class Slow(NextRoom):
        def call(self, body: bytes, *, stop: threading.Event | None = None, **how: Any) -> bytes:
            assert stop is not None
            stop.set()  # as a transport does at an interrupt
            return super().call(body, stop=threading.Event(), **how)

    with pytest.raises(KeyboardInterrupt):
        RemoteModel(Slow(next_room.lm)).run(CLEAN)


def test_pairs_that_do_not_fit_into_a_call_are_asked_for_one_by_one(
    home: lk.LanguageModel, away: RemoteModel, next_room: NextRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = workers._here

    def slow(lm: Any, pairs: Any, settings: Any, **how: Any) -> Any:
        return real(lm, pairs, settings, stopped=(lambda: True) if len(pairs) > 1 else lambda: False)

    monkeypatch.setattr(workers, "_here", slow)
    found = lk.sweep(away, PAIRS, site="z", layers=[1], shard=2, progress=False)
    assert sum(b"sweeps.workers" in one for one in next_room.calls) == 3
    monkeypatch.undo()
    near([grid.values for grid in found.grids], [lk.patch(home, *pair, site="z", layers=[1]).values for pair in PAIRS])
    monkeypatch.setattr(workers, "_here", lambda *args, **how: iter(()))
    with pytest.raises(RuntimeError, match="longer than one call may"):
        lk.sweep(away, PAIRS, site="z", layers=[1], progress=False)


def test_heads_are_ablated_there_while_a_block_runs(home: lk.LanguageModel, away: RemoteModel) -> None:
    from labkit.audits.heads import at_mean

    plain = away.run(CLEAN).logits
    with at_mean(away, [(1, 3), (2, 0)], text=CORRUPT):
        there = away.run(CLEAN).logits
    with at_mean(home, [(1, 3), (2, 0)], text=CORRUPT):
        near(home.run(CLEAN).logits, there)
    assert not torch.allclose(plain, there)
    assert torch.equal(away.run(CLEAN).logits, plain)


def test_a_server_of_its_own_process_knows_every_call() -> None:
    """Whatever is marked anywhere is registered where calls are answered, not only where the caller imported it."""
    code = "import labkit.remote.calls\nfrom labkit.elsewhere import BLOCKS, CALLS\nprint(*sorted({*BLOCKS, *CALLS}))"
    with warnings.catch_warnings():
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    marked = {
        f"{path.relative_to(HERE.parents[1] / 'labkit').with_suffix('').as_posix().replace('/', '.')}"
        for path in (HERE.parents[1] / "labkit").rglob("*.py")
        if re.search(r"^ *@(where_the_model_is|while_it_runs)\b", path.read_text("utf-8"), re.M)
    }
    known = found.stdout.split()
    assert {name for name in marked if not any(one.startswith(f"{name}.") for one in known)} == set()
    assert set(known) >= {name for name in (*CALLS, *BLOCKS) if name.rpartition(".")[0] in marked}
