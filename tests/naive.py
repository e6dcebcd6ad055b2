"""Grids without the fast engine: one whole forward per cell, and how near the engine has to come to it."""

import numpy as np
import torch
from pair import CLEAN, CORRUPT

import labkit as lk


def naive(lm, grid: lk.PatchGrid, cells: np.ndarray) -> np.ndarray:
    """One whole forward a cell: write what the source run has at the site, read the logit difference."""
    source, base = (CLEAN, CORRUPT) if grid.direction == "denoise" else (CORRUPT, CLEAN)
    answer, foil = lm.encode(" Mary")[0, 0], lm.encode(" John")[0, 0]
    sites = []
    for cell in cells:
        place = dict(zip(grid.over, cell, strict=True))
        site = f"{grid.site}.{place['layer']}"
        site += f".{place['head']}" if "head" in place else ""
        sites.append(site + (f"@{place['position']}" if "position" in place else ""))
    given = lm.run(source, read=sites)
    values = []
    for site in sites:
        logits = lm.run(base, write={site: given[site]}).logits[0, -1].float()
        values.append(float(logits[answer] - logits[foil]))
    return np.array(values, np.float32)


def some(grid: lk.PatchGrid, n: int = 12) -> np.ndarray:
    """A fixed spread of the cells that have an effect."""
    cells = np.argwhere(grid.values != (grid.corrupt if grid.direction == "denoise" else grid.clean))
    return cells[np.linspace(0, len(cells) - 1, n).astype(int)]


def close(lm, fast: np.ndarray, slow: np.ndarray) -> bool:
    """1e-4 in fp32. In NF4 on bf16, another batch rounds otherwise: steps of 1/8 at this size of logits, twice."""
    return bool(np.abs(fast - slow).max() <= (1e-4 if lm.bits == 32 else 0.5))


def naive_texts(lm, clean, corrupt, spans, answers, foils, cells, site) -> np.ndarray:
    """The same for any answers and prompts: for each continuation by itself, with its tokens forced, one run a cell.

    Prompts are ids (1, seq), `spans` pairs positions of clean and corrupt, answers and foils are lists of ids; clean is
    put into corrupt. The value is the answers' log probability less the foils', each a set's.
    """
    partner = {q: p for (a, b), (c, d) in spans for p, q in zip(range(a, b), range(c, d), strict=True)}
    values = []
    for cell in cells:
        told = [_summed(lm, clean, corrupt, partner, torch.tensor([ids]), cell, site) for ids in [*answers, *foils]]
        sides = torch.tensor(told[: len(answers)]), torch.tensor(told[len(answers) :])
        value = sides[0].logsumexp(0) - (sides[1].logsumexp(0) if foils else 0)
        values.append(float(value))
    return np.array(values, np.float32)


def _summed(lm, clean, corrupt, partner, ids, cell, site) -> float:
    whole = [torch.cat([prompt, ids[:, :-1].to(prompt.device)], 1) for prompt in (clean, corrupt)]
    pairs = dict(partner) | {corrupt.shape[1] + n: clean.shape[1] + n for n in range(ids.shape[1] - 1)}
    if cell.position is not None:
        pairs = {cell.position: partner[cell.position]}
    name = f"{site}.{cell.layer}"
    source = lm.run(whole[0], read=[name])[name]

    def put(x):
        x = x.clone()
        for here, there in pairs.items():
            if cell.head is None:
                x[:, here] = source[:, there]
            else:
                x[:, here, cell.head] = source[:, there, cell.head]
        return x

    logits = lm.run(whole[1], write={name: put}).logits[0, -ids.shape[1] :].float().log_softmax(-1)
    return float(logits.gather(1, ids[0, :, None].to(logits.device)).sum())
