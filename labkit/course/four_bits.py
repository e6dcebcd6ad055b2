"""What 4 bits cost: how much, where, and what of one's findings is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from labkit.course.checks import CLEAN, Verdict, a_whole_number, exercise, once, parts
from labkit.language_model import LanguageModel, load
from labkit.patching.patch import patch
from labkit.precision.passage import PASSAGE

TEXT = PASSAGE[:700]
"""The beginning of the built-in passage, enough to compare settings on."""
SETTINGS = ("bits", "quant_type", "double_quant", "keep")


def costs(lm: LanguageModel, settings: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """KL from the 32-bit model, in nats per token, and megabytes: with these settings of `lk.load`, and of `lm`."""
    if settings.get("bits", 4) > 8:
        raise ValueError("that is not fewer bits: use bits=4 or bits=8")
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return *_with(lm, tuple(sorted(kept.items()))), *_usual(lm)


@once
def _with(lm: LanguageModel, settings: tuple[tuple[str, Any], ...]) -> tuple[float, float]:
    return _cost(lm, load(**dict(settings), progress=False))


def _cost(lm: LanguageModel, one: LanguageModel) -> tuple[float, float]:
    target, own = _target(lm), one.run(TEXT).logits[0].float().log_softmax(-1)
    return float((target.exp() * (target - own)).sum(-1).mean()), one.memory().total / 1e6


@once
def _target(lm: LanguageModel) -> torch.Tensor:
    """What the full model says of the text, as log probabilities (position, vocab)."""
    return load(bits=32, progress=False).run(TEXT).logits[0].log_softmax(-1)


@once
def _usual(lm: LanguageModel) -> tuple[float, float]:
    return _cost(lm, lm)


@once
def _moved(lm: LanguageModel) -> dict[tuple[str, int], float]:
    """How far each part of the full model moves the logit difference, summed over the positions."""
    source = load(bits=32, progress=False)
    moved: dict[tuple[str, int], float] = {}
    for kind in ("attn_out", "mlp_out"):
        grid = patch(lm, CLEAN, answer=" Mary", foil=" John", source=source, site=kind, progress=False)
        sums = (grid.values - grid.corrupt).sum(1)
        moved |= {(kind, n): abs(float(x)) for n, x in zip(grid.index[0], sums, strict=True)}
    return moved


@exercise("07.1", 'settings of lk.load, such as {"bits": 4, "quant_type": "fp4"}')
def _closer_to_the_full_model(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, dict):
        raise TypeError("that is no dict")
    if unknown := answer.keys() - SETTINGS:
        raise ValueError(f"lk.load has no setting {min(map(str, unknown))!r} for this; it has {', '.join(SETTINGS)}")
    kl, size, usual, _ = costs(lm, answer)
    said = f"KL is {kl:.3f} nats per token (NF4: {usual:.3f}), and the weights take {size:.0f} MB."
    if size > 200:
        return Verdict(False, said + " That is more than 200 MB.")
    return Verdict(kl < usual / 2, said if kl < usual / 2 else said + " Look for less than half of NF4's KL.")


@exercise("07.2", 'a site and a layer, such as ("attn_out", 3)')
def _the_part_that_moves_most(answer: Any, lm: LanguageModel) -> Verdict:
    (site, layer), moved = _part(answer, lm), _moved(lm)
    own, most = moved[site, layer], max(moved.values())
    said = f"{site} of layer {layer} moves the logit difference by {own:.2f} in all."
    enough = own > 0.7 * most
    return Verdict(enough, said if enough else said + f" One moves it by more than {0.7 * most:.1f}.")


def _part(answer: Any, lm: LanguageModel) -> tuple[str, int]:
    site, number = answer.split(".") if isinstance(answer, str) else parts(answer, 2)
    if number in ("attn_out", "mlp_out"):
        raise ValueError(f"the site comes first: ({number!r}, {site})")
    layer = int(number) if isinstance(answer, str) else a_whole_number(number)
    if site not in ("attn_out", "mlp_out") or not 0 <= layer < lm.n_layers:
        raise ValueError(f"the site is attn_out or mlp_out, and layers go from 0 to {lm.n_layers - 1}")
    return str(site), layer


@exercise("07.3", 'a list of names, such as ["o_proj.23"]')
def _ten_megabytes(answer: Any, lm: LanguageModel) -> Verdict:
    names = [answer] if isinstance(answer, str) else [str(name) for name in answer]
    kl, size, usual, before = costs(lm, {"bits": 4, "keep": names})
    said = f"That costs {size - before:.1f} MB more, and KL goes from {usual:.3f} to {kl:.3f} nats per token."
    if size - before > 10:
        return Verdict(False, said + " Stay below 10 MB.")
    enough = kl < 0.95 * usual
    return Verdict(enough, said if enough else said + " Look for 5 % less or better.")
