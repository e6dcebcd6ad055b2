"""Errors and warnings are made of whole sentences that say what was wrong and what to do."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import pytest
from loud import loud

import labkit as lk

SOURCES = sorted(Path(lk.__file__).parent.rglob("*.py"))
SAID = re.compile(r"(Error|\.warn|Unsupported|\.complain|_fall_back)$")
BEGINNING = "It|The|Did|This|That|Use|Try|Give|Leave|Ask|Make|Load|Update|Read|Choose|There|These|They|Install|Set"
RUN_ON = re.compile(rf"[^.;:,?!\n] ({BEGINNING})\b")


def messages(source: str) -> list[tuple[int, str]]:
    """What errors and warnings in a module say, as (line, text), a value that is put in standing as X."""

    def text(part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        if isinstance(part, ast.JoinedStr):
            return "".join(text(value) if isinstance(value, ast.Constant) else "X" for value in part.values)
        if isinstance(part, ast.BinOp):
            return text(part.left) + text(part.right)
        return text(part.body) if isinstance(part, ast.IfExp) else "X"

    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    return [(call.lineno, text(call.args[0])) for call in calls if SAID.search(ast.unparse(call.func))]


def test_no_message_runs_two_sentences_together() -> None:
    found = [(path, line, text) for path in SOURCES for line, text in messages(path.read_text("utf-8"))]
    assert len(found) > 150
    assert [f"{path.name}:{line}: {text}" for path, line, text in found if RUN_ON.search(text)] == []
    assert all(text.count("(") == text.count(")") for _, _, text in found)


def test_the_check_sees_a_sentence_without_an_end() -> None:
    wrong = 'raise ValueError(f"layer {layer} has no one weight {name!r}{hint} It {what}")'
    assert [bool(RUN_ON.search(text)) for _, text in messages(wrong)] == [True]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("o_prj", "has no weight named 'o_prj'; it has .*self_attn.o_proj.*. Did you mean 'o_proj'?"),
        ("zzz", "has no weight named 'zzz'; it has .*self_attn.o_proj"),
    ],
)
def test_a_mistyped_weight_is_answered_with_what_there_is(name: str, says: str) -> None:
    lm = loud("llama")
    with pytest.raises(ValueError, match=says) as error:
        lm.weight(name, 1)
    assert not RUN_ON.search(str(error.value))


def test_a_name_that_fits_several_weights_is_answered_with_each() -> None:
    lm = loud("llama")
    block = lm.anatomy.blocks[0].module
    block.twin = copy.deepcopy(block.self_attn)
    with pytest.raises(ValueError, match=r"has several weights named 'q_proj': .*twin\.q_proj.*\. Give one of these$"):
        lm.weight("q_proj", 0)
