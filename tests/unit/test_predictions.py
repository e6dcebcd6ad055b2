"""Predictions: nothing is shown before a guess is in, unless nobody can guess; what was said first is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
import traitlets
from nbclient import NotebookClient

from labkit.cli import main
from labkit.course import predict, predictions
from labkit.course.progress import note, note_prediction, read_progress
from labkit.widgets.blocks.prediction import Prediction


@pytest.fixture
def own(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    monkeypatch.setenv("LABKIT_PROGRESS", str(file))
    return file


@pytest.fixture
def somebody(monkeypatch):
    """A front end with a person in front of it."""
    monkeypatch.setattr(predictions, "somebody_is_there", lambda: True)


def unseen():
    raise AssertionError("the truth was computed before there was a guess")


def test_the_truth_is_not_even_computed_before_a_guess_is_in(own, somebody):
    asked = []
    one = predict("04.layer", "Which layer?", truth=lambda: asked.append(1) or 21, between=(0, 29))
    assert (asked, one.truth, one.says) == ([], "", "")
    assert "21" not in one.snapshot() + repr(one)
    one.guess = "12"
    assert (asked, one.says, one.right) == ([1], "Your guess: 12. The answer: 21.", False)
    assert one.says in one.snapshot()
    one.guess = "21"  # too late
    assert (asked, one.says) == ([1], "Your guess: 12. The answer: 21.")
    kept = read_progress(own).predicted["04.layer"]
    assert (kept.said, kept.truth, kept.right) == ("12", "21", False)


def test_where_nobody_is_there_the_answer_appears_at_once_and_nothing_is_noted(own):
    one = predict("00.bytes", "More or less?", truth=lambda: "more", options=["more", "less"])
    assert repr(one) == "Prediction('The answer: more.')"
    assert "✓ the answer" in one.snapshot()
    assert not own.exists()


def test_only_the_first_prediction_of_something_is_kept(own, somebody):
    for guess in ("less", "more"):
        predict("00.bytes", "More or less?", truth="more", options=["more", "less"]).guess = guess
    note("00.1", right=True)  # does not forget it
    assert read_progress(own).predicted["00.bytes"].said == "less"
    assert read_progress(own)["00.1"].right


@pytest.mark.parametrize(
    ("how", "guess", "right"),
    [
        ({"truth": "more", "options": ["more", "less"]}, "more", True),
        ({"truth": 65.0, "between": (0, 100)}, "70", True),
        ({"truth": 65.0, "between": (0, 100)}, "80", False),
        ({"truth": " Mary"}, "mary", True),
        ({"truth": " Mary"}, "John", False),
    ],
)
def test_a_guess_is_right_when_it_is_the_truth_or_close(somebody, own, how, guess, right):
    one = predict("02.some", "What?", **how)
    one.guess = guess
    assert one.right is right
    assert read_progress(own).predicted["02.some"].right is right


def test_what_cannot_be_asked_or_answered_is_refused():
    with pytest.raises(ValueError, match="not both"):
        Prediction("What?", 1, options=["1"], between=(0, 2))
    with pytest.raises(ValueError, match="not one of the options"):
        Prediction("What?", "c", options=["a", "b"])
    with pytest.raises(ValueError, match=r"got 'layer'"):
        predict("layer", "Which?", truth=1)
    with pytest.raises(traitlets.TraitError, match="one of a, b; got 'c'"):
        Prediction("What?", "a", options=["a", "b"]).guess = "c"
    with pytest.raises(traitlets.TraitError, match="a number; got 'many'"):
        Prediction("How many?", unseen, between=(0, 2)).guess = "many"


def test_a_truth_that_fails_is_said_and_not_noted(own, somebody):
    def fails():
        raise ValueError("no model")

    one = predict("02.some", "What?", truth=fails)
    one.guess = "this"
    assert one.says == "It could not be computed: No model"
    assert not own.exists()


def test_markup_in_a_question_is_text():
    one = Prediction("<b>?", "<i>", options=["<i>", "&"])
    one.reveal()
    assert "&lt;b&gt;?" in one.snapshot()
    assert "<i>" not in one.snapshot()


CELL = """from labkit.course import predict
from IPython.display import HTML
predict("00.bytes", "More or less?", truth="more", options=["more", "less"], show=lambda: HTML("<p>below</p>"))"""


@pytest.mark.parametrize("person", [False, True])
def test_a_notebook_that_runs_by_itself_shows_all_and_one_with_a_person_waits(tmp_path, person):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    client = NotebookClient(notebook, kernel_name="python3", timeout=300, store_widget_state=False)
    env = os.environ | {"LABKIT_PROGRESS": str(tmp_path / "p.json"), "PYTHONPATH": str(Path(__file__).parents[2])}
    with client.setup_kernel(env=env):
        client.kc.allow_stdin = person
        client.execute_cell(notebook.cells[0], 0)
    shown = json.dumps(notebook.cells[0].outputs)
    assert ("below" in shown, "The answer: more" in shown) == (not person, not person)
    assert "More or less?" in shown


def test_a_class_is_told_how_many_predicted_what(tmp_path, capsys, monkeypatch):
    for person, said, layer in (("anna", "less", 3), ("ben", "less", 20), ("cleo", "more", 21)):
        (tmp_path / person).mkdir()
        monkeypatch.setenv("LABKIT_PROGRESS", str(tmp_path / person / "progress.json"))
        note_prediction("00.bytes", said=said, truth="more", right=said == "more")
        note_prediction("04.layer", said=str(layer), truth="21", right=layer > 18)
    assert main(["course", "report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "  00.bytes  less 67%, more 33%; it is more (1 of 3 right)" in out
    assert "  04.layer  20 in the middle, from 3 to 21; it is 21 (2 of 3 right)" in out
    assert main(["course", "report", "--csv", str(tmp_path)]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert next(row for row in rows if row[0] == "anna")[:4] == ["anna", "00.bytes", "0", "1"]
    assert next(row for row in rows if row[:2] == ["anna", "00.bytes"])[-2:] == ["less", "more"]


def test_a_prediction_of_somebody_else_does_no_harm(tmp_path, capsys):
    bad = {"said": "=cmd()\x1b[2J" + "x" * 500, "truth": "\x1b", "right": False, "last": ""}
    (tmp_path / "progress.json").write_text(
        json.dumps({"labkit progress": 1, "exercises": {}, "predictions": {"=a\x1b": bad}})
    )
    for more in ([], ["--csv"]):
        assert main(["course", "report", *more, str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert not any(cell.startswith("=") for line in out.splitlines() for cell in line.split(","))
    (tmp_path / "progress.json").write_text(json.dumps({"labkit progress": 1, "exercises": {}, "predictions": [1]}))
    assert main(["course", "report", str(tmp_path)]) == 1
