"""What the widgets promise without a front end: data on the wire, saved pictures, jobs, errors, code."""

from __future__ import annotations

import html.parser
import sys
import threading
import time
import types
from typing import Any

import nbformat
import numpy as np
import pytest
import traitlets
from drawn import opened
from nbclient import NotebookClient
from wire import Wire

import labkit as lk
from labkit.widgets.base.colour_scales import SCALES, colour, ink
from labkit.widgets.base.job_queue import JobQueue, in_background
from labkit.widgets.base.snapshot import VIEW
from labkit.widgets.blocks.heatmap_picture import strongest
from labkit.widgets.blocks.prompt_box import PromptBox
from labkit.widgets.blocks.token_bars import TokenBars

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
EVIL = "<script>harm()</script><img src=x onerror='harm()'>"


def tags(markup: str) -> set[str]:
    """The elements and attributes a browser would find."""
    found: set[str] = set()

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update([tag, *(name for name, _ in attrs)])

    Reader().feed(markup)
    return found


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_appending_tokens_sends_only_the_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    strip = lk.TokenStrip([f"token{i}" for i in range(500)], np.zeros(500))
    wire = Wire(strip, monkeypatch)
    strip.append(["·new", "·er"], [0.25, 0.75], alternatives=[[("·new", 0.25)], None])
    assert len(wire.messages) == 1
    data, size = wire.messages[0]
    assert data["content"]["tokens"] == ["·new", "·er"]
    assert size == 8 + 12  # two values; two rows of one alternative: four bytes each, and two for its probability
    # ... while the whole is in the state that a page opened later receives
    assert strip.tokens[-2:] == ["·new", "·er"]
    assert strip.values[-2:].tolist() == [0.25, 0.75]
    assert strip.alternatives[-2:] == [[["·new", 0.25]], None]


def test_arrays_travel_as_bytes_and_keep_uint8() -> None:
    state = lk.Heatmap(np.arange(6, dtype=np.float64).reshape(2, 3)).get_state()
    assert state["values"]["dtype"] == "float32"
    assert bytes(state["values"]["data"]) == np.arange(6, dtype=np.float32).tobytes()
    small = lk.Heatmap(np.array([[0, 255]], np.uint8), low=-1.0, high=1.0)
    assert small.get_state()["values"]["dtype"] == "uint8"
    assert small.numbers().tolist() == [[-1.0, 1.0]]


def test_a_heatmap_shows_a_copy_that_later_changes_do_not_reach() -> None:
    values = np.zeros((2, 2), np.float32)
    heatmap = lk.Heatmap(values)
    values[0, 0] = 7
    assert heatmap.values[0, 0] == 0
    seen: list[Any] = []
    heatmap.observe(seen.append, "values")
    heatmap.values = values
    assert len(seen) == 1
    assert heatmap.values[0, 0] == 7


def test_wrong_shapes_and_scales_are_refused_with_words() -> None:
    with pytest.raises(traitlets.TraitError, match=r"2 axes; got an array of shape \(3,\)"):
        lk.Heatmap([1, 2, 3])
    with pytest.raises(ValueError, match="uint8"):
        lk.HeadGrid(np.zeros((1, 1, 2, 2)))
    with pytest.raises(traitlets.TraitError, match="amount, surprise, effect"):
        lk.TokenStrip(["a"], scale="rainbow")
    with pytest.raises(ValueError, match="2 tokens, 1 values"):
        lk.TokenStrip().append(["a", "b"], [0.1])


