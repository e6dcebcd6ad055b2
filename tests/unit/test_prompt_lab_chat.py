"""PromptLab without a front end: chats, scores, two models side by side, what is taken on to other tools, sessions."""

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
from pair import CLEAN
from wire import Wire

import labkit as lk


@pytest.fixture
def lab(lm4: lk.LanguageModel) -> lk.PromptLab:
    return lk.PromptLab(lm4, CLEAN, max_new_tokens=8)


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
