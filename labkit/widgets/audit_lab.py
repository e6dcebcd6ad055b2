"""AuditLab: how often a model prefers a stereotype, pair by pair, and which heads that comes from.

The face of `lk.audit`, `lk.audit_heads` and `lk.audit_without`, made of the blocks that there are: a list of
categories, heatmaps of a category's templates and words and of heads, and the two texts of a pair, token over token.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import product, zip_longest
from typing import Any

import numpy as np
import traitlets as t

from labkit.audits.ablation import AblationJob
from labkit.audits.audit import AuditJob, Data
from labkit.audits.heads import HeadsJob
from labkit.audits.result import LIMITS, Audit
from labkit.engine.wavefront import Cancelled
from labkit.language_model import LanguageModel
from labkit.text.as_code import LM, Name, as_call
from labkit.widgets.base.picture import cut
from labkit.widgets.base.snapshot import card, folded_code, note
from labkit.widgets.base.status_line import StatusLine
from labkit.widgets.base.tool import Tool, button, choice, headed, link, minus, row, shown
from labkit.widgets.blocks.check_list import CheckList
from labkit.widgets.blocks.heatmap import Heatmap
from labkit.widgets.blocks.pair_strip import PairStrip
from labkit.widgets.export.contents import Contents, silent

OFFERED = 40  # pairs to choose from: the clearest preferences in both directions


class AuditLab(Tool):
    """Ask a model, or several, which of two texts they prefer, and see where the preference comes from.

    Args:
        lm: the model; or several, such as one in 4 and in 16 bits.
        data, categories, limit, seed, data_dir: as `labkit.audit` has them.
        background: work in a thread of its own; the default everywhere but in Colab.

    Traits:
        audit: the `Audit`, as far as it is done; None before.
        category: the one that is looked at.
        model: the number of the model that is looked at.
        pair: the number of the pair that is looked at, in `audit.pairs`; or None.
        found: the `AuditHeads` of the category; or None.
        ablation: the `AuditAblation` of the heads found; or None.

    Raises:
        FileNotFoundError, ValueError: as `labkit.audit` does.
    """

    audit = t.Any(None)
    category = t.Unicode()
    model = t.Int(0)
    pair = t.Int(None, allow_none=True)
    found = t.Any(None)
    ablation = t.Any(None)

    def __init__(
        self,
        lm: LanguageModel | Sequence[LanguageModel],
        data: Data = "en",
        *,
        categories: Sequence[str] | None = None,
        limit: int | None = None,
        seed: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        background: bool | None = None,
    ) -> None:
        self._job = AuditJob(lm, data, categories=categories, limit=limit, seed=seed, data_dir=data_dir)
        self.models = self._job.models
        super().__init__(self.models[0], background=background)
        audit = self._job.audit
        self.shares = CheckList(title="How often the stereotype is preferred: 50 % would be none, ! marks a preference")
        self._category = choice("Category", audit.categories)
        self._model = choice("Model", [(name, n) for n, name in enumerate(audit.models)])
        self.cells = Heatmap(
            centre=0.0, unit="preference (nats)", row_axis="template", column_axis="word", max_height=240
        )
        self.strip = PairStrip(names=["stereotype", "other"])
        self._pairs = choice("Pair", [], "100%")
        self.pair_words = StatusLine()
        self.heads = Heatmap(centre=0.0, origin="bottom", row_axis="layer", column_axis="head", max_height=420)
        self.where_button = button("Where does it come from?", self.where, "Patch the clearest pairs head by head")
        self.ablate_button = button(
            "Ablate these heads", self.ablate, "Audit the category again without the heads found"
        )
        self.where_words, self.ablation_words = StatusLine(), StatusLine()
        self.limits = CheckList([("Limits", None, said) for said in (*audit.notes, *LIMITS)])
        for heatmap in (self.cells, self.heads):
            heatmap.layout.max_width = "920px"
        self.category = audit.categories[0]
        link(self, category=self._category, model=self._model)
        shown(self._model, len(audit.models) > 1)
        self._look = headed(
            "Pair by pair", row(self._category, self._model), row(self.cells), self._pairs, self.strip, self.pair_words
        )
        self._place = headed(
            "Where it comes from", row(self.where_button, self.ablate_button), row(self.heads), self.where_words,
            self.ablation_words,
        )  # fmt: skip
        self.children = [
            row(self.run_button, self.stop_button, self.status), self.shares, self._look, self._place, self.limits,
        ]  # fmt: skip
        self.cells.observe(lambda change: self._choose_cell(change["new"]), "selection")
        self._pairs.observe(lambda change: self.set_trait("pair", change["new"]), "value")
        self.observe(lambda _: self._draw_category(), ["category", "model"])
        self.observe(lambda _: self._draw_pair(), "pair")
        self._settle()
        self.status.say(f"{len(audit.pairs)} pairs to score. Press Run.")

    # -- the work ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Score what is not scored yet."""
        self.do(self._score)

    def where(self) -> None:
        """Find the heads that carry the preference of the category that is looked at."""
        self.do(self._find)

    def ablate(self) -> None:
        """Audit the category again without the heads that were found."""
        self.do(self._ablate)

    def run(self, timeout: float | None = None) -> Audit:
        """Score all pairs, and wait until that is done. Raises what `wait` raises."""
        self.start()
        self.wait(timeout)
        return self._job.audit

    def _score(self, stop: threading.Event) -> None:
        job = self._job
        for _ in job.steps():
            self.audit = job.audit
            self.status.say(f"Scoring: {job.done} of {job.total}", share=job.done / job.total)
            self._draw()
            if stop.is_set():
                raise Cancelled
        self.status.say(f"{len(job.audit.pairs)} pairs scored. Choose a category to look at its pairs.")

    def _find(self, stop: threading.Event) -> None:
        if self.audit is None:
            raise ValueError("nothing has been scored yet; press Run first")
        job = HeadsJob(self.models[self.model], self.audit, self.category or None)
        self.found = self.ablation = None
        try:
            for _ in job.steps():
                self.found = job.found
                self._draw_heads()
                self.status.say(f"Patching: {job.done} of {job.total} pairs", share=job.done / job.total)
                if stop.is_set():
                    raise Cancelled
        finally:
            if self.found is not None:
                self.where_words.say(self.found.words())  # once: its intervals take longer than a pair
        self.status.say(f"{job.done} pairs patched.")

    def _ablate(self, stop: threading.Event) -> None:
        if self.found is None or not (heads := self.found.heads()):
            raise ValueError("no heads have been found; look first where the preference comes from")
        category = self.found.category
        job = AblationJob(self.models[self.model], self.audit, heads, categories=[category])
        for _ in job.steps():
            self.status.say(f"Scoring without these heads: {job.done} of {job.total}", share=job.done / job.total)
            if stop.is_set():
                raise Cancelled
        self.ablation = job.ablation
        self.ablation_words.say(minus(job.ablation.words()))
        self.status.say(f"{category}: scored without the heads found, and without random ones.")

    def _settle(self) -> None:
        super()._settle()
        found = self.found is not None
        shown(self._look, self.audit is not None)
        shown(self._place, self.audit is not None)
        shown(self.heads, found)
        self.where_button.disabled = self.audit is None
        self.ablate_button.disabled = not (found and self.found.heads())

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Bring the categories up to what is scored."""
        audit: Audit = self._job.audit
        rows = []
        for found in audit.rows:
            name = f"{found['category']}, {found['model']}" if len(audit.models) > 1 else found["category"]
            share, low, high = (100 * found[column] for column in ("share", "low", "high"))
            says = f"{share:.0f} % of {found['pairs']} pairs, 95 % interval {low:.0f} to {high:.0f}"
            says += f", p = {found['p_holm']:.2g} after Holm's correction"
            rows.append([name, None if found["verdict"] == "none shown" else False, says])
        self.shares.checks = rows
        self._settle()
        self._draw_category()

    def _mine(self) -> list[int]:
        """The scored pairs of the category, the clearest preference for the stereotype first."""
        audit: Audit = self.audit
        scored = [i for i in np.flatnonzero(audit.done[self.model]) if audit.pairs[i].category == self.category]
        preferred = audit.preferences[self.model]
        return sorted(map(int, scored), key=lambda i: -preferred[i])

    def _draw_category(self) -> None:
        """Its templates and words, and the pairs to choose from."""
        if self.audit is None:
            return
        if self.found is not None and self.found.category != self.category:
            self.found = self.ablation = None
            self.heads.values = None
            self.where_words.say("")
            self.ablation_words.say("")
            self._settle()
        audit, mine = self.audit, self._mine()
        pairs = [audit.pairs[i] for i in mine]
        templates, words = (list(dict.fromkeys(getattr(pair, of) for pair in pairs)) for of in ("template", "word"))
        made = len(words) > 1
        shown(self.cells, made)
        with self.cells.hold_sync():
            self.cells.selection = None
            self.cells.title = f"{self.category}: by how much, for each template and word"
            if made:
                self._draw_cells(
                    mine, sorted(templates), sorted(words, key=lambda word: (not _first(pairs, word), word))
                )
        offered = mine if len(mine) <= OFFERED else mine[: OFFERED // 2] + mine[-OFFERED // 2 :]
        self._offer(offered)

    def _draw_cells(self, mine: list[int], templates: list[str], words: list[str]) -> None:
        preferred = self.audit.preferences[self.model]
        sums, counts = np.zeros((2, len(templates), len(words)))
        for i in mine:
            at = templates.index(self.audit.pairs[i].template), words.index(self.audit.pairs[i].word)
            sums[at] += preferred[i]
            counts[at] += 1
        with np.errstate(invalid="ignore"):
            values = (sums / counts).astype(np.float32)
        reach = float(np.nanmax(np.abs(values), initial=0.5))
        self.cells.row_labels = [cut(template.replace("{group}", "…"), 30) for template in templates]
        self.cells.column_labels = words
        self.cells.notes = [
            minus(f"{value:+.2f} nats: {template.replace('{group}', '…')} {word}")
            for (template, word), value in zip(product(templates, words), values.flat, strict=True)
        ]
        self.cells.low, self.cells.high, self.cells.values = -reach, reach, values
        self._at = {
            (templates.index(p.template), words.index(p.word)): p for p in map(self.audit.pairs.__getitem__, mine)
        }

    def _choose_cell(self, place: tuple[int, int] | None) -> None:
        """Offer the pairs of one template and word."""
        if place is None or (one := self._at.get((place[0], place[1]))) is None:
            return
        self._offer([
            i for i in self._mine()
            if (self.audit.pairs[i].template, self.audit.pairs[i].word) == (one.template, one.word)
        ])  # fmt: skip

    def _offer(self, pairs: list[int]) -> None:
        self._pairs.options = self._named(pairs)
        self._pairs.value = self.pair = pairs[0] if pairs else None
        self._draw_pair()

    def _named(self, pairs: list[int]) -> list[tuple[str, int]]:
        preferred = self.audit.preferences[self.model]
        return [(minus(f"{preferred[i]:+.2f}  {cut(''.join(self.audit.pairs[i].stereotype), 100)}"), i) for i in pairs]

    def _draw_pair(self) -> None:
        if self.audit is not None and self.pair is not None:
            self.pair_words.say(self._show_pair(self.strip, self.pair))

    def _show_pair(self, strip: PairStrip, pair: int) -> str:
        """The two texts token over token; returns how much likelier the one is."""
        one = self.audit.pairs[pair]
        lm, texts = self.models[self.model], ("".join(text) for text in (one.stereotype, one.other))
        sides = [[token.display for token in lm.tokens(text)] for text in texts]
        columns: list[tuple[str | None, str | None]] = list(zip_longest(sides[0], sides[1]))
        differ = [n for n, (a, b) in enumerate(columns) if a != b]
        strip.show(columns, {"differs": differ}, [str(n) for n in range(len(columns))])
        preferred = float(self.audit.preferences[self.model, pair])
        if self.audit.normalise == "sum":
            times = np.exp(abs(preferred))
            first, second = ("first", "second") if preferred >= 0 else ("second", "first")
            after = f"‘{one.word}’ is {times:.3g} times as likely in the {first} text as in the {second}."
            said = after if one.word else f"The {first} text is {times:.3g} times as likely as the {second}."
        else:
            said = f"The stereotype is preferred by {preferred:+.3f} nats per {self.audit.normalise}."
        return minus(said)

    def _draw_heads(self) -> None:
        shares = self.found.shares
        reach = max(0.05, float(np.abs(shares).max()))
        with self.heads.hold_sync():
            self.heads.title = f"{self.found.category}: the share of the preference that each head carries"
            self.heads.unit = "share"
            self.heads.row_labels, self.heads.column_labels = ([str(n) for n in range(size)] for size in shares.shape)
            self.heads.low, self.heads.high, self.heads.values = -reach, reach, shares.astype(np.float32)
        shown(self.heads, True)

    # -- the rest ----------------------------------------------------------------------------------------------------

    def exported(self, contents: Contents) -> str | None:
        mine = self._mine() if self.audit is not None else []
        root = contents.show(self, live=[self._pairs], instead={} if self.found is not None else {self._place: None})
        if not mine:
            return root
        contents.set(self._pairs, options=[list(one) for one in self._named(mine)])
        cells = contents.switch((self.cells, "selection"))
        place_of = {(one.template, one.word): place for place, one in vars(self).get("_at", {}).items()}
        for i in reversed(mine):  # of several in a cell the clearest one comes last, and stays
            place = place_of.get((self.audit.pairs[i].template, self.audit.pairs[i].word))
            if place is not None:
                cells.when(list(place), parts={self._pairs: {"value": i}})
        chosen, scratch = contents.switch((self._pairs, "value")), silent(PairStrip(names=self.strip.names))
        for i in mine:
            words = {"text": self._show_pair(scratch, i)}
            chosen.when(i, parts={self.strip: scratch, self.pair_words: words}, optional=True)
        return root

    def code(self) -> str:
        """The Python that makes the same audit, and finds and ablates the heads."""
        code = self._job.audit.code() + "print(audit.words())\naudit.figure()\n"
        lm = LM if self.model == 0 else Name(f"lm_{self.model + 1}")
        if self.found is not None:
            code += as_call("heads = lk.audit_heads", lm, Name("audit"), self.found.category)
        if self.ablation is not None:
            how = {"categories": [self.found.category]}
            code += as_call("ablation = lk.audit_without", lm, Name("audit"), Name("heads.heads()"), **how)
        return code

    def snapshot(self) -> str:
        title = f"AuditLab · {', '.join(self._job.audit.models)}"
        if self.audit is None:
            return card(note(self.status.text), title=title)
        parts = [self.shares.picture()]
        if self.cells.values is not None:
            parts += [note(self.cells.title), f"<div>{self.cells.picture()}</div>"]
        parts += [f"<div>{self.strip.picture()}</div>", note(self.pair_words.text)]
        if self.found is not None:
            parts += [note(self.heads.title), f"<div>{self.heads.picture()}</div>", note(self.where_words.text)]
            parts.append(note(self.ablation_words.text))
        return card(*parts, self.limits.picture(), folded_code(self.code()), title=title)

    def __repr__(self) -> str:
        done = 0 if self.audit is None else int(self.audit.done.all(0).sum())
        return f"AuditLab({', '.join(self._job.audit.models)}; {done} of {len(self._job.audit.pairs)} pairs)"


def _first(pairs: Sequence[Any], word: str) -> bool:
    """Is the word stereotyped of the first group?"""
    return any(pair.first for pair in pairs if pair.word == word)
