"""The exercises: right answers pass, wrong ones are told what is wrong, none is not answered."""

import pytest

from labkit.course import check
from labkit.course.checks import EXERCISES

RIGHT = {
    "00.1": 7,
    "00.2": "embedding",
    "01.1": "The Eiffel Tower is in the city of",
    "01.2": "ꙮꙮꙮꙮ",
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
    "01.1": ("The capital of Germany is", "likeliest next token is"),
    "01.2": ("abcd", "That is 1 tokens"),
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


@pytest.mark.parametrize("name", ["03.1", "03.2", "04.1"])
def test_searched_answers_exist(lm4, capsys, name):
    """Some head, or some layer, is right."""
    tries = range(30) if name == "04.1" else [(layer, head) for layer in range(30) for head in range(9)]
    for answer in tries:
        check(name, answer, lm4)
        if "Right." in capsys.readouterr().out:
            return
    pytest.fail(f"nothing answers {name}")


def test_no_answer_is_not_a_wrong_one(lm4, capsys):
    for name in EXERCISES:
        check(name, None, lm4)
        assert "not answered yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is no exercise"):
        check("99.9", 1, lm4)
