"""PromptLab without a front end: what it shows, keeps and says."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import traitlets
from drawn import opened
from wire import Wire

import labkit as lk
from labkit.widgets.prompt_lab.settings import parsed

CLEAN = "When Mary and John went to the store, John gave a drink to"
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


# -- chat --------------------------------------------------------------------------------------------------------------


def test_a_chat_is_what_generate_makes_of_its_messages(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, "Name a colour.", mode="chat", system="Be brief.", max_new_tokens=12)
    lab.run(300)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    assert lab.text == lm4.generate(messages, max_new_tokens=12).text
    assert lab.prompt == ""
    assert [m["content"] for m in lab.messages] == ["Name a colour.", lab.text]
    kinds = {kind: "".join(lab.strip.tokens[n] for n in lab.strip.marks[kind]) for kind in ("system", "user")}
    assert kinds == {"system": "Be·brief.", "user": "Name·a·colour."}
    assert lab.strip.tokens[lab.strip.marks["template"][0]] == "<|im_start|>"
    lab.prompt = "Another."
    lab.run(300)
    asked = [*messages, {"role": "assistant", "content": lab.messages[1]["content"]}, lab.messages[2]]
    assert lab.text == lm4.generate(asked, max_new_tokens=12).text
    scope: dict[str, Any] = {"lm": lm4}
    code = lab.code()
    assert code.startswith("# chat template: sha256 ")
    exec(code.split("bits=4)\n")[1], scope)
    assert scope["generation"].text == lab.text


def test_an_edited_turn_is_rerun_and_what_was_there_can_be_had_back(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, "Name a colour.", mode="chat", max_new_tokens=8)
    lab.run(300)
    before = lab.text
    box, button, _ = lab.turns._rows[0]
    box.value = "Name an animal."
    assert lab.messages[0]["content"] == "Name an animal."
    button.click()
    lab.wait(300)
    assert lab.messages[0]["content"] == "Name an animal."
    assert lab.messages[1]["content"] == lab.text != before
    lab.show_run(0)
    assert lab.text == before
    assert [m["content"] for m in lab.messages] == ["Name a colour.", before]


def test_another_branch_of_an_answer_becomes_the_answer(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, "Say yes or no.", mode="chat", max_new_tokens=6)
    lab.run(300)
    lab.branch(0, "No")
    lab.wait(300)
    assert lab.messages[-1]["content"] == lab.text
    assert lab.text.startswith("No")
    assert len(lab.messages) == 2


def test_an_answer_that_is_begun_goes_on(lm4: lk.LanguageModel, tmp_path: Path) -> None:
    lab = lk.PromptLab(lm4, mode="chat", max_new_tokens=6)
    asked = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Sure, the"}]
    lab.messages = asked
    lab.run(300)
    assert lab.text == lm4.generate(asked, max_new_tokens=6).text
    assert [m["content"] for m in lab.messages] == ["Name a fruit.", "Sure, the" + lab.text]
    assert "".join(lab.strip.tokens[n] for n in lab.strip.marks["assistant"]) == "Sure,·the"
    scope: dict[str, Any] = {"lm": lm4}
    exec(lab.code().split("bits=4)\n")[1], scope)
    assert scope["generation"].text == lab.text
    first = lab.messages[1]["content"]
    lab.run(300)
    assert lab.messages[1]["content"] == first + lab.text
    again = lk.PromptLab(lm4).open_session(lab.save_session(tmp_path / "session.json"))
    assert again.messages == lab.messages
    again.show_run(0)
    assert again.messages[1]["content"] == first


def test_the_chat_template_is_told_what_the_lab_is_told(
    lm4: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = lm4.tokenizer.chat_template
    monkeypatch.setattr(lm4.tokenizer, "chat_template", own + "{% if quick %}Quick: {% endif %}")
    lab = lk.PromptLab(lm4, "Hi", mode="chat", max_new_tokens=3, template_arguments={"quick": True})
    lab.run(300)
    chat = lk.Chat([{"role": "user", "content": "Hi"}], quick=True)
    assert lab.columns[0].tree.prompt == chat
    assert lm4.tokens(chat)[-1].text == " " or lm4.tokens(chat)[-2].text == ":"
    assert lab.text == lm4.generate(chat, max_new_tokens=3).text
    assert "quick=True" in lab.code()
    again = lk.PromptLab(lm4).open_session(lab.save_session(tmp_path / "session.json"))
    assert again.template_arguments == {"quick": True}
    assert again.code() == lab.code()


def test_an_empty_message_is_told(lm4: lk.LanguageModel) -> None:
    lab = lk.PromptLab(lm4, mode="chat")
    with pytest.raises(ValueError, match="the message is empty"):
        lab.run(300)


def test_a_model_without_a_template_has_no_chat_and_beside_one_it_gets_plain_text(
    lm4: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = lk.LanguageModel(lm4.hf, lm4.tokenizer, name="base", bits=4)
    monkeypatch.setattr("labkit.widgets.prompt_lab.lab.template_of", lambda lm: None if lm is base else "there is one")
    alone = lk.PromptLab(base, "Hi")
    assert [name for _, name in alone._mode.options] == ["text", "score"]
    with pytest.raises(traitlets.TraitError, match="no chat template"):
        alone.mode = "chat"
    both = lk.PromptLab([lm4, base], "Hello there.", mode="chat", max_new_tokens=3)
    both.run(300)
    assert both.columns[1].tree.prompt == "Hello there."
    assert both.columns[0].tree.prompt == [{"role": "user", "content": "Hello there."}]
    assert both.messages[1]["others"] == [both.columns[1].branch.text]


# -- scores ------------------------------------------------------------------------------------------------------------


def test_a_scored_text_shows_what_score_gives(lm4: lk.LanguageModel) -> None:
    text = "Monday, Tuesday, Wednesday, Thursday, banana, Saturday"
    lab = lk.PromptLab(lm4, text, mode="score")
    shown = lab.run(300)
    plain = lk.score(lm4, text)
    assert shown.logprob == plain.logprob
    np.testing.assert_allclose(lab.strip.values[1:], [t.probability for t in plain.tokens[1:]], rtol=1e-5)
    assert math.isnan(lab.strip.values[0])
    assert plain.surprises(1)[0][0] in lab.strip.marks["surprise"]
    assert not lab.strip.choosable
    assert f"perplexity {plain.perplexity:.1f}" in lab.status.text
    scope: dict[str, Any] = {"lm": lm4, "lk": lk}
    exec(lab.code().split("bits=4)\n")[1], scope)
    assert scope["score"].logprob == plain.logprob


# -- side by side ------------------------------------------------------------------------------------------------------


def test_two_models_run_one_prompt_and_what_differs_is_marked(lm4: lk.LanguageModel, lm32: lk.LanguageModel) -> None:
    lab = lk.PromptLab([lm4, lm32], "Once upon a time, in a village by the sea,", max_new_tokens=20)
    lab.run(300)
    texts = [column.branch.text for column in lab.columns]
    assert texts == [lm.generate(lab.prompt, max_new_tokens=20).text for lm in (lm4, lm32)]
    assert texts[0] != texts[1]
    for column in lab.columns:
        assert column.strip.marks["differs"]
        assert "tokens/s" in column.numbers.text
        assert "MB" in column.numbers.text
    assert lab.status.text.startswith("They diverge at token ")
    lab.columns[0].strip.hovered = lab.columns[0].offset
    assert lab.columns[1].strip.pointed == [lab.columns[1].offset]
    lab.columns[0].strip.hovered = None
    assert lab.columns[1].strip.pointed == []
    assert set(lab.to_frame()["model"]) == {column.name for column in lab.columns}
    assert "lk.load(bits=32)" in lab.code()
    compile(lab.code(), "code", "exec")


def test_stop_before_the_second_model_keeps_the_first(lm4: lk.LanguageModel, lm32: lk.LanguageModel) -> None:
    lab = lk.PromptLab([lm4, lm32], "One, two, three,", max_new_tokens=500)
    lab.start()
    while len(lab.strip.tokens) < 10:
        time.sleep(0.01)
    lab.stop()
    lab.wait(300)
    assert len(lab.runs[0].results) == 1
    assert lab.columns[0].branch.finish == "stopped"
    assert lab.status.text == "Nothing to compare yet."
    lab.max_new_tokens = 4
    lab.run(300)
    lab.show_run(0)
    assert len(lab.generation) > 4
    assert lab.columns[1].strip.tokens == []


# -- looking inside ----------------------------------------------------------------------------------------------------


def test_the_prefix_before_a_token_is_what_the_model_saw(lab: lk.PromptLab) -> None:
    lab.run(300)
    with pytest.raises(ValueError, match="no token is selected"):
        lab.look.prefix()
    lab.strip.selection = 16
    ids = lab.look.prefix()
    assert ids.shape == (1, 16)
    assert ids[0].tolist() == lab.columns[0].tree.prefix("A", 2)[0].tolist()
    view = lab.look.look("AttentionView")
    view.wait(300)
    assert len(view.strip.tokens) == 16
    lab.strip.selection = 14
    patching = lab.look.look("PatchLab")
    assert (patching.clean, patching.answer) == (CLEAN, " Mary")
    assert patching.foil
    lab.look.close_tool()
    assert lab.look.tool is None


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_comes_back_as_it_was(lm4: lk.LanguageModel, tmp_path: Any) -> None:
    lab = lk.PromptLab(lm4, CLEAN, max_new_tokens=6, temperature=0.8, seed=5)
    lab.run(300)
    lab.branch(2, " of")
    lab.wait(300)
    lab.mode, lab.prompt = "score", "a b c d"
    lab.run(300)
    lab.mode, lab.prompt, lab.system = "chat", "Hi", "Be kind."
    lab.run(300)
    file = lab.save_session(tmp_path / "mine")
    assert file.name == "mine.json"
    back = lk.PromptLab(lm4).open_session(file)
    assert (back.temperature, back.seed, back.max_new_tokens, back.mode, back.system) == (0.8, 5, 6, "chat", "Be kind.")
    assert back.messages == lab.messages
    assert back.text == lab.text
    for number in range(3):
        back.show_run(number)
        lab.show_run(number)
        assert back.to_frame().equals(lab.to_frame())
        assert back.code() == lab.code()
        assert back.strip.tokens == lab.strip.tokens
    assert json.loads(file.read_text())["models"][0]["bits"] == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not a session of PromptLab saved"), ("[1]", "it holds JSON of another kind"), (None, "there is no file")],
)
def test_a_file_that_is_no_session_is_told_and_nothing_changes(
    lab: lk.PromptLab, tmp_path: Any, text: str | None, says: str
) -> None:
    file = tmp_path / "s.json"
    if text is not None:
        file.write_text(text)
    lab.run(300)
    with pytest.raises(ValueError, match=says):
        lab.open_session(file)
    assert len(lab.runs) == 1


def test_in_colab_text_streams_from_the_calling_thread(lm4: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lk.PromptLab(lm4, CLEAN, max_new_tokens=20, background=False)
    wire, threads = Wire(lab.strip, monkeypatch), set()
    add = lab.columns[0].add
    monkeypatch.setattr(lab.columns[0], "add", lambda token: (threads.add(threading.current_thread()), add(token))[1])
    lab.start()
    assert threads == {threading.main_thread()}
    assert len([d for d, _ in wire.messages if d.get("method") == "custom"]) > 2
    assert len(lab.generation) == 20
