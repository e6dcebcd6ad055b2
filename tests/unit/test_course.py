"""The exercises: right answers pass, wrong ones are told what is wrong, none is not answered."""

import pytest

from labkit.course import check
from labkit.course.checks import exercises

RIGHT = {
    "00.1": 7,
    "00.2": "embedding",
    "00.3": "allenai/OLMo-2-1124-13B",
    "01.1": "The Eiffel Tower is in the city of",
    "01.2": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday, Wednesday",
    "01.3": (1, " when"),
    "01.4": "ꙮꙮꙮꙮ",
    "04.2": (
        "When Tom and James went to the park, James gave a ball to",
        "When Tom and James went to the park, Tom gave a ball to",
        " Tom",
        " James",
    ),
}
WRONG = {
    "00.1": (6, "does not see 6 tokens"),
    "00.2": ("norms", "most megabytes"),
    "00.3": ("meta-llama/Llama-2-7b-hf", "is not public"),
    "01.1": ("The capital of Germany is", "likeliest next token is"),
    "01.2": ("Purple seven runs the quietly of because green to and a", "Look for less than 2"),
    "01.3": ((0, "."), "Greedy has log-probability"),
    "01.4": ("word", "tokens. What is rare"),
    "03.1": ((0, 40), "heads from 0 to 8"),
    "03.2": ((0, 0), "goes from"),
    "04.1": (0, "where do they cross"),
    "04.2": (("a", "b", " Mary", " John"), "The logit difference is"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_right(lm4, capsys, name):
    check(name, RIGHT[name], lm4)
    assert capsys.readouterr().out.startswith(f"{name}: Right."), name


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(lm4, capsys, name):
    answer, says = WRONG[name]
    check(name, answer, lm4)
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: Not yet.")
    assert says in out


def test_the_heads_that_the_notebook_finds_are_right(lm4, capsys):
    check("03.1", (11, 1), lm4)
    check("03.2", (23, 3), lm4)
    assert capsys.readouterr().out.count("Right.") == 2


def test_some_layer_is_where_the_answer_moves(lm4, capsys):
    for layer in range(lm4.n_layers - 1, 0, -3):
        check("04.1", layer, lm4)
    assert "Right." in capsys.readouterr().out


def test_no_answer_is_not_a_wrong_one(lm4, capsys):
    for name in exercises():
        check(name, None, lm4)
        assert "not answered yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is no exercise"):
        check("99.9", 1, lm4)
