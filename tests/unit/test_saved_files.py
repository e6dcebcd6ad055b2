"""Files: every kind says what it is, opens again, and is refused by the openers of all others in words that help."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from safetensors import safe_open

import labkit as lk
from labkit.datasets.injections import Case
from labkit.results.file import KINDS, save_arrays
from labkit.widgets.patch_lab.lab import PatchLab

FILES = Path(__file__).parents[1] / "files"
"""Written by labkit 0.1.0 from `loud("llama")`; `grid_without_a_kind.npz` by an earlier one, `report.npz`,
`findings.npz`, `benchmark.npz`, `refusal.npz`, `generation.npz`, `injection.npz`, `memorisation.npz`, `choices.npz`,
`running_cost.npz`, `probe.npz`, `collection`, `input_attribution.npz`, `deletion_curve.npz`, `patchscope.npz`,
`continued.npz`, `steering_search.npz`, `examples.npz`, `head_circuit.npz`, `head_circuits.npz` and those of audits by
0.2.0, the first to have them. Never write them anew."""
OLD = {
    "grid.npz": "grid", "grid_without_a_kind.npz": "grid", "paths.npz": "grid", "edges.npz": "edges",
    "attention.npz": "attention", "lens.npz": "lens", "vector.npz": "steering vector", "lab.npz": "lab",
    "session.json": "labkit prompt session", "sweep": "sweep", "sweep/shard-00000.npz": "sweep shard",
    "report.npz": "quantisation report", "findings.npz": "findings", "benchmark.npz": "benchmark",
    "refusal.npz": "refusal", "audit.npz": "audit", "audit_heads.npz": "audit heads",
    "audit_ablation.npz": "audit ablation", "injection.npz": "injection", "memorisation.npz": "memorisation",
    "choices.npz": "choices", "running_cost.npz": "running cost",
    "generation.npz": "generation", "probe.npz": "probe", "collection": "collection",
    "collection/shard-00000.safetensors": "collection shard",
    "input_attribution.npz": "input attribution", "steering_search.npz": "steering search",
    "deletion_curve.npz": "deletion curve", "patchscope.npz": "patchscope", "continued.npz": "continued",
    "examples.npz": "examples", "head_circuit.npz": "head circuit", "head_circuits.npz": "head circuits",
}  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> lk.LanguageModel:
    return loud("llama")


def reported(lm: lk.LanguageModel) -> lk.QuantisationReport:
    return lk.quantisation_report({"a": lm, "b": lm}, text="To Mary, to John", pairs=[], progress=False)


def compared(lm: lk.LanguageModel) -> lk.Findings:
    pair = IDS, CORRUPT_IDS, ANSWER, FOIL
    return lk.compare_findings(lm, lm, [pair], findings=["z"], k=2, progress=False)


def benchmarked(lm: lk.LanguageModel) -> lk.Benchmark:
    items = pd.DataFrame({"prompt": ["To Mary", "To John"], "choices": [["a", "b"]] * 2, "answer": ["a", "b"]})
    return lk.benchmark(lm, items, progress=False)


def refused(lm: lk.LanguageModel) -> lk.Refusal:
    pairs = [(f"{letter} one", f"{letter} two") for letter in "abcd"]
    settings = {"controls": 2, "new_tokens": 1, "refusals": ["N"], "answers": ["Y"], "progress": False}
    return lk.refusal_direction(lm, pairs, **settings)


def searched(lm: lk.LanguageModel) -> lk.SteeringSearch:
    settings = {"layers": [1], "strengths": [0.5, 1], "neutral": "To Mary", "random": 1, "progress": False}
    return lk.steering_search(lm, ["To a"], ["To b"], prompts=[("I am", "I do")], **settings)


def injected() -> lk.Injection:
    """Put together, as the prompt would be too long for this model."""
    draw = np.random.default_rng(0)
    shapes = {"log_odds": (1, 3), "random": (1, 2), "attention": (1, 2, 4), "elsewhere": (1, 2, 4)}
    arrays = {name: draw.random(shape).astype(np.float32) for name, shape in shapes.items()}
    case = Case("To Mary. {}", "Who?", "Mary", "Say John.", "John")
    return lk.Injection((case,), **arrays, tokens=np.array([9]), recipe={"load": "", "asked": {}})


def asked(lm: lk.LanguageModel) -> dict[str, Any]:
    """What is asked about answers and texts, and what it costs."""
    return {
        "memorisation": lk.memorisation(lm, ["To Mary, to John", "To John"], given=4, progress=False),
        "choices": lk.choices(lm, "To ", ["Mary", "John"], prior="I "),
        "running cost": lk.running_cost(lm, tokens=2, prompt="To Mary", repeats=1, idle=0, progress=False),
    }


FOLDERS = ("sweep", "collection")
SHARDS = ("sweep shard", "collection shard")


def collected(lm: lk.LanguageModel, store: str | Path) -> lk.Collection:
    texts = [torch.tensor([[n, n + 1, n + 2]]) for n in range(20, 28)]
    settings = {"read": ["resid_post.1"], "positions": "last", "dtype": "float16", "progress": False}
    return lk.collect(lm, texts, store=store, **settings)


def written(lm: lk.LanguageModel) -> lk.Generation:
    return lm.generate(IDS, max_new_tokens=3, read=["resid_post", "pattern.1"])


def inputs(lm: lk.LanguageModel) -> dict[str, Any]:
    """What the prompt did, and what an activation says."""
    how = {"written": [ANSWER], "foil": [FOIL], "by": [(0, 4), (4, 8)], "progress": False}
    attribution = lk.input_attribution(lm, IDS, **how)
    curve = lk.deletion(attribution, orders=2, progress=False)
    scope = lk.patchscope(lm, IDS, site="resid_post.0@-1", into=CORRUPT_IDS, max_new_tokens=2, progress=False)
    grid = lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, layers=[1], positions=[5, 6], progress=False)
    under = lk.continue_under(lm, grid, layer=1, position=5, max_new_tokens=3)
    return {"input attribution": attribution, "deletion curve": curve, "patchscope": scope, "continued": under}


def audited(lm: lk.LanguageModel) -> dict[str, Any]:
    words = [("M", "Mary", "John", True), ("J", "John", "Mary", False)]
    pairs = [
        lk.MinimalPair("c", (f"To {a}", w), (f"To {b}", w), "To", w, "Mary | John", first) for w, a, b, first in words
    ]
    audit = lk.audit(lm, pairs, progress=False)
    heads = lk.audit_heads(lm, audit, progress=False)
    ablation = lk.audit_without(lm, audit, [(1, 0)], controls=1, text="To Mary, to John", progress=False)
    return {"": audit, "heads": heads, "ablation": ablation}


@pytest.fixture(scope="module")
def openers(lm: lk.LanguageModel) -> dict[str, Callable[[Any], Any]]:
    """By kind of file."""
    return {
        "grid": lk.open_grid, "edges": lk.open_edges, "attention": lk.open_attention, "lens": lk.open_lens,
        "steering vector": lk.open_steering_vector, "sweep": lk.open_sweep, "quantisation report": lk.open_report,
        "findings": lk.open_findings, "benchmark": lk.open_benchmark, "refusal": lk.open_refusal,
        "injection": lk.open_injection, "memorisation": lk.open_memorisation, "choices": lk.open_choices,
        "running cost": lk.open_running_cost,
        "audit": lk.open_audit, "audit heads": lk.open_audit_heads, "audit ablation": lk.open_audit_ablation,
        "generation": lk.open_generation, "probe": lk.open_probe, "collection": lk.open_collection,
        "input attribution": lk.open_input_attribution, "steering search": lk.open_steering_search,
        "continued": lk.open_continued,
        "deletion curve": lk.open_deletion_curve, "patchscope": lk.open_patchscope, "examples": lk.open_examples,
        "head circuit": lk.open_head_circuit, "head circuits": lk.open_head_circuits,
        "lab": lambda path: PatchLab.open(lm, path, background=False),
        "labkit prompt session": lambda path: lk.PromptLab(lm, background=False).open_session(path),
    }  # fmt: skip


@pytest.fixture(scope="module")
def new(lm: lk.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of every kind, written now."""
    folder = tmp_path_factory.mktemp("new")
    pair = lm, IDS, CORRUPT_IDS, ANSWER, FOIL
    lab = lk.PromptLab(lm, "To Mary", background=False)
    lab.max_new_tokens = 2
    lab.run()
    settings = {"over": ("layer", "position"), "layers": [1], "positions": [5, 6], "progress": False}
    swept = folder / "sweep"
    lk.sweep(lm, [(IDS, CORRUPT_IDS, ANSWER, FOIL)], **settings, store=swept)
    collection = collected(lm, folder / "collection")
    return {
        "grid": lk.patch(*pair, **settings).save(folder / "grid.npz"),
        "edges": lk.edge_attribution(*pair, steps=1, progress=False).save(folder / "edges.npz"),
        "attention": lk.attention(lm, IDS).save(folder / "attention.npz"),
        "lens": lk.logit_lens(lm, IDS).save(folder / "lens.npz"),
        "steering vector": lk.steering_vector(lm, ["I"], ["you"], 1).save(folder / "vector.npz"),
        "lab": PatchLab(lm, "To Mary", "To John", "M", "J", background=False).save(folder / "lab.npz"),
        "labkit prompt session": lab.save_session(folder / "session.json"),
        "findings": compared(lm).save(folder / "findings.npz"),
        "benchmark": benchmarked(lm).save(folder / "benchmark.npz"),
        "refusal": refused(lm).save(folder / "refusal.npz"),
        "injection": injected().save(folder / "injection.npz"),
        **{kind: one.save(folder / f"{kind}.npz") for kind, one in asked(lm).items()},
        **{f"audit {kind}".strip(): one.save(folder / f"audit_{kind}.npz") for kind, one in audited(lm).items()},
        **{kind: one.save(folder / f"{kind}.npz") for kind, one in inputs(lm).items()},
        "generation": written(lm).save(folder / "generation.npz"),
        "steering search": searched(lm).save(folder / "search.npz"),
        "quantisation report": reported(lm).save(folder / "report.npz"),
        "sweep": swept, "sweep shard": swept / "shard-00000.npz",
        "head circuits": lk.head_circuits(lm, sample=16, progress=False).save(folder / "circuits.npz"),
        "head circuit": lk.head_circuit(lm, "1.2", tokens=[5, 6], top=3).save(folder / "circuit.npz"),
        "examples": lk.examples(collection, "resid_post.1", progress=False).save(folder / "examples.npz"),
        "probe": lk.probe(collection, [0, 1] * 4, folds=2, controls=1, progress=False).save(folder / "probe.npz"),
        "collection": folder / "collection", "collection shard": folder / "collection" / "shard-00000.safetensors",
    }  # fmt: skip


