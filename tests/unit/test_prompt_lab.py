"""PromptLab without a front end: what it shows, keeps and says."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import traitlets
from drawn import opened
from pair import CLEAN
from wire import Wire

import labkit as lk
from labkit.widgets.prompt_lab.settings import parsed

EVIL = "<script>harm()</script><img src=x onerror='harm()'>"


@pytest.fixture
def lab(lm4: lk.LanguageModel) -> lk.PromptLab:
    return lk.PromptLab(lm4, CLEAN, max_new_tokens=8)


# -- the strip ---------------------------------------------------------------------------------------------------------


def test_appending_costs_the_same_however_long_the_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In messages, bytes and arrays made: the room doubles, and nothing that is there is copied or sent again."""
    strip = lk.TokenStrip()
    wire = Wire(strip, monkeypatch)
    rows = [[(f"·word{i}", 0.1) for i in range(10)]]
    rooms = set()
    for n in range(4096):
        strip.append([f"t{n}"], [0.5], alternatives=rows, facts=np.ones((1, 4)))
        rooms.add(id(strip.values.base))
    assert len(wire.messages) == 4096
    assert len({size for _, size in wire.messages}) == 1
    assert len({len(json.dumps(data)) for data, _ in wire.messages[1000:]}) == 1
    assert len(rooms) <= 8
    assert len(strip.get_state()["tokens"]) == 4096
    assert strip.get_state()["top"]["shape"] == [4096, 10]
    assert len(strip.words) == 10


def test_alternatives_are_kept_as_numbers_and_half_precision() -> None:
    strip = lk.TokenStrip(["a", "b", "c"], alternatives=[[("x", 0.5), ("y", 0.25)], None, [("y", 0.75)]])
    assert strip.words == ["x", "y"]
    state = strip.get_state()
    assert (state["top"]["dtype"], state["chances"]["dtype"]) == ("int32", "float16")
    assert strip.alternatives == [[["x", 0.5], ["y", 0.25]], None, [["y", 0.75]]]
    strip.append(["d"], [1.0], alternatives=[[("z", 1.0), ("x", 0.0), ("y", 0.0)]])
    assert strip.alternatives[0] == [["x", 0.5], ["y", 0.25]]
    assert [text for text, _ in strip.alternatives[3]] == ["z", "x", "y"]
    strip.clear()
    assert strip.alternatives == []


def test_what_a_person_chooses_is_told_with_its_place() -> None:
    strip, heard = lk.TokenStrip(["a"]), []
    strip.on_choose(lambda position, place: heard.append((position, place)))
    strip._handle_custom_msg({"kind": "choose", "position": 0, "place": 3}, [])
    strip._handle_custom_msg({"kind": "else"}, [])
    assert heard == [(0, 3)]


# -- the tree of branches ----------------------------------------------------------------------------------------------


def test_a_tree_of_branches_refuses_what_does_not_grow_and_says_what_is_asked_of_it() -> None:
    rows = [{"name": "A", "parent": None, "text": EVIL, "tokens": 3}, {"name": "B", "parent": 0, "at": 1, "taken": "x"}]
    tree, heard = lk.BranchTree(rows, title="Ways"), []
    assert tree.depths() == [0, 1]
    tree.on_action(lambda *asked: heard.append(asked))
    for message in ({"kind": "rename", "index": 1, "text": "mine"}, {"kind": "prune", "index": 7}, {"kind": "x"}):
        tree._handle_custom_msg(message, [])
    assert heard == [("rename", 1, "mine")]
    assert "<script" not in opened(tree.snapshot())
    assert repr(tree) == "BranchTree(A, B)"
    scope: dict[str, Any] = {}
    exec(tree.code().replace("lk.BranchTree(", "made = lk.BranchTree("), scope)
    assert scope["made"].branches == tree.branches
    with pytest.raises(traitlets.TraitError, match="must come after its parent"):
        lk.BranchTree([{"name": "A", "parent": 0}])


# -- text --------------------------------------------------------------------------------------------------------------


