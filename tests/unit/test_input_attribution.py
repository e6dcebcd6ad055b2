"""What in a prompt made a model write what it wrote: exact removals, gradients, and the deletion curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loud import loud

import labkit as lk
from labkit.attribution.input_gradients import Path as Integral
from labkit.attribution.removal import Removals, Replacement
from labkit.attribution.units import units_of

PROMPT = "When Mary and John went to the store, John gave a drink to"
CHAT = [
    {"role": "system", "content": "You answer in one word."},
    {"role": "user", "content": "The capital of Italy is Rome. What is the capital of France?"},
]


def logprob(lm: lk.LanguageModel, ids: torch.Tensor, n_prompt: int, x: torch.Tensor | None = None) -> float:
    """The sum of log-probabilities after the first tokens of ids (1, seq), by transformers alone."""
    with torch.no_grad():
        how = {"input_ids": ids} if x is None else {"inputs_embeds": x}
        logits = lm.hf(**how, use_cache=False).logits[0, n_prompt - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(-1, ids[0, n_prompt:, None]).sum())


def brute_force(lm: lk.LanguageModel, result: lk.InputAttribution, embedding: torch.Tensor | int) -> np.ndarray:
    """One whole forward pass per unit."""
    n = len(result.tokens)
    found = np.zeros(len(result.units))
    for sign, text in ((1, result.written), (-1, result.foil)):
        if not text:
            continue
        ids = torch.tensor([[*(t.id for t in result.tokens), *(t.id for t in text)]])
        x = lm.hf.get_input_embeddings()(ids).detach()
        whole = logprob(lm, ids, n, x)
        for k, unit in enumerate(result.units):
            if isinstance(embedding, int):
                other = ids.clone()
                other[0, unit.start : unit.stop] = embedding
                found[k] += sign * (whole - logprob_of(lm, other, ids, n))
            else:
                y = x.clone()
                y[0, unit.start : unit.stop] = embedding.to(y)
                found[k] += sign * (whole - logprob(lm, ids, n, y))
    return found


def logprob_of(lm: lk.LanguageModel, ids: torch.Tensor, said: torch.Tensor, n: int) -> float:
    with torch.no_grad():
        logits = lm.hf(input_ids=ids, use_cache=False).logits[0, n - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(-1, said[0, n:, None]).sum())


def mean(lm: lk.LanguageModel) -> torch.Tensor:
    return lm.hf.get_input_embeddings().weight.detach().float().mean(0)


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ({"written": " Mary"}, 2e-4),
        ({"written": " Mary", "foil": " John", "by": "word"}, 2e-4),
        ({"written": " Mary, who", "foil": " him", "by": [(0, 3), (7, 8)]}, 5e-4),
        ({"written": " Mary", "replace": "_"}, 2e-4),
        ({"written": " Mary", "replace": "zero"}, 2e-4),
    ],
)
def test_removing_is_what_a_whole_forward_pass_per_unit_gives(
    lm32: lk.LanguageModel, how: dict[str, Any], tolerance: float
) -> None:
    result = lk.input_attribution(lm32, PROMPT, **how, progress=False)
    replace = {"_": lm32.tokenizer("_").input_ids[-1], "zero": torch.zeros(lm32.d_model)}.get(how.get("replace", ""))
    expected = brute_force(lm32, result, mean(lm32) if replace is None else replace)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(result.values, expected, atol=tolerance)
    np.testing.assert_allclose(result.per_token.sum(0), result.values, atol=1e-4)
    assert np.isfinite(result.without)


def test_in_four_bits_removing_is_exact_up_to_rounding(lm4: lk.LanguageModel) -> None:
    result = lk.input_attribution(lm4, PROMPT, written=" Mary", foil=" John", by="word", progress=False)
    expected = brute_force(lm4, result, mean(lm4))
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(result.values, expected, atol=0.5)  # logits of 16 steps in 16 bits: up to 1/8 each


def test_a_part_that_is_left_out_is_a_shorter_prompt(lm32: lk.LanguageModel) -> None:
    result = lk.input_attribution(lm32, PROMPT, written=" Mary", replace="delete", by="word", progress=False)
    ids = [t.id for t in result.tokens]
    said = [t.id for t in result.written]
    whole = logprob(lm32, torch.tensor([[*ids, *said]]), len(ids))
    for unit, value in list(zip(result.units, result.values, strict=True))[:4]:
        left = ids[: unit.start] + ids[unit.stop :]
        assert value == pytest.approx(whole - logprob(lm32, torch.tensor([[*left, *said]]), len(left)), abs=2e-4)
    assert np.isnan(result.without)  # nothing would be left


def test_what_the_model_writes_is_what_is_attributed_where_no_text_is_given(lm: lk.LanguageModel) -> None:
    result = lk.input_attribution(lm, CHAT, by="message", max_new_tokens=4, progress=False)
    made = lm.generate(CHAT, max_new_tokens=4)
    ids = made.record.ids[: -1 if made.finish == "eos" else None]
    assert [token.id for token in result.written] == ids
    assert result.score == pytest.approx(float(made.record.rows["logprob"][: len(ids)].sum()), abs=0.2)
    assert [(u.role, u.text) for u in result.units] == [(m["role"], m["content"]) for m in CHAT]


def test_words_and_sentences_of_a_chat_stay_within_a_message_and_name_what_matters(lm: lk.LanguageModel) -> None:
    by_word = lk.input_attribution(lm, CHAT, written="Paris", foil="Rome", by="word", progress=False)
    assert "".join(u.text for u in by_word.units if u.role == "user") == CHAT[1]["content"]
    assert "".join(u.text for u in by_word.units if u.role == "system") == CHAT[0]["content"]
    assert by_word.strongest(1)[0][0].text.strip() in ("France?", "Rome.")
    by_sentence = lk.input_attribution(lm, CHAT, written="Paris", by="sentence", progress=False)
    assert [u.text.strip() for u in by_sentence.units] == [
        "You answer in one word.", "The capital of Italy is Rome.", "What is the capital of France?",
    ]  # fmt: skip
    assert by_sentence.strongest(1)[0][0].text.strip() == "What is the capital of France?"


def test_units_cover_a_text_once_in_order_whatever_is_in_it(lm32: lk.LanguageModel) -> None:
    text = 'One  "two." Three\n\n4.5 größer 😀😀 zum Schluss!  Aus. \n'
    ids = lm32.encode(text)[0].tolist()
    for by in ("token", "word", "sentence"):
        units = units_of(lm32, text, ids, by)
        assert [n for unit in units for n in unit.positions] == list(range(len(ids))), by
    sentences = [u.text.strip() for u in units_of(lm32, text, ids, "sentence")]
    assert sentences == ['One  "two."', "Three", "4.5 größer 😀😀 zum Schluss!", "Aus."]


def test_gradient_times_input_is_the_derivative_of_removing(lm32: lk.LanguageModel) -> None:
    """Against a small step along the same way, by transformers alone."""
    prompt = "The capital of France is"
    result = lk.input_attribution(lm32, prompt, written=" Paris", method="gradient_x_input", progress=False)
    ids = torch.tensor([[*(t.id for t in result.tokens), *(t.id for t in result.written)]])
    x, n = lm32.hf.get_input_embeddings()(ids).detach(), len(result.tokens)
    for unit, value in list(zip(result.units, result.values, strict=True))[1:]:
        step = torch.zeros_like(x)
        step[0, unit.start] = 0.01 * (x[0, unit.start] - mean(lm32))
        slope = (logprob(lm32, ids, n, x + step) - logprob(lm32, ids, n, x - step)) / 0.02
        assert value == pytest.approx(slope, abs=0.02 + 0.05 * abs(slope))
    assert np.abs(result.values).max() > 0.1
    assert result.values[0] == 0  # the first token stays as it is


@pytest.mark.parametrize("per_token", [False, True])
def test_integrated_gradients_add_up_to_the_whole_difference(lm: lk.LanguageModel, per_token: bool) -> None:
    how = {"written": " Paris.", "method": "integrated_gradients", "per_token": per_token}
    result = lk.input_attribution(lm, "The capital of France is", **how, progress=False)
    assert abs(result.score - result.without) > 5
    assert result.gap < 0.01
    assert float(result.values.sum()) == pytest.approx(result.score - result.without, rel=0.01)
    if per_token:
        assert result.per_token.shape == (2, 5)
        np.testing.assert_allclose(result.per_token.sum(0), result.values, atol=1e-4)


def test_a_path_that_is_not_followed_closely_enough_says_so(lm32: lk.LanguageModel) -> None:
    how = {"written": " Mary", "method": "integrated_gradients", "max_steps": 20, "tolerance": 1e-6}
    with pytest.warns(UserWarning, match=r"of 20 steps miss the whole difference by .*raise max_steps"):
        result = lk.input_attribution(lm32, PROMPT, **how, progress=False)
    assert (result.steps, result.finish) == (20, "complete")
    assert result.gap > 1e-6


def test_removing_what_matters_first_makes_a_text_unlikely_sooner_than_chance_does(lm: lk.LanguageModel) -> None:
    result = lk.input_attribution(lm, PROMPT, written=" Mary", foil=" John", by="word", progress=False)
    curve = lk.deletion(result, orders=8, progress=False)
    assert curve.removed.tolist() == list(range(len(result.units) + 1))
    assert curve.scores[0] == pytest.approx(result.score, abs=0.3)
    assert curve.scores[-1] == pytest.approx(result.without, abs=0.3)
    assert curve.area < curve.random_areas.mean() - 0.5
    low, high = curve.band()
    assert (low <= high).all()
    assert list(curve.to_frame().columns) == ["removed", "score", "random", "low", "high"]


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "mixtral", "bloom", "mamba"])
def test_other_architectures_give_what_whole_runs_give(model_type: str) -> None:
    lm = loud(model_type)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 200, (1, 9), generator=draw)
    result = lk.input_attribution(lm, ids, written=[5, 17], foil=[8], replace=33, progress=False)
    np.testing.assert_allclose(result.values, brute_force(lm, result, 33), atol=2e-3)
    assert np.abs(result.values).max() > 0.05


def test_what_an_interrupt_leaves_is_kept(lm32: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Removals.__call__, []

    def interrupted(self: Removals, sets: Any) -> np.ndarray:
        calls.append(len(sets))
        if len(calls) == 3:  # the first is what nothing removed gives
            raise KeyboardInterrupt
        return real(self, sets)

    monkeypatch.setattr("labkit.attribution.removal.tokens_at_once", lambda lm: 40)
    monkeypatch.setattr(Removals, "__call__", interrupted)
    with pytest.warns(UserWarning, match=r"interrupted: \d+ of 14 units are in the attribution"):
        result = lk.input_attribution(lm32, PROMPT, written=" Mary", progress=False)
    assert 0 < np.isfinite(result.values).sum() < 14
    assert result.finish == "stopped"
    assert "not computed" in repr(result)
    with pytest.raises(ValueError, match="was interrupted"):
        lk.deletion(result)


def test_what_an_interrupted_path_had_come_to_is_kept(lm32: lk.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Integral, count: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Integral, "_worst", interrupted)
    how = {"written": " Mary", "method": "integrated_gradients", "tolerance": 1e-6}
    with pytest.warns(UserWarning, match="interrupted: 20 of 20 steps are in the attribution"):
        result = lk.input_attribution(lm32, PROMPT, **how, progress=False)
    assert result.finish == "stopped"
    assert np.isfinite(result.values).all()


def test_results_are_saved_drawn_and_repeated(lm32: lk.LanguageModel, tmp_path: Path) -> None:
    result = lk.input_attribution(lm32, PROMPT, written=" Mary", foil=" John", by="word", progress=False)
    again = lk.open_input_attribution(result.save(tmp_path / "a.npz"), lm32)
    np.testing.assert_array_equal(again.values, result.values)
    assert repr(again) == repr(result)
    assert again.code() == result.code()
    assert "written=' Mary', foil=' John', by='word'" in " ".join(result.code().split())
    assert result.to_frame()["text"].tolist() == [unit.text for unit in result.units]
    assert set(result.to_frame(per_token=True)["of"]) == {"written", "foil"}
    assert len(result.figure().data[0].x) == len(result.units)
    assert np.array(result.figure(per_token=True).data[0].z).shape == result.per_token.shape
    curve = lk.deletion(again, orders=2, points=3, progress=False)
    assert repr(lk.open_deletion_curve(curve.save(tmp_path / "c.npz"))) == repr(curve)
    assert "curve = lk.deletion(attribution, points=3, orders=2)" in curve.code()
    assert len(curve.figure().data) == 4
    scope: dict[str, Any] = {}
    exec(result.code().replace("lm = lk.load(bits=32)", ""), {"lm": lm32}, scope)
    np.testing.assert_allclose(scope["attribution"].values, result.values, atol=1e-5)
    with pytest.raises(ValueError, match="needs the model; open the file"):
        lk.deletion(lk.open_input_attribution(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"written": ""}, "written is empty"),
        ({"written": " Mary", "foil": ""}, "foil is empty"),
        ({"written": " Mary", "foil": " Mary"}, "same text"),
        ({"written": " Mary", "by": "message"}, "needs chat messages; this prompt is text"),
        ({"written": " Mary", "by": "letter"}, "by must be 'token', 'word', 'sentence', 'message'"),
        ({"written": " Mary", "by": [(0, 99)]}, r"unit \(0, 99\) is out of range; the prompt has positions 0 to 13"),
        ({"written": " Mary", "by": [(0, 3), (2, 5)]}, r"unit \(2, 5\) overlaps"),
        ({"written": " Mary", "by": []}, "empty list"),
        ({"written": " Mary", "by": [3]}, r"a unit is \(start, stop\)"),
        ({"written": [10**7]}, "token ids go from 0"),
        ({"written": " Mary", "method": "shap"}, "method must be"),
        ({"written": " Mary", "replace": "several words"}, "replace is 'mean', 'zero', 'delete', or one token"),
        ({"written": " Mary", "replace": "delete", "method": "gradient_x_input"}, "leaves no embedding"),
        ({"written": " Mary", "tolerance": 0}, "tolerance is a share"),
        ({"written": " Mary", "max_steps": 3}, "at least 20"),
        ({"by": "message"}, "needs chat messages"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    lm32: lk.LanguageModel, how: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(lm32.hf), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=says):
        lk.input_attribution(lm32, PROMPT, **how, progress=False)


def test_the_replacement_is_the_mean_of_what_the_embedding_gives(lm: lk.LanguageModel) -> None:
    made = Replacement.of(lm, "mean").embedding
    assert made is not None
    torch.testing.assert_close(made, mean(lm)[: lm.d_model], atol=2e-3, rtol=0.02)


@pytest.mark.parametrize("method", ["occlusion", "gradient_x_input", "integrated_gradients"])
def test_inference_mode_changes_nothing(lm32: lk.LanguageModel, method: Any) -> None:
    how: dict[str, Any] = {"written": " Mary", "method": method, "max_steps": 20, "progress": False, "tolerance": 0.9}
    alone = lk.input_attribution(lm32, "To John and", **how)
    with torch.inference_mode():
        again = lk.input_attribution(lm32, "To John and", **how)
    np.testing.assert_allclose(again.values, alone.values, atol=1e-4)


def test_what_is_of_the_wrong_type_is_said(lm32: lk.LanguageModel) -> None:
    for how, says in (({"written": 5}, "written must be a text or a list of token ids"), ({"by": None}, "by must be")):
        with pytest.raises(TypeError, match=says):
            lk.input_attribution(lm32, PROMPT, **{"written": " Mary", "progress": False, **how})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"takes what lk\.input_attribution gives; got str"):
        lk.deletion("x")  # type: ignore[arg-type]
    one = lk.input_attribution(lm32, "To John", written=" Mary", progress=False)
    with pytest.raises(ValueError, match="points must be a whole number, at least 1"):
        lk.deletion(one, points=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be a whole number, at least 0"):
        lk.deletion(one, seed=-1)