def test_every_public_opener_is_for_a_kind_of_file() -> None:
    for name in (name for name in lk.__all__ if name.startswith("open_")):
        assert any(kind.opener.startswith(f"lk.{name}(") for kind in KINDS.values()), f"{name} opens no kind of file"
    assert set(OLD.values()) == set(KINDS)


@pytest.mark.parametrize("name", [name for name in OLD if OLD[name] not in SHARDS])
def test_files_of_earlier_versions_open(name: str, openers: dict[str, Any]) -> None:
    opened = openers[OLD[name]](FILES / name)
    values = opened.grid.values if name == "lab.npz" else getattr(opened, "values", None)
    if name == "session.json":
        assert len(opened.runs) == 1
    elif name == "attention.npz":
        assert opened.pattern(1).shape == (4, 12, 12)
    elif name == "lens.npz":
        assert opened.top_ids.shape[:2] == (2, 12)
    elif name == "report.npz":
        assert opened.to_frame().perplexity.gt(1).all()
    elif name == "findings.npz":
        assert opened.to_frame().overlap["z"] == 1
    elif name == "benchmark.npz":
        assert opened.to_frame().loc["all", "items"] == 2
    elif name == "audit.npz":
        assert opened.to_frame()["pairs"].tolist() == [2]
    elif name == "audit_heads.npz":
        assert opened.effects.shape == (1, 2, 4)
    elif name == "audit_ablation.npz":
        assert opened.names == ["nothing", "1.0", f"random: 1.{opened.controls[0][0][1]}"]
    elif name == "injection.npz":
        assert opened.to_frame().shape == (1, 9)
    elif name == "memorisation.npz":
        assert opened.to_frame().shape == (2, 6)
    elif name == "choices.npz":
        assert opened.ways == ("raw", "per_token", "per_byte", "prior")
    elif name == "running_cost.npz":
        assert opened.to_frame()["read"].gt(0).all()
    elif name == "steering_search.npz":
        assert opened.effects.shape == (1, 2, 2, 1)
        assert opened.vector(1).values.shape == (64,)
    elif name == "generation.npz":
        assert opened["resid_post"].shape == (2, 3, 64)
        assert len(opened.tokens) == 3
    elif name == "collection":
        assert opened["resid_post.1"].shape == (8, 64)
    elif name == "probe.npz":
        assert len(opened.to_frame()) == 1
    elif name == "input_attribution.npz":
        assert opened.per_token.shape == (2, 2)
    elif name == "deletion_curve.npz":
        assert opened.random.shape == (2, 3)
    elif name == "head_circuits.npz":
        assert opened.eigen.shape == (2, 4)
    elif name == "head_circuit.npz":
        assert opened.promoted.shape == (2, 3)
    elif name == "examples.npz":
        assert [len(some) for some in opened.deciles] == [0, 1, 1, 1, 1, 0, 1, 1, 1, 1]
    elif name == "patchscope.npz":
        assert opened.rows[0].random is not None
    elif name == "continued.npz":
        assert len(opened.after.record) == 3
    elif name == "refusal.npz":
        assert opened.effect("add").controls.shape == (4,)
    else:
        assert np.isfinite(values).any()
    if name.startswith("grid"):
        assert np.array_equal(values, lk.open_grid(FILES / "grid.npz").values)
    assert isinstance(opened, lk.PathGrid) == (name == "paths.npz")