def test_prompt_lab_streams_what_generate_gives(lm4: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lk.PromptLab(lm4, CLEAN, max_new_tokens=12)
    wire = Wire(lab.strip, monkeypatch)
    generation = lab.run(300)
    plain = lm4.generate(CLEAN, max_new_tokens=12)
    assert lab.text == generation.text == plain.text
    shown = [one.token.display for one in plain.tokens]
    assert lab.strip.tokens == [token.display for token in plain.prompt] + shown
    np.testing.assert_allclose(lab.strip.values[-len(shown) :], [one.probability for one in plain.tokens], atol=1e-3)
    batches = [data["content"]["tokens"] for data, _ in wire.messages if data.get("method") == "custom"]
    assert [token for batch in batches for token in batch] == shown
    assert all(len(rows) == 10 for rows in lab.strip.alternatives[-len(shown) :])


def test_the_code_of_prompt_lab_repeats_a_sampled_text(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, "Once upon a time", max_new_tokens=10, temperature=1.0, seed=3, background=False)
    lab.run()
    scope: dict[str, Any] = {"lm": lm4}
    exec(lab.code().split("lm = lk.load(")[1].split("\n", 1)[1].replace("print", ""), scope)
    assert scope["generation"].text == lab.text


def test_stop_keeps_what_was_written(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, "One, two, three,", max_new_tokens=1000)
    lab.start()
    while len(lab.strip.tokens) < 10:
        time.sleep(0.01)
    lab.stop()
    lab.wait(300)
    assert lab.generation.finish == "stopped"
    assert 0 < len(lab.generation.tokens) < 1000


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "The prompt is empty; write at least one character"), ("a" + " a" * 8999, "The prompt has 9000 tokens")],
)
def test_a_prompt_that_cannot_be_used_is_answered_in_plain_words(lm4: lk.LanguageModel, prompt: str, said: str) -> None:
    lab = lk.PromptLab(lm4, "A good one", max_new_tokens=3)
    before = lab.run(300)
    lab.prompt = prompt
    with pytest.raises(ValueError, match="prompt"):
        lab.run(300)
    assert lab.status.kind == "error"
    assert lab.status.text.startswith(said)
    assert lab.generation is before  # nothing is lost
    assert lab.stop_button.disabled


def test_a_chosen_alternative_branches_and_both_stay(lab: lk.PromptLab) -> None:
    first = lab.run(300)
    column = lab.columns[0]
    john = first.record.rows["top_ids"][0].tolist().index(lab.lm.tokenizer(" John").input_ids[0])
    column.strip._handle_custom_msg({"kind": "choose", "position": 14, "place": john}, [])
    lab.wait(300)
    assert lab.text.startswith(" John")
    assert lab.text == column.tree["B"].text == lab.generation.text
    assert column.strip.tokens[14] == "·John"
    assert column.branches.selection == 1
    column.branches.selection = 0
    assert lab.text == first.text
    scope: dict[str, Any] = {"lm": lab.lm}
    column.branches.selection = 1
    exec(lab.code().split("bits=4)\n")[1], scope)
    assert scope["tree"]["B"].text == lab.text
    assert lab.to_frame()["branch"].unique().tolist() == ["A", "B"]


def test_choosing_what_is_there_changes_nothing(lab: lk.PromptLab) -> None:
    lab.run(300)
    lab.branch(0, lab.generation.record.ids[0])
    lab.wait(300)
    assert len(lab.columns[0].tree) == 1
    assert "already" in lab.status.text


def test_a_scored_text_shows_no_branch_of_the_run_before(lab: lk.PromptLab) -> None:
    lab.run(300)
    lab.branch(1, " a")
    lab.wait(300)
    column = lab.columns[0]
    column.compare(0)
    lab.mode = "score"
    lab.prompt = "One two three"
    lab.run(300)
    assert column.branches.compared is None
    assert column.branches.branches == []
    assert column.compared.layout.display == "none"


def test_branches_are_renamed_compared_continued_and_pruned(lab: lk.PromptLab) -> None:
    lab.run(300)
    lab.branch(0, " John")
    lab.wait(300)
    column = lab.columns[0]
    ask = column.branches._handle_custom_msg
    ask({"kind": "rename", "index": 1, "text": "other"}, [])
    assert column.branches.branches[1]["name"] == "other"
    ask({"kind": "rename", "index": 1, "text": "A"}, [])
    assert lab.status.kind == "error"
    ask({"kind": "compare", "index": 0}, [])
    assert column.compared.marks["differs"][0] == 0
    assert column.strip.marks["differs"][0] == 14
    ask({"kind": "continue", "index": 1}, [])
    lab.wait(300)
    assert len(lab.generation) == 16
    assert column.branches.compared is None
    ask({"kind": "prune", "index": 1}, [])
    assert [row["name"] for row in column.branches.branches] == ["A"]
    assert lab.text == column.tree.root.text


def test_what_was_written_before_a_failure_stays(lab: lk.PromptLab, monkeypatch: pytest.MonkeyPatch) -> None:
    column = lab.columns[0]
    add, count = column.add, []

    def fail(token: Any) -> bool:
        count.append(token)
        if len(count) == 5:
            raise RuntimeError("the cable was pulled")
        return add(token)

    monkeypatch.setattr(column, "add", fail)
    with pytest.raises(RuntimeError, match="cable"):
        lab.run(300)
    assert lab.status.text == "RuntimeError: the cable was pulled"
    assert (lab.generation.finish, len(lab.generation)) == ("failed", 5)
    assert len(column.strip.tokens) == 14 + 5
    assert lab.runs[0].results[0].root is lab.generation
    assert lab.stop_button.disabled


