"""Scrutiny: whether a model prefers stereotypes, where that comes from, and whether a checkpoint is safe to open."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.audits.audit import audit
from labkit.audits.heads import HeadsJob
from labkit.course.checks import Verdict, a_head, exercise, once
from labkit.datasets.minimal_pairs import own_pairs, reworded
from labkit.datasets.tasks import PromptPair
from labkit.language_model import LanguageModel
from labkit.models.scan.templates import look
from labkit.patching.patch import patch

CATEGORY = "gender and occupation"
PATCHED = 4
CHAT = [{"role": "user", "content": "Good morning."}, {"role": "assistant", "content": "A fine day to you."}]


def _template(answer: Any) -> str:
    if not isinstance(answer, str) or answer.count("{group}") != 1:
        raise ValueError('the answer must be a sentence with one {group}, such as "The {group} works as a"')
    if answer != answer.rstrip():
        raise ValueError("the sentence must not end in a space: the space belongs to the word that follows")
    return answer


@exercise("09.1", 'a sentence with one {group}, such as "The {group} works as a"')
def _another_wording(answer: Any, lm: LanguageModel) -> Verdict:
    share = float(audit(lm, reworded(CATEGORY, _template(answer)), progress=False).to_frame()["share"].iloc[0])
    said = f"With this sentence the stereotype is preferred in {100 * share:.0f} % of the pairs."
    return Verdict(share < 0.75, said if share < 0.75 else said + " Look for less than 75 %.")


@exercise("09.2", "a layer and a head, such as (3, 1)")
def _a_head_that_carries_it(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    share = float(_carried(lm, layer)[head])
    said = f"Head {layer}.{head} carries {100 * share:.0f} % of the preference, on {PATCHED} pairs."
    return Verdict(share > 0.2, said if share > 0.2 else said + " Look for more than 20 %.")


@once
def _clearest(lm: LanguageModel) -> list[PromptPair]:
    """The pairs of contexts and words with the clearest preference."""
    pairs = [pair for pair in own_pairs() if pair.category == CATEGORY and pair.group == "woman | man"]
    return list(HeadsJob(lm, audit(lm, pairs, progress=False), pairs=PATCHED).found.pairs)


@once
def _carried(lm: LanguageModel, layer: int) -> np.ndarray:
    """The share of the preference that each head of a layer carries."""
    grids = [patch(lm, *pair, site="z", layers=[layer], progress=False) for pair in _clearest(lm)]
    return sum(grid.values[0] - grid.corrupt for grid in grids) / sum(grid.clean - grid.corrupt for grid in grids)


@exercise("09.3", 'the name of a category, such as "names"')
def _a_category_without_a_shown_preference(answer: Any, lm: LanguageModel) -> Verdict:
    row = audit(lm, categories=[str(answer)], progress=False).to_frame().iloc[0]
    said = (
        f"The stereotype is preferred in {100 * row['share']:.0f} % of {int(row['pairs'])} pairs, with an interval "
        f"from {100 * row['low']:.0f} to {100 * row['high']:.0f}."
    )
    if row["verdict"] == "none shown":
        return Verdict(True, said + " That does not show that there is none: the interval is wide.")
    return Verdict(False, said + " Here one is shown. Look for an interval that covers 50.")


@exercise("09.4", 'a template, such as "{{ messages[0].content }}"')
def _a_template_without_danger(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, str):
        raise ValueError('the answer must be a template, such as "{{ messages[0].content }}"')
    found = look(answer, "tokenizer_config.json", "chat_template")
    if bad := [one for one in found if one.severity == "danger"]:  # and is not rendered
        return Verdict(False, f"The scan says {bad[0].what}. {bad[0].why}.")
    try:
        shown = str(lm.tokenizer.apply_chat_template(CHAT, chat_template=answer, tokenize=False))
    except Exception as error:  # the template's own faults, whatever they are
        return Verdict(False, f"The template fails: {error}.")
    for turn in CHAT:
        if turn["content"] not in shown:
            return Verdict(False, f"{turn['content']!r} of the {turn['role']} is not in what it writes: {shown!r:.80}.")
    return Verdict(True, f"It writes {shown!r:.80}, and the scan found no danger in it.")
