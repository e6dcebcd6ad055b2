"""Prompting: probabilities, texts and branches, tokens."""

from __future__ import annotations

import math
from typing import Any

from labkit.attribution.input_attribution import input_attribution
from labkit.course.checks import Verdict, a_whole_number, exercise, parts
from labkit.generation.score import score
from labkit.language_model import LanguageModel

BRANCHING = "Once upon a time"  # the prompt of exercise 01.3
KNOWN = "The capital of France is"  # of notebook 00


def _text(answer: Any) -> str:
    if not isinstance(answer, str):
        raise TypeError("that is no text")
    return answer


@exercise("01.1", 'a prompt, such as "The capital of Germany is"')
def _paris(answer: Any, lm: LanguageModel) -> Verdict:
    prompt = _text(answer)
    if "paris" in prompt.lower():
        return Verdict(False, "Your prompt contains the answer. Make the model find it.")
    if " ".join(prompt.lower().split()) == KNOWN.lower():
        return Verdict(False, "That is the prompt of the first notebook. Find another way to Paris.")
    top = lm.tokenizer.decode(int(lm.run(prompt).logits[0, -1].argmax()))
    said = f"After {prompt!r} the likeliest next token is {top!r}."
    if top == " Paris":
        return Verdict(True, said)
    return Verdict(False, said + (" End without a space: it belongs to the next token." if prompt[-1:] == " " else ""))


@exercise("01.2", "a text of at least ten words")
def _easy_text(answer: Any, lm: LanguageModel) -> Verdict:
    words = _text(answer).split()
    if len(words) < 10:
        return Verdict(False, f"That is {len(words)} words; use at least ten.")
    if len(set(words)) < 7:
        return Verdict(False, "Repeated words are easy for any model; use at least seven different ones.")
    scored = score(lm, answer)
    bits = -scored.logprob / math.log(2) / (len(scored.record) - 1)
    place, token = scored.surprises(1)[0]
    said = f"{bits:.1f} bits per token; the hardest is {token.token.text!r} at {place} with {token.surprisal:.0f}."
    return Verdict(bits < 2, said if bits < 2 else f"{said} Look for less than 2.")


@exercise("01.3", 'a place and a token, such as (0, " in")')
def _likelier_than_greedy(answer: Any, lm: LanguageModel) -> Verdict:
    place, token = parts(answer, 2)
    if isinstance(place, str) and not isinstance(token, str):
        return Verdict(False, f"The place comes first: ({token}, {place!r}).")
    tree = lm.tree(BRANCHING, max_new_tokens=10)
    branch = tree.branch("A", a_whole_number(place), token if isinstance(token, str) else a_whole_number(token))
    greedy, other = tree.root.logprob, branch.logprob
    said = f"Greedy has log-probability {greedy:.2f}, your branch {other:.2f}: {branch.text!r}."
    if branch.record.ids == tree.root.record.ids:
        return Verdict(False, "That is the greedy text itself. Choose another token.")
    return Verdict(other > greedy, said if other > greedy else said + " Look for one above the greedy text.")


@exercise("01.4", "a text of at most four characters")
def _costly_text(answer: Any, lm: LanguageModel) -> Verdict:
    tokens = lm.tokens(_text(answer))
    if len(answer) > 4:
        return Verdict(False, f"That is {len(answer)} characters; use at most four.")
    if len(tokens) >= 6:
        return Verdict(True, f"{len(answer)} characters, {len(tokens)} tokens. Rare characters are spelt out in bytes.")
    return Verdict(
        False, f"That is {len(tokens)} tokens. Text that is rare on English web pages costs more: try other scripts."
    )


@exercise("01.5", "a prompt of at least four words")
def _a_word_far_away(answer: Any, lm: LanguageModel) -> Verdict:
    words = _text(answer).split()
    if len(words) < 4:
        return Verdict(False, f"That is {len(words)} words; use at least four.")
    found = input_attribution(lm, str(answer), written=" are", foil=" is", by="word", progress=False)
    unit, value = found.strongest(1)[0]
    said = f"' are' is ahead of ' is' by {found.score:+.1f} nats; the word that matters most is {unit.text.strip()!r}."
    if found.score < 1:
        return Verdict(False, said + " Look for a lead of more than 1.")
    if unit.stop == len(found.tokens):
        return Verdict(False, said + " That is the last one. Put a word in the singular after it.")
    return Verdict(value > 0, said)
