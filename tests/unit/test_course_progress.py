"""Progress in the course: kept in one's own file, whatever happens to it, and read for a class, whoever wrote it."""

import json
import multiprocessing
import os

import pytest

from labkit.cli import main
from labkit.course.checks import EXERCISES, Verdict, check, exercises
from labkit.course.progress import Tried, note, progress_file, read_progress
from labkit.course.report import class_report, files_in


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file of one's own that is not there yet."""
    file = tmp_path / "folder" / "progress.json"
    monkeypatch.setenv("LABKIT_PROGRESS", str(file))
    return file


@pytest.fixture
def exercise(monkeypatch):
    """An exercise of which the right answer is 5."""
    exercises()
    monkeypatch.setitem(EXERCISES, "00.1", lambda answer, lm: Verdict(answer == 5, "So it is."))
    return "00.1"


def written(place, tried):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"labkit progress": 1, "exercises": tried}))
    return place


def test_a_check_notes_the_answer_until_one_is_right(own, exercise, lm32, capsys):
    assert progress_file() == own
    for answer in (None, 3, 4, 5, 3):
        check(exercise, answer, lm32)
    found = read_progress(own)
    assert set(found) == {exercise}
    assert (found[exercise].right, found[exercise].tries) == (True, 3)  # what is not answered, or comes later: no try
    assert capsys.readouterr().out.count("Not yet.") == 3
    assert sorted(path.name for path in own.parent.iterdir() if path.suffix != ".lock") == ["progress.json"]


def test_the_file_has_neither_answers_nor_names(own, exercise, lm32):
    check(exercise, 5, lm32)
    assert set(json.loads(own.read_text())["exercises"][exercise]) == {"right", "tries", "last"}


def test_a_broken_file_is_set_aside_and_one_of_a_newer_labkit_too(own):
    for content in ("{", json.dumps({"labkit progress": 2, "exercises": {}})):
        own.parent.mkdir(exist_ok=True)
        own.write_text(content)
        with pytest.warns(UserWarning, match=r"progress\.json is .*It is now called progress\.broken\.json"):
            note("00.1", right=True)
        assert own.with_suffix(".broken.json").read_text() == content
        assert set(read_progress(own)) == {"00.1"}


def test_where_nothing_can_be_written_a_check_still_says_its_verdict(tmp_path, exercise, lm32, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_PROGRESS", str(tmp_path / "file" / "progress.json"))
    with pytest.warns(UserWarning, match=r"your progress could not be kept in .*LABKIT_PROGRESS names another file"):
        check(exercise, 5, lm32)
    assert "Right." in capsys.readouterr().out


def _many(first):
    for n in range(first, first + 20):
        note(f"{n:02}.1", right=True)


def test_two_kernels_keep_both_their_answers(own):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_many, args=(first,)) for first in (0, 20)]
    for one in both:
        one.start()
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert len(read_progress(own)) == 40


# -- a class -----------------------------------------------------------------------------------------------------------


def test_a_class_is_told_apart_by_its_folders_and_its_hardest_exercises_come_out(tmp_path, capsys):
    right, wrong = {"right": True, "tries": 1, "last": ""}, {"right": False, "tries": 7, "last": ""}
    for person, tried in {
        "anna": {"00.1": right, "00.2": right, "06.1": wrong},
        "ben": {"00.1": right, "06.1": wrong},
        "cleo": {},
    }.items():
        written(tmp_path / "home" / person / "share" / "progress.json", tried)
    assert main(["course", "report", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:3] == ["right", "00", "01"]
    rows = {line.split()[0]: line.split()[1:] for line in out[1:4]}
    assert rows["anna"][0] == "2/3"
    assert rows["anna"][-1] == "2"
    assert rows["ben"][0] == "1/3"
    assert rows["cleo"][-1] == "0"
    assert [line.split() for line in out if line.startswith("  06.1")] == [["06.1", "0", "of", "2", "7"]]
    assert main(["course", "report", "--csv", str(tmp_path)]) == 0
    assert "anna,06.1,0,7,,," in capsys.readouterr().out.splitlines()


def test_ones_own_report(own, capsys):
    assert main(["course", "report"]) == 1
    assert "No exercise was checked yet" in capsys.readouterr().err
    note("04.1", right=True)
    assert main(["course", "report"]) == 0
    assert "Hardest" not in capsys.readouterr().out


def test_what_somebody_else_wrote_does_no_harm(tmp_path, capsys):
    """A class's files are whatever its members put there."""
    hostile = {name: {"right": True, "tries": 1, "last": "\x1b[2J"} for name in ("=cmd()", "\x1b]0;x\x07")}
    written(tmp_path / "=a\x1b[31m" / "progress.json", hostile)
    written(tmp_path / "b" / "progress.json", {"00.1": {"right": True, "tries": "x", "last": ""}})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "progress.json").write_bytes(b"[" * 100_000)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "progress.json").write_bytes(b" " * (1 << 21))
    (tmp_path / "e").mkdir()
    os.mkfifo(tmp_path / "e" / "progress.json")  # reading it would wait for ever
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "progress.json").symlink_to(tmp_path / "b" / "progress.json")
    assert main(["course", "report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert [line.split(":")[1].strip() for line in said.out.splitlines() if line.startswith("Not read")] == list("bcde")
    assert main(["course", "report", "--csv", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert not any(cell.startswith("=") for line in said.out.splitlines() for cell in line.split(","))


def test_a_missing_file_is_said(tmp_path, capsys):
    assert main(["course", "report", str(tmp_path)]) == 1
    assert "There is no progress.json" in capsys.readouterr().err
    report = class_report(files_in([tmp_path / "nobody.json"]), ["00.1"])
    assert set(report.unread) == {"nobody"}


def test_an_exercise_that_is_right_stays_right():
    tried = Tried().again(False).again(True)
    assert tried.again(False) is tried
    assert (tried.right, tried.tries) == (True, 2)