def test_the_description_for_screen_readers_follows_the_values() -> None:
    heatmap = lk.Heatmap(np.full((2, 3), np.nan), title="Effects", row_axis="layer", column_axis="head", unit="logits")
    assert "2 rows (layer) by 3 columns (head), values not computed yet" in heatmap.description
    heatmap.values = np.array([[1.0, np.nan, -2.5]])
    assert "from -2.5 to 1 logits" in heatmap.description


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_on_every_shade_of_every_scale_can_be_read(scale: str, theme: Any) -> None:
    def luminance(rgb: tuple[int, int, int]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for place in np.linspace(0, 1, 101):
        paper = colour(scale, float(place), theme=theme)
        written = ink(paper)
        letters = int(written[1:3], 16), int(written[3:5], 16), int(written[5:7], 16)
        dark, light = sorted([luminance(paper), luminance(letters)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (place, paper)


def test_strength_on_a_scale_shows_as_lightness_too() -> None:
    """So that a scale is read by people with any colour vision, and in print."""
    for scale in ("amount", "surprise"):
        for theme in ("light", "dark"):
            sums = [sum(colour(scale, place, theme=theme)) for place in np.linspace(0, 1, 50)]  # type: ignore[arg-type]
            steps = np.diff(sums)
            assert (steps >= 0).all() or (steps <= 0).all(), (scale, theme)


def every_block() -> list[Any]:
    return [
        lk.TokenStrip([EVIL, "b"], [0.5, np.nan], title=EVIL, marks={"differs": [0]}),
        lk.Heatmap([[1.0, np.nan]], row_labels=[EVIL], column_labels=[EVIL, "b"], title=EVIL, unit=EVIL, row_axis=EVIL),
        lk.HeadGrid(np.full((2, 3, 4, 4), 9, np.uint8), title=EVIL),
        TokenBars({EVIL: [(EVIL, 0.5)]}, title=EVIL),
    ]


def test_the_saved_picture_of_a_block_is_html_without_anything_that_runs() -> None:
    for block in every_block():
        bundle = block._repr_mimebundle_()
        assert bundle[VIEW]["model_id"] == block.model_id
        assert bundle["text/plain"] == repr(block)
        assert tags(bundle["text/html"]).isdisjoint({"script", "onerror"}), block
        assert "&lt;script&gt;" in bundle["text/html"]


def test_what_code_gives_makes_the_same_block() -> None:
    for block in every_block()[:2]:
        scope: dict[str, Any] = {}
        lines = block.code().rstrip().split("\nlk.")
        exec(f"{lines[0]}\nmade = lk.{lines[1]}", scope)
        np.testing.assert_array_equal(scope["made"].values, block.values)
        assert scope["made"].title == block.title
        assert repr(scope["made"]) == repr(block)


def test_the_picture_of_a_large_block_is_small_and_loses_no_strong_cell() -> None:
    values = np.full((2000, 1500), np.nan)
    values[:, 0] = 0.1
    values[1234, 777] = -5.0
    small = strongest(values, 0.0)
    assert small.shape == (250, 250)
    assert small[1234 // 8, 777 // 6] == -5.0
    assert np.nanmax(small) == 0.1
    assert len(lk.Heatmap(values, centre=0.0).snapshot()) < 60_000
    assert len(lk.TokenStrip(["·token"] * 5000, np.zeros(5000)).snapshot()) < 150_000


# -- jobs --------------------------------------------------------------------------------------------------------------


class Model:
    """Something to work for."""


def until_stopped(notes: list[str], name: str) -> Any:
    def work(stop: threading.Event) -> None:
        notes.append(f"{name} begins")
        assert stop.wait(300)
        notes.append(f"{name} ends")

    return work


def test_a_new_request_cancels_the_old_one_and_runs_after_it() -> None:
    queue, notes = JobQueue(Model()), []  # type: ignore[var-annotated]
    queue.ask(until_stopped(notes, "first"))
    while not notes:
        time.sleep(0.001)
    queue.ask(lambda stop: notes.append("second"))
    queue.wait(300)
    assert notes == ["first begins", "first ends", "second"]
    assert not queue.busy


def test_requests_of_other_widgets_wait_their_turn() -> None:
    model, notes = Model(), []  # type: ignore[var-annotated]
    one, other = JobQueue(model), JobQueue(model)
    one.ask(until_stopped(notes, "first"))
    other.ask(lambda stop: notes.append("second"))
    time.sleep(0.05)
    assert notes == ["first begins"]
    with pytest.raises(TimeoutError):
        other.wait(0.01)
    one.stop()
    other.wait(300)
    assert notes == ["first begins", "first ends", "second"]


def test_what_the_work_raised_is_raised_where_one_waits_and_the_next_request_works() -> None:
    queue = JobQueue(Model())
    queue.ask(lambda stop: [][0])
    with pytest.raises(IndexError):
        queue.wait(300)
    done: list[int] = []
    queue.ask(lambda stop: done.append(1))
    queue.wait(300)
    assert done == [1]


def test_a_worker_ends_with_its_model() -> None:
    model = Model()
    queue = JobQueue(model)
    seen: list[threading.Thread] = []
    queue.ask(lambda stop: seen.append(threading.current_thread()))
    queue.wait(300)
    del queue, model
    seen[0].join(5)
    assert not seen[0].is_alive()


def test_in_colab_the_work_is_done_in_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_background()
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert not in_background()
    where: list[Any] = []
    JobQueue(Model()).ask(lambda stop: where.append(threading.current_thread()))
    assert where == [threading.current_thread()]


# -- tools -------------------------------------------------------------------------------------------------------------


def test_markup_in_a_prompt_is_escaped_in_every_saved_picture(lm4: lk.LanguageModel) -> None:
    prompting = lk.PromptLab(lm4, EVIL, max_new_tokens=2)
    prompting.run(300)
    view = lk.AttentionView(lm4, EVIL)
    view.wait(300)
    view.heatmap.title = EVIL  # it names the answer, which a person writes
    patching = lk.PatchLab(lm4, EVIL, EVIL, " a", " b")
    patching.wait(300)
    for tool in (prompting, view, patching):
        assert tags(opened(tool.snapshot())).isdisjoint({"script", "onerror"}), tool
        assert "&lt;" in opened(tool.snapshot())


def test_repr_is_the_same_every_time(lm4: lk.LanguageModel) -> None:
    for make in (
        lambda: lk.PromptLab(lm4, CLEAN),
        lambda: lk.AttentionView(lm4, CLEAN, selection=(0, 0), background=False),
        lambda: lk.PatchLab(lm4, CLEAN, CORRUPT, " Mary", " John", background=False),
    ):
        one, other = make(), make()
        assert repr(one) == repr(other)
        assert "0x" not in repr(one)


@pytest.mark.long
def test_a_notebook_with_prompt_lab_and_lens_view_is_saved_below_a_megabyte_with_both_pictures() -> None:
    cells = [
        "import labkit as lk; lm = lk.load(progress=False)",
        f"p = lk.PromptLab(lm, {CLEAN!r}, max_new_tokens=4)\np.run(); p",
        f"lens = lk.LensView(lm, {CLEAN!r})\nlens.wait(300); lens",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert "widgets" in notebook.metadata  # what the live views would need is saved as well
    assert len(nbformat.writes(notebook)) < 1_000_000
    for cell, tool in zip(notebook.cells[1:], ("PromptLab", "LensView"), strict=True):
        live, picture = cell.outputs
        assert live.data["text/plain"].startswith(tool)
        assert "·Mary" in opened(picture.data["text/html"])
        assert "<script" not in opened(picture.data["text/html"])


@pytest.mark.long
def test_a_notebook_without_a_front_end_is_saved_with_the_pictures(lm4: lk.LanguageModel) -> None:
    """As nbval, nbconvert and papermill run it; the picture is the one of the finished work."""
    cells = [
        "import labkit as lk; lm = lk.load(progress=False)",
        f"lab = lk.PatchLab(lm, {CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')\nlab",
        "lab.wait(300); print(lab.grid.complete)",
        f"p = lk.PromptLab(lm, {CLEAN!r}, max_new_tokens=4)\np",
        "print(p.run().text)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert notebook.cells[2].outputs[0].text == "True\n"
    assert notebook.cells[4].outputs[0].text.startswith(" Mary")
    for number, words in ((1, "resid_pre: clean into corrupt"), (3, "·Mary")):
        live, picture = notebook.cells[number].outputs
        assert VIEW in live.data
        assert live.data["text/plain"].startswith("P")
        assert words in opened(picture.data["text/html"])
        assert len(picture.data["text/html"]) < 60_000


# -- what is typed, and clicks --------------------------------------------------------------------------------------


def test_a_click_after_typing_comes_after_it_though_changes_wait_for_a_busy_kernel(monkeypatch):
    box, sent, seen = PromptBox(value="a"), [], []
    monkeypatch.setattr(box, "send_state", lambda key=None: sent.append(key))
    box.on_submit(lambda: seen.append(box.value))

    def leaves(kind: str, value: str, edits: int) -> None:
        box._handle_custom_msg({"kind": kind, "value": value, "edits": edits}, [])

    box.set_state({"value": "ab", "edits": 1})
    leaves("submit", "abc", 2)
    assert seen == ["abc"]  # whose change has not come yet
    assert sent == []  # the browser has it, and may have more
    box.value = "mended"  # by a button
    assert sent == ["value"]
    box.set_state({"value": "abc", "edits": 2})
    assert box.value == "mended"
    box.set_state({"value": "abc", "edits": 3})  # typed again
    assert box.value == "abc"
    leaves("left", "abc", 3)
    assert (box.value, box.edits) == ("abc", 3)
