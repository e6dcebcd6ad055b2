"""What a scan found, and what follows from it."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from labkit.models.scan.rules import SEVERITIES, Finding, Severity, inert

if TYPE_CHECKING:
    import pandas as pd

_MOST = 10  # findings of one kind in the text; the table has all
_COLOURS = {"danger": "#b3261e", "warning": "#8a5a00", "note": "#5f6368"}


@dataclass(frozen=True)
class Scan:
    """What `lk.scan` found in a checkpoint.

    Attributes:
        name: what was scanned.
        place: `folder`, `file`, `hub cache` or `hub`.
        revision: the commit on the hub.
        files: how many files were looked at.
        bytes: their sizes together.
        findings: the worst first.
    """

    name: str
    place: str
    revision: str | None
    files: int
    bytes: int
    findings: tuple[Finding, ...]

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def safe(self) -> bool:
        """Was all looked at, and no danger found?"""
        return not self.of("danger") and not self.unread

    @property
    def unread(self) -> tuple[Finding, ...]:
        """Findings that say that something could not be looked at."""
        return tuple(finding for finding in self.findings if finding.rule == "not-looked-at")

    @property
    def verdict(self) -> str:
        """Is it safe to open? In a sentence or two, with the reasons."""
        name = inert(self.name)
        if bad := self.of("danger"):
            return f"Do not open {name}: {_some(bad)}."
        if self.unread:
            return f"Cannot tell about {name}: {_some(self.unread)}. No danger was found in the rest."
        files = f"{self.files:,} file{'s' * (self.files != 1)}"
        if odd := self.of("warning"):
            return f"No danger was found in the {files} of {name}. Look at this first: {_some(odd)}."
        return f"No danger was found in the {files} of {name}."

    def to_frame(self) -> pd.DataFrame:
        """A row per finding: severity, file, what, why, advice, rule. Names of files are made fit to show."""
        import pandas as pd

        rows = [{**asdict(finding), "file": inert(finding.file)} for finding in self.findings]
        return pd.DataFrame(rows, columns=["severity", "file", "what", "why", "advice", "rule"])

    def to_json(self) -> str:
        """The scan as JSON in ASCII, for other programs; `file` is the exact name there."""
        return json.dumps({**asdict(self), "safe": self.safe, "verdict": self.verdict}, indent=2)

    def __repr__(self) -> str:
        alike: dict[str, list[Finding]] = {}
        for finding in self.findings:
            alike.setdefault(finding.rule, []).append(finding)
        lines = [self.verdict]
        for severity, findings in ((findings[0].severity, findings) for findings in alike.values()):
            lines.append("")
            lines += [f"{severity}: {finding}" for finding in findings[:_MOST]]
            if len(findings) > _MOST:
                lines.append(f"{severity}: and {len(findings) - _MOST:,} more of this kind")
            lines.append(f"    {findings[0].why}. {findings[0].advice}.")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same as a table; every text of the checkpoint is escaped."""
        rows = "".join(
            f'<tr><td style="color:{_COLOURS[finding.severity]};font-weight:600">{finding.severity}</td>'
            + "".join(
                f'<td style="text-align:left">{html.escape(text)}</td>'
                for text in (inert(finding.file), finding.what, f"{finding.why}. {finding.advice}.")
            )
            + "</tr>"
            for finding in self.findings
        )
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in ("", "file", "what", "why; what to do"))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if self.findings else ""
        return f"<div><p><b>{html.escape(self.verdict)}</b></p>{table}</div>"


def _some(findings: tuple[Finding, ...], most: int = 3) -> str:
    texts = [str(finding) for finding in findings]
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings, the worst first, each once, in the order of their files."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda one: (SEVERITIES.index(one.severity), one.file)))
