"""In a kernel, what blocks draw with is sent once; elsewhere each brings its own."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from ipywidgets.embed import dependency_state
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.widgets.base import block


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block sees in a kernel that has made no block yet."""
    monkeypatch.setattr(block, "get_ipython", lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setattr(block, "_held", {})
    monkeypatch.delenv("VSCODE_PID", raising=False)


def models(widget: Any) -> dict[str, Any]:
    """The states of a widget and of all that it refers to, by id: what a front end is sent."""
    return {name: one["state"] for name, one in dependency_state([widget], drop_defaults=False).items()}


def sent(states: dict[str, Any]) -> int:
    """Bytes of source among them."""
    shared = [state["text"] for state in states.values() if state["_model_name"] == "WidgetModel"]
    return sum(map(len, [*shared, *(state.get("_esm", "") for state in states.values())]))


def test_a_second_tool_sends_a_fifth_of_what_it_would_send_alone(
    lm4: lk.LanguageModel, kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (models(lk.PatchLab(lm4, CLEAN, CORRUPT, " Mary", " John", background=False)) for _ in range(2))
    new = {name: state for name, state in second.items() if name not in first}
    monkeypatch.setattr(block, "get_ipython", lambda: None)
    alone = models(lk.PatchLab(lm4, CLEAN, CORRUPT, " Mary", " John", background=False))
    assert sent(first) < sent(alone)
    assert sent(new) < 0.2 * sent(alone)


def test_what_is_kept_of_a_block_holds_all_that_it_is_drawn_with(kernel: None) -> None:
    for one in (lk.Heatmap([[1.0]]), lk.TokenStrip(["a"])):
        state = dependency_state([one])
        name = state[one.model_id]["state"]["_shared"].removeprefix("IPY_MODEL_")
        assert state[name]["state"]["text"] == type(one)._esm.default_value
        one._shared.close()
        assert dependency_state([one]) == state  # closing all widgets leaves what the next ones need


def test_a_block_answers_one_that_did_not_find_it(kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    one, said = lk.Heatmap([[1.0]]), []
    monkeypatch.setattr(one, "send", said.append)
    one._handle_custom_msg({"kind": "something"}, [])
    one._handle_custom_msg({"kind": "source"}, [])
    assert said == [{"kind": "source", "text": one._shared.text}]


@pytest.mark.parametrize("where", ["alone", "colab", "vscode"])
def test_elsewhere_each_brings_its_own(where: str, kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "alone":
        monkeypatch.setattr(block, "get_ipython", lambda: None)
    elif where == "colab":
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    else:
        monkeypatch.setenv("VSCODE_PID", "1")
    one = lk.Heatmap([[1.0]])
    assert one._shared is None
    assert one._esm.startswith("// heatmap.js")
