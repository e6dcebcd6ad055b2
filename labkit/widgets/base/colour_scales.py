"""Colour scales that people with any colour vision can read, for light and dark pages.

A scale is a list of stops from low to high. One hue that gains strength for amounts; blue to orange through the page's
own colour where zero means no effect. The browser and the saved snapshots draw from these same tables.
"""

from __future__ import annotations

from typing import Literal

Theme = Literal["light", "dark"]

SCALES: dict[str, dict[str, list[str]]] = {
    # Amounts: attention, norms. The low end is the page itself.
    "amount": {
        "light": ["#ffffff", "#e3eef9", "#b5d4ed", "#6caed6", "#2f7fbc", "#0f559c", "#08306b"],
        "dark": ["#111418", "#142a41", "#194264", "#1f5f94", "#2f80c4", "#58a6e8", "#a5d5ff"],
    },
    # Probability of a token that was chosen: certain is plain, a surprise is warm.
    "surprise": {
        "light": ["#ef8a45", "#f5a469", "#f9bd8f", "#fcd5b5", "#fee8d5", "#fff5ec", "#ffffff"],
        "dark": ["#b5652a", "#935323", "#73421d", "#563319", "#3b2615", "#251b14", "#111418"],
    },
    # Effects: orange below the centre, blue above it.
    "effect": {
        "light": [
            "#7f3b08", "#b35806", "#e08214", "#fdb863", "#fee0b6", "#f8f8f7",
            "#d1e5f4", "#92c5e8", "#4393cf", "#2166ac", "#08306b",
        ],
        "dark": [
            "#ffc27a", "#e8953f", "#bb6c1f", "#804a17", "#432a15", "#14171b",
            "#15314c", "#1b4f80", "#2874ba", "#4f9fe3", "#96cdff",
        ],
    },
    # Places in an order, where the first ones count: ranks. The low end is strong.
    "order": {
        "light": ["#08306b", "#0f559c", "#2f7fbc", "#6caed6", "#b5d4ed", "#e3eef9", "#ffffff"],
        "dark": ["#a5d5ff", "#58a6e8", "#2f80c4", "#1f5f94", "#194264", "#142a41", "#111418"],
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
    return "#000000" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "#ffffff"
