"""The exercises: right answers pass, wrong ones are told what is wrong, none is not answered."""

import numpy as np
import pytest
from course_answers import RIGHT, WRONG, Made

import labkit as lk
from labkit.course import check
from labkit.course.checks import exercises
from labkit.course.pictures_of_open_models import STARTED_FROM, shaded
from labkit.course.thinking_models import ask, chances, hide, needs, sentences, steps


@pytest.fixture(scope="module")
def made(lm4) -> Made:
    return Made(lm4)


def given(answer, made):
    return answer(made) if callable(answer) else answer


@pytest.mark.parametrize("name", exercises())
def test_right_answers_are_right_in_every_form_and_wrong_ones_are_told_what_is_wrong(made, capsys, name):
    for answer in RIGHT[name]:
        check(name, given(answer, made), made.lm)
        assert capsys.readouterr().out.startswith(f"{name}: Right. "), answer
    for answer, says in WRONG[name]:
        check(name, given(answer, made), made.lm)
        out = capsys.readouterr().out
        assert out.startswith(f"{name}: Not yet. "), answer
        assert says.lower() in out.lower(), answer


@pytest.mark.parametrize("name", exercises())
def test_a_check_that_is_too_kind_would_be_noticed(name):
    """Of the wrong answers some are of the same kind as a right one, and they are wrong for different reasons."""
    assert len(WRONG[name]) >= 3
    assert len({says for _, says in WRONG[name]}) >= 2
    kinds = {type(answer) for answer in RIGHT[name]}
    assert any(type(answer) in kinds for answer, _ in WRONG[name])


def test_no_answer_is_not_a_wrong_one(lm4, capsys):
    for name in exercises():
        check(name, None, lm4)
        assert "not answered yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is no exercise"):
        check("99.9", 1, lm4)


def test_what_was_distilled_is_built_like_what_it_was_made_from():
    for child, parent in STARTED_FROM.items():
        one, other = lk.card(child).model, lk.card(parent).model
        assert one.config["model_type"] == other.config["model_type"]
        assert one.config["num_hidden_layers"] == other.config["num_hidden_layers"]
        assert one.parameters == pytest.approx(other.parameters, rel=0.2)  # the smallest unties its unembedding


def test_the_messages_in_a_written_chat_are_shaded(lm4):
    chat = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
    tokens, values = shaded(lm4, "[INST] Name a colour. [/INST] Blue. </s>", chat)
    said = "".join(token.text for token, value in zip(tokens, values, strict=True) if value == 1)
    assert said.split() == ["Name", "a", "colour.", "Blue."]
    tokens, values = shaded(lm4, "<｜User｜> Name a colour. <｜Assistant｜> Blue. <｜end▁of▁sentence｜>", chat)
    said = "".join(token.text for token, value in zip(tokens, values, strict=True) if value == 1)
    assert said.split() == ["Name", "a", "colour.", "Blue."]  # also where a token is a part of a character
    with pytest.raises(ValueError, match="not found"):
        shaded(lm4, "[INST] Name a colour. [/INST]", chat)


def test_the_sentences_of_a_trace_are_found_without_the_marks_around_them(lm4):
    trace = steps(17, 8)
    chat = ask(17, 8, trace)
    ids = lm4.encode(chat)[0].tolist()
    found = sentences(lm4, chat)
    assert [lm4.tokenizer.decode(ids[one.start : one.stop]).strip() for one in found] == trace
    assert sentences(lm4, ask(17, 8, None)) == []


def test_a_hidden_sentence_is_attended_to_by_nothing_after_it(lm4):
    chat = ask(17, 8, steps(17, 8))
    sentence = sentences(lm4, chat)[1]
    shown, run = lm4.run(chat, read=["pattern"]), lm4.run(chat, read=["pattern"], write={"scores": hide(sentence)})
    for one, is_zero in ((shown, False), (run, True)):
        after = one["pattern"][..., sentence.stop :, sentence.start : sentence.stop]
        assert bool((after == 0).all()) == is_zero
    assert (run["pattern"][..., : sentence.stop, :].sum(-1) - 1).abs().max() < 1e-3  # rows before it are as they were


def test_a_later_sentence_needs_the_one_whose_numbers_it_repeats(lm4):
    table = needs(lm4, 17, 8, steps(17, 8))
    assert np.isnan(table[np.tril_indices(5)]).all()
    assert not np.isnan(table[np.triu_indices(5, 1, 6)]).any()
    assert table[1, 3] > table[0, 3] + 2  # 80 plus 56 needs the 80


def test_a_planted_mistake_in_the_last_sentence_is_followed(lm4):
    right, off = chances(lm4, 17, 8, steps(17, 8, fifth=146))
    assert off > 5 * right
    right, off = chances(lm4, 17, 8, steps(17, 8, fourth=146))
    assert right > 2 * off
