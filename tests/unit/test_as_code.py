"""Code of results: what stands in it is what was asked, with every import that it takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud

import labkit as lk
from labkit.text.as_code import LM, Name, as_code, as_python, changed


@pytest.fixture(scope="module")
def llama() -> lk.LanguageModel:
    return loud("llama")


MADE: dict[str, Callable[[lk.LanguageModel], Any]] = {
    "score": lambda lm: lk.score(lm, IDS),
    "generation": lambda lm: lm.generate(IDS, max_new_tokens=2),
    "lens": lambda lm: lk.logit_lens(lm, IDS, follow=[ANSWER], k=3),
    "found": lambda lm: lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL),
    "knocked": lambda lm: lk.knock_out(lm, IDS, heads=[(0, 1)], how="other", other=CORRUPT_IDS),
    "patterns": lambda lm: lk.attention(lm, IDS),
    "vector": lambda lm: lk.steering_vector(lm, [IDS, CORRUPT_IDS], [CORRUPT_IDS], 1),
    "sweep": lambda lm: lk.sweep(lm, [(IDS, CORRUPT_IDS, ANSWER, FOIL)], site="z", layers=[1], progress=False),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_what_was_made_of_ids_is_made_again_in_an_empty_namespace(made, llama, monkeypatch):
    result = made(llama)
    monkeypatch.setattr(lk, "load", lambda *_, **__: llama)
    scope: dict[str, Any] = {}
    exec(result.code(), scope)
    again = next(value for value in scope.values() if type(value) is type(result))
    assert repr(again) == repr(result)
    assert again.code() == result.code()


def test_a_long_call_has_one_line_per_argument():
    code = as_code("", "grid = lk.patch", LM, clean="a" * 60, corrupt="b" * 60)
    assert code == f"grid = lk.patch(\n    lm,\n    clean={'a' * 60!r},\n    corrupt={'b' * 60!r},\n)\n"


def test_a_name_is_no_text_and_ids_are_imported_for_once():
    twice = as_code(as_code("", "a = f", torch.tensor([[1]])), "b = f", [torch.tensor([2]), Name("metric")])
    assert twice == "import torch\n\na = f(torch.tensor([[1]]))\nb = f([torch.tensor([2]), metric])\n"
    assert as_python((torch.tensor([1]),)) == "(torch.tensor([1]),)"
    assert eval(as_python(("it's", 'a "word"', -0.5, None, [1, (2,)]))) == ("it's", 'a "word"', -0.5, None, [1, (2,)])


def test_only_what_is_not_as_usual_is_said():
    assert changed({"at": -1, "method": "exact"}, {"at": 3, "method": "exact", "site": "z"}) == {"at": 3}
