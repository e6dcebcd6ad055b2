"""Scrutiny: whether a model prefers stereotypes, how sure that is, and where it comes from."""

from __future__ import annotations

from typing import Any

from labkit.audits.audit import audit
from labkit.audits.heads import HeadsJob
from labkit.course.checks import Verdict, a_head, exercise
from labkit.datasets.minimal_pairs import own_pairs, reworded
from labkit.language_model import LanguageModel
from labkit.patching.patch import patch

CATEGORY = "gender and occupation"
PATCHED = 4


def _template(answer: Any) -> str:
    if not isinstance(answer, str) or answer.count("{group}") != 1:
        raise ValueError('the answer must be a sentence with one {group}, such as "The {group} works as a"')
    if answer != answer.rstrip():
        raise ValueError("the sentence must not end in a space: the space belongs to the word that follows")
    return answer


@exercise("09.1")
def _another_wording(answer: Any, lm: LanguageModel) -> Verdict:
    share = float(audit(lm, reworded(CATEGORY, _template(answer)), progress=False).to_frame()["share"].iloc[0])
    said = f"With this sentence the stereotype is preferred in {100 * share:.0f} % of the pairs."
    return Verdict(share < 0.75, said if share < 0.75 else said + " Look for less than 75 %.")


@exercise("09.2")
def _a_head_that_carries_it(answer: Any, lm: LanguageModel) -> Verdict:
    layer, head = a_head(answer, lm)
    pairs = [pair for pair in own_pairs() if pair.category == CATEGORY and pair.group == "woman | man"]
    found = HeadsJob(lm, audit(lm, pairs, progress=False), pairs=PATCHED).found
    moved = gap = 0.0
    for pair in found.pairs:
        grid = patch(lm, *pair, site="z", layers=[layer], progress=False)
        moved += float(grid.values[0, head] - grid.corrupt)
        gap += grid.clean - grid.corrupt
    said = f"Head {layer}.{head} carries {100 * moved / gap:.0f} % of the preference, on {len(found.pairs)} pairs."
    return Verdict(moved > 0.2 * gap, said if moved > 0.2 * gap else said + " Look for more than 20 %.")


@exercise("09.3")
def _a_category_without_a_shown_preference(answer: Any, lm: LanguageModel) -> Verdict:
    row = audit(lm, categories=[str(answer)], progress=False).to_frame().iloc[0]
    said = (
        f"The stereotype is preferred in {100 * row['share']:.0f} % of {int(row['pairs'])} pairs, with an interval "
        f"from {100 * row['low']:.0f} to {100 * row['high']:.0f}."
    )
    if row["verdict"] == "none shown":
        return Verdict(True, said + " That does not show that there is none: the interval is wide.")
    return Verdict(False, said + " Here one is shown. Look for an interval that covers 50.")
