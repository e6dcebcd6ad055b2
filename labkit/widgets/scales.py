"""Colour scales that people with any colour vision can read, for light and dark pages.

A scale is a list of stops from low to high. One hue that gains strength for amounts; blue to orange through the page's
own colour where zero means nothing. The browser and the saved snapshots draw from these same tables.
"""

from __future__ import annotations

from typing import Literal

Theme = Literal["light", "dark"]

SCALES: dict[str, dict[str, list[str]]] = {
    # Amounts: attention, norms. The low end is the page itself.
    "amount": {
        "light": ["#ffffff", "#e3eef9", "#b5d4ed", "#6caed6", "#2f7fbc", "#0f559c", "#08306b"],
        "dark": ["#111418", "#142a41", "#1a4568", "#246496", "#3d8ac6", "#79b8ea", "#d5ebff"],
    },
    # Probability of a token that was chosen: certain is plain, a surprise is warm.
    "surprise": {
        "light": ["#b34700", "#e0701d", "#f79a4b", "#fdc38d", "#fee2c6", "#fff3e6", "#ffffff"],
        "dark": ["#ffb978", "#ea8d3c", "#bd6a20", "#884914", "#5a3212", "#332012", "#111418"],
    },
    # Effects: orange below the centre, blue above it.
    "effect": {
        "light": [
            "#7f3b08", "#b35806", "#e08214", "#fdb863", "#fee0b6", "#f8f8f7",
            "#d1e5f4", "#92c5e8", "#4393cf", "#2166ac", "#08306b",
        ],
        "dark": [
            "#ffdcb0", "#f7ab5c", "#cf7a26", "#8a5218", "#452b15", "#14171b",
            "#15314c", "#1e5687", "#3384c8", "#72b6ec", "#d2eaff",
        ],
    },
}  # fmt: skip


def shade(value: float, low: float, high: float, *, centre: float | None = None) -> float:
    """Where a value lies on its scale, 0 to 1; with a centre, the longer side sets the scale of both."""
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
    return min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))


def colour(scale: str, place: float, *, theme: Theme = "light") -> tuple[int, int, int]:
    """The colour at a place from 0 (low) to 1 (high), as red, green, blue."""
    stops = SCALES[scale][theme]
    left = min(int(place * (len(stops) - 1)), len(stops) - 2)
    part = place * (len(stops) - 1) - left
    pair = [[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in stops[left : left + 2]]
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(*pair, strict=True))
    return red, green, blue


def ink(rgb: tuple[int, int, int]) -> str:
    """Black or white, whichever is easier to read on this colour."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return "#101418" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 else "#ffffff"
