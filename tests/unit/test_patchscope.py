"""Patchscopes: an activation of any prompt in any place of another, and what the model then writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loud import IDS, loud

import labkit as lk
from labkit.lens import patchscope as scoping

SOURCE = "Mary lives in Paris"
INTO = "cat->cat; 135->135; hello->hello; x"


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.mark.parametrize("batch", [1, None])
def test_each_text_is_what_generate_writes_with_that_activation_in_that_place(
    lm32: lk.LanguageModel, batch: int | None
) -> None:
    scope = lk.patchscope(
        lm32, SOURCE, layers=[2, 20], positions=[1, -1], into=INTO, at=-1, max_new_tokens=5, batch=batch,
        progress=False,
    )  # fmt: skip
    run, last = lm32.run(SOURCE, read=["resid_post"]), len(scope.target) - 1
    assert [(row.layer, row.position) for row in scope.rows] == [(2, 1), (2, 3), (20, 1), (20, 3)]
    for row in scope.rows:
        value = run[f"resid_post.{row.layer}"][0, row.position]
        made = lm32.generate(INTO, max_new_tokens=5, write={f"resid_post.{row.layer}": value}, write_at=[last])
        assert row.wrote is not None
        assert (list(row.wrote.ids), row.wrote.text) == (made.record.ids, made.text)
        assert row.wrote.probability == pytest.approx(made.tokens[0].probability, abs=1e-4)
    assert scope.unpatched is not None
    assert list(scope.unpatched.ids) == lm32.generate(INTO, max_new_tokens=5).record.ids
    assert len({row.wrote.text for row in scope.rows if row.wrote}) > 1


def test_a_word_put_into_a_prompt_that_repeats_words_is_said(lm: lk.LanguageModel) -> None:
    """An early residual stream has its word, and no random vector of its size has."""
    scope = lk.patchscope(
        lm, SOURCE, site="resid_post.0@-1", into="cat cat\n135 135\nhello hello\nx", max_new_tokens=3, progress=False
    )
    assert "Paris" in scope.text()
    assert scope.rows[0].random is not None
    assert "Paris" not in scope.rows[0].random.text
    assert scope.unpatched is not None
    assert "Paris" not in scope.unpatched.text


def test_another_layer_another_model_and_a_mapping(lm32: lk.LanguageModel, lm4: lk.LanguageModel) -> None:
    how: dict[str, Any] = {"site": "resid_post.8@-1", "into": INTO, "layer": 3, "max_new_tokens": 4, "progress": False}
    scope = lk.patchscope(lm32, SOURCE, **how, source=lm4, mapping=double)
    value = 2 * lm4.run(SOURCE, read=["resid_post.8@-1"])["resid_post.8@-1"][0].float()
    at = [len(scope.target) - 1]
    made = lm32.generate(INTO, max_new_tokens=4, write={"resid_post.3": value}, write_at=at)
    assert scope.rows[0].target_layer == 3
    assert list(scope.rows[0].wrote.ids) == made.record.ids
    code = scope.code()
    assert "source = lk.load(" in code
    assert "def double(x" in code
    assert "source=source, mapping=double" in " ".join(code.split())


def test_heads_can_be_put_in_too(lm32: lk.LanguageModel) -> None:
    scope = lk.patchscope(lm32, SOURCE, site="z.20.3@-1", into=INTO, max_new_tokens=2, batch=1, progress=False)
    value = lm32.run(SOURCE, read=["z.20.3"])["z.20.3"][0, -1]
    made = lm32.generate(INTO, max_new_tokens=2, write={"z.20.3": value}, write_at=[len(scope.target) - 1])
    assert list(scope.rows[0].wrote.ids) == made.record.ids


def test_controls_are_the_same_for_the_same_seed_and_can_be_left_out(lm32: lk.LanguageModel) -> None:
    how: dict[str, Any] = {"site": "resid_post.5@-1", "into": INTO, "max_new_tokens": 3, "progress": False}
    first, second = (lk.patchscope(lm32, SOURCE, **how, seed=4) for _ in range(2))
    assert first == second
    bare = lk.patchscope(lm32, SOURCE, **how, controls=False)
    assert bare.unpatched is bare.rows[0].random is None
    alone, among = bare.rows[0].wrote, first.rows[0].wrote
    assert replace(alone, probability=among.probability) == among
    assert alone.probability == pytest.approx(among.probability, rel=1e-4)  # a row more or less: fp32's rounding (AVX2)
    assert bare.finish == "complete"


def test_it_is_saved_drawn_and_repeated(lm32: lk.LanguageModel, tmp_path: Path) -> None:
    scope = lk.patchscope(lm32, SOURCE, layers=[1, 9], into=INTO, max_new_tokens=3, progress=False)
    assert lk.open_patchscope(scope.save(tmp_path / "p.npz")) == scope
    assert scope.to_frame().shape == (2, 10)
    assert scope.to_frame()["text"].tolist() == [scope.text(1), scope.text(layer=9, position=-1)]
    assert scope.figure().data[0].z.shape == (2, 1)
    assert repr(scope).startswith("Patchscope(resid_post; 1@3 ")
    found: dict[str, Any] = {}
    exec(scope.code().replace("lm = lk.load(bits=32)", ""), {"lm": lm32}, found)
    assert found["scope"] == scope
    with pytest.raises(ValueError, match="2 rows fit layer None, position None; there are 1@3, 9@3"):
        scope.text()


def test_what_an_interrupt_leaves_is_kept(lm32: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = scoping.extend_records, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(scoping, "extend_records", interrupted)
    with pytest.warns(UserWarning, match="interrupted: 2 of 5 texts are in the patchscope"):
        scope = lk.patchscope(lm32, SOURCE, layers=[1, 2], into=INTO, max_new_tokens=2, batch=1, progress=False)
    assert scope.unpatched is not None
    assert [row.wrote is None for row in scope.rows] == [False, True]
    assert scope.finish == "stopped"
    assert len(scope.to_frame()) == 2
    scope.figure()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"site": "resid_post.10@9"}, "position 9 is out of range; the prompt has positions 0 to 3"),
        ({"site": "resid_post.77@-1"}, "layer 77 is out of range"),
        ({"site": "resid_post@-1"}, r"which layer of resid_post\? Write 'resid_post.0@-1', or give layers"),
        ({"site": "resid_post.3"}, r"which position of the source prompt\? Write 'resid_post.3@-1'"),
        ({"site": "z.3@-1"}, "which head"),
        ({"site": "pattern.3.1@-1"}, "moves vectors; pattern has none"),
        ({"site": "router.3@-1"}, "it is not a mixture of experts"),
        ({"at": 99}, "position at=99 is out of range"),
        ({"layer": 99}, "layer 99 is out of range"),
        ({"layers": []}, "empty list"),
        ({"at": "x"}, "at must be a whole number"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"batch": 0}, "batch must be a whole number of texts, at least 1"),
        ({"mapping": lambda x: x[:5]}, "cannot be broadcast"),
        ({"mapping": lambda x: x / 0}, "not finite"),
        ({"max_new_tokens": 10**5}, "more than the .* context"),
        ({"into": ""}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    lm32: lk.LanguageModel, how: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoping, "extend_records", lambda *args, **kwargs: pytest.fail("the model wrote"))
    with pytest.raises(ValueError, match=says):
        lk.patchscope(lm32, SOURCE, **how, progress=False)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"layers": 3}, r"layers must be a list of numbers, such as \[3\]"),
        ({"mapping": 5}, "mapping= is a function"),
        ({"source": "gpt2"}, "source= is another model"),
    ],
)
def test_what_is_of_the_wrong_type_is_said(lm32: lk.LanguageModel, how: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        lk.patchscope(lm32, SOURCE, **how, progress=False)


def test_models_of_different_widths_need_a_mapping(lm32: lk.LanguageModel) -> None:
    small = loud("llama")
    how: dict[str, Any] = {"site": "resid_post.1@-1", "source": small, "max_new_tokens": 2, "progress": False}
    with pytest.raises(ValueError, match=rf"vectors of {small.d_model} numbers, .* of 576; give a mapping="):
        lk.patchscope(lm32, IDS, **how)
    wider = torch.ones(576, small.d_model)
    assert lk.patchscope(lm32, IDS, **how, mapping=lambda x: wider @ x.float()).text()
    with pytest.raises(TypeError, match=r"mapping must give a tensor; for .* it gave list"):
        lk.patchscope(lm32, IDS, **how, mapping=lambda x: x.tolist())
