"""Write docs/reference.md: sites, metrics, sources, findings of scans, benchmarks, files, openness, from their lists.

python tools/reference.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from labkit.activations import metrics as metric_kinds
from labkit.activations import site_kinds
from labkit.datasets import items, published
from labkit.datasets.stereotypes import STEREOTYPES
from labkit.models import openness
from labkit.models.scan import rules
from labkit.models.sources import kinds as model_sources
from labkit.results import file

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def reference() -> str:
    """The page, as it should be now."""
    sites = (
        (
            f"`{kind.name}`",
            kind.what,
            f"`{kind.shape}`",
            ", ".join(" × ".join(f"{axis}s" for axis in over) for over in kind.over) or "not patched",
            " and ".join(word for word, yes in (("sender", kind.sent), ("receiver", kind.received)) if yes),
        )
        for kind in site_kinds.KINDS.values()
    )
    metrics = (
        (f"`{kind.name}`", kind.label, kind.unit, ", ".join(kind.needs), "" if kind.has_gradient else "no")
        for kind in metric_kinds.METRICS.values()
    )
    sources = ((source.name, source.written) for source in model_sources.SOURCES)
    severities = sorted(rules.RULES.values(), key=lambda rule: rules.SEVERITIES.index(rule.severity))
    scanned = ((f"`{rule.name}`", rule.severity, rule.why, rule.advice) for rule in severities)
    tables = (
        (
            ", ".join(f"`{column}`" for column in kind.columns),
            ", ".join(f"`{label}`" for label in kind.labels),
            {"": "nothing", " ": "a space", None: "a space, where there is none"}[kind.delimiter],
            kind.measure,
        )
        for kind in items.FORMATS
    )
    sets = (
        (
            f"`{name}`",
            one.title,
            " and ".join([*["`lk.benchmark`"] * (name in published.NAMES), *["`lk.audit`"] * (name in STEREOTYPES)]),
            f"`{one.files[0]}`",
            one.repository,
            one.licence,
        )
        for name, one in published.SETS.items()
    )
    files = ((kind.words, f"`{kind.opener}`", str(kind.newest)) for kind in file.KINDS.values())
    asked = {None: "none: optional"} | {level: words.split(",")[0] for level, words in openness.CLASSES.items()}
    components = ((name, asked[level]) for name, level in openness.COMPONENTS.items())
    return "\n".join(
        [
            "# Reference\n",
            "Written by `python tools/reference.py` from labkit's own lists.\n",
            "## Sites\n",
            "A site is written `kind.layer`, `kind.layer.head`, with `@` one position: `z.5.3@-1`. `lm.sites()` says",
            "which of them a model has, and why it lacks the others.\n",
            table(("site", "what it is", "shape of one layer", "patched over", "paths"), sites),
            "## Metrics\n",
            "`metric=` takes one of these names, or a function of the logits; `lk.metric` gives a function a name.\n",
            table(("metric", "in figures", "unit", "needs", "gradient"), metrics),
            "## Where models come from\n",
            table(("source", "`lk.load(...)` takes"), sources),
            "## What a scan finds\n",
            "`lk.scan(name)` and `labkit scan NAME`. A danger: do not open it. A warning: look at it first.\n",
            table(("finding", "severity", "why it matters", "what to do"), scanned),
            "## Benchmarks\n",
            f"`lk.benchmark(lm, data)` takes a file ({', '.join(items.READERS)}), a folder or a data frame",
            "with the columns of one of these, or a name: `mini`, labkit's own pairs, or a set you have a copy of.\n",
            table(("columns", "grouped by", "between prompt and choice", "measure"), tables),
            table(("name", "set", "read by", "a copy has", "from the makers' repository", "licence"), sets),
            "## Files\n",
            table(("a file holds", "opened by", "format"), files),
            "## How open a model is\n",
            "`lk.card(name)` says which of these components of the Model Openness Framework (White et al. 2024) are",
            "known to be released, and computes the class, which asks for its own components and those of the classes",
            "below it.\n",
            table(("component", "asked for by"), components),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(reference())
