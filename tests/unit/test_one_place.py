"""A new site, metric, model source and kind of file is one entry, and everything that lists such things then has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud

import labkit as lk
from labkit.activations import metrics
from labkit.models.errors import LoadError
from labkit.models.sources import kinds as sources
from labkit.results import file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from reference import PAGE, reference  # noqa: E402

SITE = """
        SiteKind("normed_in", "what attention takes in", _STREAM, lambda block: block.attention, at_input=True,
                 absent="it has no attention"),
"""
SITE_SCRIPT = """
import json, sys
sys.path[:0] = [%r, %r]
import numpy as np, torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
import labkit as lk
from labkit.activations.sites import Site
from reference import reference
lm = loud("llama")
assert lk.__file__.startswith(sys.argv[1])
run = lm.run(IDS, read=["normed_in", "resid_pre"])
block = lm.anatomy.blocks[1].module
grid = lk.patch(lm, IDS, CORRUPT_IDS, ANSWER, FOIL, site="normed_in", progress=False)
other = lm.run(CORRUPT_IDS, write={"normed_in.1@4": lm.run(IDS, read=["normed_in.1@4"])["normed_in.1@4"]}).logits[0, -1]
grid.save("grid.npz")
try:
    lm.run(IDS, read=["normed_im"])
except ValueError as error:
    said = str(error)
print(json.dumps({
    "reads": bool(torch.equal(run["normed_in.1"][0], block.input_layernorm(run["resid_pre.1"][0]))),
    "patches": abs(float(grid.values[1, 4]) - float(other[ANSWER] - other[FOIL])) < 1e-3,
    "moves": float(np.abs(grid.normalized).max()) > 0.01,
    "opens": lk.open_grid("grid.npz").site,
    "sites": "normed_in" in lm.sites().index,
    "says": said,
    "parses": str(Site.parse("normed_in.1@2")),
    "menu": list(lk.PatchLab(lm, background=False).what._site.options),
    "reference": "`normed_in`" in reference(),
}))
"""


def test_a_site(tmp_path: Path) -> None:
    """In a copy of labkit with one entry more: lists are made when it is imported."""
    shutil.copytree(ROOT / "labkit", tmp_path / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    kinds = tmp_path / "labkit" / "activations" / "site_kinds.py"
    before = kinds.read_text()
    place = '        SiteKind("embed"'
    assert before.count(place) == 1
    kinds.write_text(before.replace(place, SITE + place))
    script = SITE_SCRIPT % (str(ROOT / "tests"), str(ROOT / "tools"))
    (tmp_path / "look.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "look.py", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["reads"]
    assert found["patches"]
    assert found["moves"]
    assert found["opens"] == "normed_in"
    assert found["sites"]
    assert "did you mean 'normed_in'?" in found["says"]
    assert found["parses"] == "normed_in.1@2"
    assert "normed_in" in found["menu"]
    assert found["reference"]


def certainty(logits: torch.Tensor, *, clean: torch.Tensor) -> torch.Tensor:
    """How much of the probability the clean run's likeliest token has."""
    return logits.softmax(-1)[:, int(clean.argmax())]


def test_a_metric(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    before = dict(metrics.METRICS)
    request.addfinalizer(lambda: (metrics.METRICS.clear(), metrics.METRICS.update(before)))
    lk.metric("certainty", unit="probability", label="certainty of the clean answer", needs=("clean",))(certainty)
    lm = loud("llama")
    grid = lk.patch(lm, IDS, CORRUPT_IDS, metric="certainty", site="z", progress=False)
    clean = lm.run(IDS).logits[0, -1]
    assert grid.clean == pytest.approx(float(clean.softmax(-1).max()), abs=1e-5)
    assert grid.recipe["unit"] == "probability"
    same = lk.patch(lm, IDS, CORRUPT_IDS, metric=certainty_of(clean), site="z", progress=False)
    np.testing.assert_allclose(grid.values, same.values, atol=1e-6)
    with pytest.raises(ValueError, match=r"use one of logit_diff, logprob, logprob_diff, kl, rank, certainty"):
        lk.patch(lm, IDS, CORRUPT_IDS, metric="certitude", progress=False)
    grid.save(tmp_path / "grid.npz")
    assert lk.open_grid(tmp_path / "grid.npz").code() == grid.code()
    assert "metric='certainty'" in grid.code()
    assert "def certainty(logits" in grid.code()
    assert "certainty of the clean answer" in reference()
    lab = lk.PatchLab(lm, background=False)
    assert ("certainty of the clean answer", "certainty") in lab.what._metric.options
    assert metrics.label_of("certainty") == "certainty of the clean answer"
    estimate = lk.patch(lm, IDS, CORRUPT_IDS, metric="certainty", site="z", method="attribution", progress=False)
    assert estimate.complete
    with pytest.raises(ValueError, match="there is already a metric 'rank'"):
        lk.metric("rank", unit="x")(certainty)


def certainty_of(clean: torch.Tensor):
    return lambda logits: certainty(logits, clean=clean)


def test_a_model_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "SOURCES", list(sources.SOURCES))
    lm = loud("llama")
    lm.hf.save_pretrained(tmp_path / "there")
    lm.tokenizer.save_pretrained(tmp_path / "there")
    asked = []

    def find(name: str | None, bits: int, progress: bool) -> sources.Found:
        asked.append((name, bits, progress))
        return sources.Found(tmp_path / "there", str(name), "v1")

    shelf = sources.Source("the shelf", "shelf:name", lambda name: str(name).startswith("shelf:"), find)
    sources.register(shelf)
    loaded = lk.load("shelf:tiny", bits=32, progress=False)
    assert asked == [("shelf:tiny", 32, False)]
    assert (loaded.name, loaded.revision) == ("shelf:tiny", "v1")
    torch.testing.assert_close(loaded.run(IDS).logits, lm.run(IDS).logits)
    assert "lk.load('shelf:tiny', bits=32, revision='v1')" in loaded.code()
    assert "| the shelf | shelf:name |" in reference()
    text = tmp_path / "note.txt"
    text.write_text("no model")
    with pytest.raises(LoadError, match=r"it reads shelf:name, nothing, a path that ends in \.gguf"):
        lk.load(str(text))
    with pytest.raises(ValueError, match="there is already a model source 'the shelf'"):
        sources.register(shelf)


def test_a_kind_of_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(file, "KINDS", dict(file.KINDS))
    file.register(file.Kind("tally", "a tally", "open_tally(path)", newest=2))
    path = file.save_arrays(tmp_path / "tally.npz", "tally", {"of": "heads"}, counts=np.arange(3))
    about, arrays = file.open_arrays(path, "tally")
    assert (about["of"], about["format"], arrays["counts"].tolist()) == ("heads", 2, [0, 1, 2])
    with pytest.raises(ValueError, match=r"it holds a tally, which open_tally\(path\) opens"):
        lk.open_grid(path)
    lk.patch(loud("llama"), IDS, CORRUPT_IDS, ANSWER, FOIL, progress=False).save(tmp_path / "grid.npz")
    with pytest.raises(ValueError, match=r"it holds a grid, which lk\.open_grid\(path\) opens"):
        file.open_arrays(tmp_path / "grid.npz", "tally")
    assert "| a tally | `open_tally(path)` | 2 |" in reference()
    with pytest.raises(ValueError, match="there is already a kind of file 'tally'"):
        file.register(file.Kind("tally", "another", "x"))


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python tools/reference.py"