def test_stop_twice_and_a_second_run_meanwhile_keep_everything(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, "One, two, three,", max_new_tokens=1000)
    lab.start()
    while len(lab.strip.tokens) < 10:
        time.sleep(0.01)
    lab.prompt, lab.max_new_tokens = CLEAN, 3
    second = lab.run(300)
    lab.stop()
    lab.stop()
    assert second.text.startswith(" Mary")
    assert [run.results[0].root.finish for run in lab.runs] == ["stopped", "length"]
    lab.show_run(0)
    assert lab.prompt == "One, two, three,"
    assert 0 < len(lab.generation) < 1000
    assert lab.strip.tokens[:2] == ["One", ","]


def test_the_first_token_is_shown_at_once_and_later_ones_in_batches(
    lm4: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = lk.PromptLab(lm4, CLEAN, max_new_tokens=24)
    wire = Wire(lab.strip, monkeypatch)
    lab.run(300)
    batches = [d["content"]["tokens"] for d, _ in wire.messages if d.get("method") == "custom"]
    assert len(batches[0]) == 1
    assert 1 < len(batches) <= 24


def test_settings_that_wait_for_a_temperature_are_named_and_do_no_harm(lab: lk.PromptLab) -> None:
    lab.top_p, lab.min_p = 0.9, 0.1
    assert "top-p and min-p" in lab.settings.note.value
    greedy = lab.run(300)
    assert "no effect at temperature 0: top-p and min-p" in lab.status.text
    assert greedy.text == lab.lm.generate(CLEAN, max_new_tokens=8).text
    lab.temperature = 1.0
    assert lab.settings.note.value == ""
    assert lab.run(300).sampling.min_p == 0.1


def test_stop_strings_are_written_with_escapes(lab: lk.PromptLab) -> None:
    assert parsed(r"\n\n | END") == ["\n\n", "END"]
    assert parsed("") == []
    lab.settings.strings.value = " and"
    assert lab.run(300).finish == "stop_string"
    assert "wrote a stop string" in lab.status.text
    lab.stop_strings = ["\n"]
    assert lab.settings.strings.value == r"\n"


@pytest.mark.parametrize("measure", ["probability", "surprisal", "entropy", "rank"])
def test_colours_follow_the_measure(lab: lk.PromptLab, measure: str) -> None:
    lab.measure = measure
    lab.run(300)
    expected = [getattr(token, measure) for token in lab.generation.tokens]
    np.testing.assert_allclose(lab.strip.values[14:], expected, rtol=1e-4)
    assert np.isnan(lab.strip.values[:14]).all()
    lab.measure = "rank"
    np.testing.assert_array_equal(lab.strip.values[14:], [token.rank for token in lab.generation.tokens])
    assert lab.strip.unit == "rank"


def test_a_prompt_that_is_too_long_offers_to_leave_out_its_beginning(lab: lk.PromptLab, monkeypatch: Any) -> None:
    monkeypatch.setattr(lab.lm.config, "max_position_embeddings", 20)
    with pytest.raises(ValueError, match="2 more than the 20"):
        lab.run(300)
    assert lab._shorten.description == "Leave out the first 2 tokens, and run"
    lab._shorten.click()
    lab.wait(300)
    assert lab.strip.tokens[:2] == ["·and", "·John"]
    assert len(lab.generation) == 8
    assert lab._shorten.layout.display == "none"


def test_thoughts_are_folded_while_they_come(lm4: lk.LanguageModel) -> None:
    prompt = "<think>a</think> b\n<think>a</think> b\n<think>a</think> b\n<think>"
    lab = lk.PromptLab(lm4, prompt, max_new_tokens=10)
    lab.run(300)
    assert "</think>" in lab.text
    last = lab.strip.folds[3]
    start = len(lab.columns[0].tree.tokens) - 3  # <, think, >
    assert last["label"] == "thought"
    assert last["start"] == start
    assert "".join(lab.strip.tokens[last["start"] : last["stop"]]) == "<think>a</think>"
    assert f"▸ thought · {last['stop'] - last['start']} tokens" in opened(lab.snapshot())
    lab.prompt = "He sat. <think>"
    lab.max_new_tokens = 3
    lab.run(300)
    assert [(fold["label"], fold["stop"]) for fold in lab.strip.folds] == [("thinking", None)]


def test_markup_is_escaped_in_the_saved_picture(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, EVIL, max_new_tokens=2)
    lab.run(300)
    picture = opened(lab.snapshot())
    assert "<script" not in picture
    assert "<img" not in picture
    assert "&lt;" in picture
