"""Prompting: probabilities and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labkit.course.checks import Verdict, exercise

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel


@exercise("01.1")
def _paris(answer: Any, lm: LanguageModel) -> Verdict:
    if "paris" in str(answer).lower():
        return Verdict(False, "Your prompt has the answer in it. Make the model find it.")
    top = lm.tokenizer.decode(int(lm.run(answer).logits[0, -1].argmax()))
    if top == " Paris":
        return Verdict(True, f"After {answer!r} the likeliest next token is ' Paris'.")
    return Verdict(False, f"After {answer!r} the likeliest next token is {top!r}. A prompt must not end in a space.")


@exercise("01.2")
def _costly_text(answer: Any, lm: LanguageModel) -> Verdict:
    tokens = lm.tokens(answer)
    if len(answer) > 4:
        return Verdict(False, f"That is {len(answer)} characters; four at most.")
    if len(tokens) >= 6:
        return Verdict(True, f"{len(answer)} characters, {len(tokens)} tokens. Rare characters are spelt out in bytes.")
    return Verdict(
        False, f"That is {len(tokens)} tokens. What is rare in English web pages costs more: try other scripts."
    )