def held_in(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description of a file, and the shape, type and bytes of each of its arrays."""
    if path.suffix == ".json":
        return json.loads(path.read_text()), {}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            return json.loads(file.metadata()["about"]), {}
    with np.load(path) as file:
        arrays = {name: (file[name].shape, file[name].dtype, file[name].tobytes()) for name in file if name != "about"}
        return json.loads(str(file["about"])), arrays


def test_files_written_now_say_what_they_are(new: dict[str, Path]) -> None:
    for kind, path in new.items():
        about, _ = held_in(path / f"{kind}.json" if kind in FOLDERS else path)
        assert (about["kind"], about["format"]) == (kind, KINDS[kind].newest)


# Sweeps and collections are folders, and attention that was opened is not saved again: test_attention.py compares it.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*FOLDERS, *SHARDS, "attention")])
def test_what_was_opened_is_saved_as_it_was(
    kind: str, new: dict[str, Path], openers: dict[str, Any], tmp_path: Path
) -> None:
    opened = openers[kind](new[kind])
    again = (opened.save_session if new[kind].suffix == ".json" else opened.save)(tmp_path / new[kind].name)
    assert held_in(again) == held_in(new[kind])


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("opener", [kind for kind in KINDS if kind not in SHARDS])
def test_every_opener_says_what_a_file_of_another_kind_holds(
    opener: str, old: bool, new: dict[str, Path], openers: dict[str, Any]
) -> None:
    files = [(kind, FILES / name) for name, kind in OLD.items()] if old else list(new.items())
    for kind, path in files:
        if kind != opener:
            with pytest.raises(ValueError, match="saved by labkit: it holds") as error:
                openers[opener](path)
            assert f"it holds {KINDS[kind].words}, which {KINDS[kind].opener} opens" in str(error.value)


FOREIGN: dict[str, bytes | None] = {
    "an empty file": b"",
    "a text file": b"Mary and John\n",
    "JSON of another kind": b'{"model": "x"}',
    "looks like JSON": b'{"kind": "gri',
    "this version of labkit does not know": b'{"kind": "hologram", "format": 1}',
    "a binary file": bytes(range(256)),
    "the weights of a model": b"GGUF" + bytes(60),
    "a folder": None,
}


@pytest.mark.parametrize("opener", [kind for kind in KINDS if kind not in SHARDS])
def test_every_opener_says_what_a_file_of_no_kind_is(
    opener: str, new: dict[str, Path], openers: dict[str, Any], tmp_path: Path
) -> None:
    for words, content in FOREIGN.items():
        path = tmp_path / words.replace(" ", "_")
        if content is None:
            path.mkdir()
            if opener in FOLDERS:
                with pytest.raises(FileNotFoundError, match=rf"it has no file {opener}\.json"):
                    openers[opener](path)
                continue
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            openers[opener](path)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with pytest.raises(ValueError, match="a bare numpy array"):
        openers[opener](tmp_path / "bare.npy")
    np.savez(tmp_path / "any.npz", values=np.zeros(3))
    with pytest.raises(ValueError, match="a zip file that labkit did not write"):
        openers[opener](tmp_path / "any.npz")
    np.savez(tmp_path / "pickled.npz", about=np.array({"kind": "grid"}, dtype=object))
    with pytest.raises(ValueError, match="a zip file that labkit did not write"):
        openers[opener](tmp_path / "pickled.npz")


@pytest.mark.parametrize("opener", [kind for kind in KINDS if kind not in (*SHARDS, *FOLDERS)])
def test_files_that_are_cut_short_incomplete_or_newer_are_refused(
    opener: str, new: dict[str, Path], openers: dict[str, Any], tmp_path: Path
) -> None:
    path, data = new[opener], new[opener].read_bytes()
    for share in (0.1, 0.5, 0.98):
        (cut := tmp_path / path.name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=r"cut short|incomplete"):
            openers[opener](cut)
    if path.suffix == ".json":
        about = json.loads(data)
        save: Callable[..., Any] = lambda about, **_: (tmp_path / path.name).write_text(json.dumps(about))  # noqa: E731
        arrays: dict[str, Any] = {}
    else:
        arrays = dict(np.load(path))
        about = json.loads(str(arrays.pop("about")))
        save = lambda about, **arrays: save_arrays(tmp_path / path.name, opener, about, **arrays)  # noqa: E731
    save(about | {"format": 99}, **arrays)
    with pytest.raises(ValueError, match=r"newer labkit: .* of format 99, .* up to \d\. Update labkit to open it with"):
        openers[opener](tmp_path / path.name)
    save(about | {"format": "x"}, **arrays)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        openers[opener](tmp_path / path.name)
    save({"kind": opener, "format": 1}, **arrays)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        openers[opener](tmp_path / path.name)
    for name in arrays if opener != "lab" else []:
        save(about, **{other: array for other, array in arrays.items() if other != name})
        with pytest.raises(ValueError, match="damaged or incomplete"):
            openers[opener](tmp_path / path.name)


@pytest.mark.parametrize(("kind", "opener"), [("sweep", lk.open_sweep), ("collection", lk.open_collection)])
def test_a_kind_in_a_folder_names_it_and_refuses_a_file_in_its_place(
    kind: str, opener: Callable[[Any], Any], lm: lk.LanguageModel, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FILES / kind, tmp_path / kind))
    path = folder / f"{kind}.json"
    with pytest.raises(ValueError, match="give the folder that it is in"):
        opener(path)
    with pytest.raises(ValueError, match="it holds a grid, which"):
        opener(FILES / "grid.npz")
    pairs = [(IDS, CORRUPT_IDS, ANSWER, FOIL)]
    again = {"sweep": lambda: lk.sweep(lm, pairs, store=path), "collection": lambda: collected(lm, path)}
    with pytest.raises(ValueError, match=rf"is a file; a {kind} is stored in a folder"):
        again[kind]()
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 9}))
    with pytest.raises(ValueError, match="newer labkit"):
        opener(folder)
    del manifest["recipe"]
    path.write_text(json.dumps(manifest | {"kind": kind}))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        opener(folder)


@pytest.mark.skipif(os.name == "nt", reason="permissions by umask are POSIX's")
def test_what_is_saved_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = lk.open_grid(FILES / "grid.npz").save(tmp_path / "grid.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
