"""Exported files: small enough, whole or not there, without a word of the network, and nothing in them is markup."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

import labkit as lk
from labkit.attention_maps.patterns import AttentionPatterns
from labkit.widgets.base.block import Block
from labkit.widgets.export import export as exporting
from labkit.widgets.export.charts import pictures_of
from labkit.widgets.export.contents import Contents, inert, key_of
from labkit.widgets.export.drawing import as_svg
from labkit.widgets.export.facts import licence_of

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>]]>\u2028&lt;"


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # (the tag around it, text)
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def data(self) -> Any:
        """What is in the page, unpacked as its script does."""
        found = json.loads(next(text for tag, text in self.texts if tag == "script" and text.startswith("{")))
        unpack = lambda n: json.loads(zlib.decompress(base64.b64decode(found["chunks"][n]), wbits=-15))  # noqa: E731
        return unpack(found["main"]), unpack


def page_of(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def patching(lm4: lk.LanguageModel) -> lk.PatchLab:
    lab = lk.PatchLab(lm4, CLEAN, CORRUPT, " Mary", " John", background=False)
    lab.direction = "noise"
    lab.direction = "denoise"
    return lab


def test_a_view_of_2048_tokens_takes_at_most_2_megabytes_with_the_heads_that_were_asked_for(
    lm4: lk.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, draw = 2048, np.random.default_rng(0)
    view = lk.AttentionView(lm4, CLEAN, background=False)
    token = view.patterns.tokens[1]
    view.patterns.tokens = [token] * length
    view.looks.begin(view.patterns.tokens)

    def pattern(self: AttentionPatterns, layer: int, head: int | None = None) -> np.ndarray:
        rows = draw.random((length // 4, length // 4), np.float32) ** 8  # nothing that packs well
        return np.tril(rows.repeat(4, 0).repeat(4, 1))

    monkeypatch.setattr(AttentionPatterns, "pattern", pattern)
    view.maps.forget()
    view._show()
    path = view.export(tmp_path / "long.html", heads=[(29, 8), (3, 3)])
    assert path.stat().st_size <= 2_000_000
    main, unpack = page_of(path).data()
    (large,) = [rule for rule in main["rules"] if rule["rule"] == "switch" and key_of(None) in rule["states"]]
    asked = [key_of(list(head)) for head in ((29, 8), (3, 3), view.selection)]
    assert set(asked) <= set(large["states"])
    assert len(large["states"]) - 1 < view.patterns.n_layers * view.patterns.n_heads  # not all of them fit
    assert "heads=[%s]" in json.dumps(unpack(large["otherwise"]))


def test_every_head_of_a_short_text_is_there(lm4: lk.LanguageModel, tmp_path: Path) -> None:
    view = lk.AttentionView(lm4, "To Mary, to John", background=False)
    main, _ = page_of(view.export(tmp_path / "short.html")).data()
    (large,) = [rule for rule in main["rules"] if rule["rule"] == "switch" and key_of(None) in rule["states"]]
    assert len(large["states"]) == 1 + 30 * 9
    with pytest.raises(ValueError, match=r"there is no head \(30, 0\)"):
        view.export(tmp_path / "none.html", heads=[(30, 0)])
    assert not (tmp_path / "none.html").exists()


def test_the_grids_that_were_computed_are_there_and_the_lab_stays_as_it_is(
    patching: lk.PatchLab, tmp_path: Path
) -> None:
    patching.selection = None
    before = patching.direction, patching.grid, patching.heatmap.title, dict(patching.live.known)
    main, unpack = page_of(patching.export(tmp_path / "lab.html", cells=[(3, 9)], strongest=2)).data()
    assert (patching.direction, patching.grid, patching.heatmap.title, dict(patching.live.known)) == before
    grids, close = [rule for rule in main["rules"] if rule["rule"] == "switch"]
    titles = [value["title"] for n in grids["states"].values() for value in unpack(n).values() if "title" in value]
    assert titles == ["resid_pre: corrupt into clean"]  # the other one is what the page opens with
    assert set(close["states"]) >= {key_of(n, at) for n in (0, 1) for at in (None, [3, 9])}
    with pytest.raises(ValueError, match=r"no grid of this pair has a cell \(30, 0\)"):
        patching.export(tmp_path / "none.html", cells=[(30, 0)])
    (bars,) = [one for one in unpack(close["states"][key_of(0, [3, 9])]).values() if "columns" in one]
    assert [name for name, _ in bars["columns"]] == ["before: corrupt prompt", "after the patch"]


def test_nothing_refers_to_the_network(patching: lk.PatchLab, tmp_path: Path) -> None:
    page = page_of(patching.export(tmp_path / "lab.html", strongest=0))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not {name for name in attributes if name.startswith("on")}
        for name in ("src", "href", "srcset", "action"):
            assert str(attributes.get(name) or "data:").startswith("data:")
    (policy,) = [one["content"] for tag, one in page.tags if one.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in str(policy).split("style-src")[0]
    styles = "".join(text for tag, text in page.texts if tag == "style")
    assert "@import" not in styles
    assert not re.findall(r"url\((?!.?data:)", styles)


def test_hostile_texts_are_texts(tmp_path: Path) -> None:
    strip = lk.TokenStrip([HOSTILE], [0.5], title=HOSTILE, alternatives=[[(HOSTILE, 0.9)]], notes={"0": HOSTILE})
    grid = lk.Heatmap([[1.0]], row_labels=[HOSTILE], column_labels=[HOSTILE], title=HOSTILE, texts=[HOSTILE])
    for n, made in enumerate((strip, grid)):
        page = page_of(made.export(tmp_path / f"{n}.html"))
        tags = [tag for tag, _ in page.tags]
        assert tags.count("script") == 2
        assert all(str(one["src"]).startswith("data:") for tag, one in page.tags if tag == "img")
        assert HOSTILE in "".join(text for tag, text in page.texts if tag == "title")
    text = inert(json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {HOSTILE: HOSTILE}


def test_files_are_whole_or_not_there_and_overwriting_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = lk.Heatmap([[1.0, 2.0]], title="One")
    path = grid.export(tmp_path / "grid.html")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        grid.export(path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        lk.report(["text"], path)
    with pytest.raises(ValueError, match=r"ends in \.html or \.svg or \.png"):
        grid.export(tmp_path / "grid.pdf")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        grid.export(tmp_path / "nowhere" / "grid.html")
    monkeypatch.setattr(exporting, "written", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grid.export(path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_end_of_a_page_says_where_it_comes_from(patching: lk.PatchLab, tmp_path: Path) -> None:
    words = "".join(text for tag, text in page_of(patching.export(tmp_path / "lab.html", strongest=0)).texts)
    for part in (
        "SmolLM2-135M-Instruct",
        patching.lm.revision,
        "Apache-2.0",
        lk.__version__,
        "@software{labkit",
        "lk.patch(",
    ):
        assert str(part) in words
    assert "clean_ids" in words  # the recipe
    assert licence_of("nobody/nothing") == "not in labkit's catalog: look at the model's own page"


def test_the_same_view_gives_the_same_file(lm4: lk.LanguageModel, tmp_path: Path) -> None:
    view = lk.AttentionView(lm4, "To Mary, to John", background=False)
    first = view.export(tmp_path / "a.html").read_bytes()
    assert view.export(tmp_path / "b.html").read_bytes() == first


def test_an_svg_holds_every_picture_of_a_snapshot(patching: lk.PatchLab, tmp_path: Path) -> None:
    from xml.etree import ElementTree

    svg = patching.export(tmp_path / "lab.svg").read_text("utf-8")
    root = ElementTree.fromstring(svg)
    inner = [one for one in root if one.tag.endswith("svg")]
    assert len(inner) == patching.snapshot().count("<img ")
    assert "PatchLab" in "".join(root.itertext())
    assert "lk.patch" not in svg  # what is folded stays out
    with pytest.raises(ValueError, match="no picture yet"):
        lk.Heatmap().export(tmp_path / "empty.svg")


def test_without_a_browser_a_png_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LABKIT_CHROMIUM", raising=False)
    with pytest.raises(RuntimeError, match=r"export to \.svg or \.html"):
        lk.Heatmap([[1.0]]).export(tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_a_report_has_texts_results_and_tools(lm4: lk.LanguageModel, tmp_path: Path) -> None:
    grid = lk.patch(lm4, CLEAN, CORRUPT, " Mary", " John", site="mlp_out", progress=False)
    found = lk.direct_logit_attribution(lm4, CLEAN, " Mary", " John")
    strip = lk.TokenStrip(["a", "b"], [0.1, 0.9], title="A strip")
    text = "# What was found\n\nOne <b>thing</b>.\n\nAnother.\n\n## Where"
    path = lk.report([text, grid, found, strip], tmp_path / "report.html", title="A report")
    page = page_of(path)
    heads = [text for tag, text in page.texts if tag in ("h1", "h2", "h3") and text.strip()]
    assert heads[:4] == ["A report", "What was found", "Where", "PatchGrid · SmolLM2-135M-Instruct"]
    assert ("p", "One <b>thing</b>.") in page.texts
    main, _ = page.data()
    assert len(main["roots"]) == 2  # the grid and the strip are alive; bars are a picture
    assert grid.code() in "".join(text for tag, text in page.texts if tag == "pre")
    with pytest.raises(TypeError, match="got int"):
        lk.report([grid, 3], tmp_path / "wrong.html")
    with pytest.raises(ValueError, match="nothing to report"):
        lk.report([], tmp_path / "wrong.html")


def test_a_result_is_exported_as_its_figure(lm4: lk.LanguageModel, tmp_path: Path) -> None:
    lens = lk.logit_lens(lm4, CLEAN)
    main, _ = page_of(lk.export(lens, tmp_path / "lens.html")).data()
    (block,) = [one for one in main["models"].values() if one["kind"] == "block"]
    assert block["block"] == "heatmap"
    assert len(block["traits"]["texts"]) == 30 * 14
    assert "·Mary" in lk.export(lens, tmp_path / "lens.svg").read_text("utf-8")
    with pytest.raises(TypeError, match="dict has no figure"):
        lk.export({}, tmp_path / "none.html")
    patterns = lk.attention(lm4, "To Mary")  # its figure is of one head
    assert "AttentionPatterns" in lk.export(patterns, tmp_path / "heads.html").read_text("utf-8")
    with pytest.raises(ValueError, match=r"export to \.html"):
        lk.export(patterns, tmp_path / "heads.svg")


def test_bars_lines_and_points_are_drawn_to_scale() -> None:
    bars = go.Bar(x=["a", "b"], y=[1.0, -2.0])
    [(title, drawn)] = pictures_of(go.Figure(bars).update_layout(title="T<br>wo"))
    assert title == "T wo"
    svg = _svg(drawn)
    (_, _, _, high_a), (_, _, _, high_b) = _boxes(svg)[-2:]
    assert high_b == pytest.approx(2 * high_a, rel=0.01)
    line = go.Scatter(x=[0, 1, 2], y=[0.0, np.nan, 4.0], mode="lines+markers", error_y={"array": [1, 1, 1]})
    svg = _svg(pictures_of(go.Figure(line))[0][1])
    assert svg.count("<circle") == 2  # what is not a number is left out
    with pytest.raises(ValueError, match="a figure with funnel"):
        pictures_of(go.Figure(go.Funnel(x=[1], y=["a"])))


def _svg(drawn: Any) -> str:
    address = re.search(r"base64,([^\"]+)", str(drawn))
    assert address is not None
    return base64.b64decode(address[1]).decode()


def _boxes(svg: str) -> list[tuple[float, ...]]:
    found = re.findall(r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.-]+)" height="([\d.-]+)"', svg)
    return [tuple(map(float, one)) for one in found]


def test_what_has_no_room_is_left_out_and_takes_none() -> None:
    contents, grid = Contents(room=0), lk.Heatmap([[1.0]])
    root = contents.show(grid)
    switch = contents.switch((grid, "selection"))
    before = list(contents.chunks)
    assert not switch.when([0, 0], parts={grid: {"values": None}}, optional=True)
    assert contents.chunks == before
    assert switch.when([0, 0], parts={grid: {"values": None}})
    assert root == "m0"


def test_every_block_has_the_files_of_its_module() -> None:
    for block in (lk.Heatmap, lk.TokenStrip, lk.HeadGrid, lk.BranchTree, lk.CircuitView):
        assert issubclass(block, Block)
        assert block.files()[-1] == re.sub(r"(?<!^)(?=[A-Z])", "_", block.__name__).lower()


def test_a_picture_of_a_text_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="run it first"):
        as_svg("<div>only words</div>")
