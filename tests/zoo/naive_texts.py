"""Any answers and prompts without the fast engine: each continuation by itself, one whole forward per cell."""

import numpy as np
import torch


def naive_texts(lm, clean, corrupt, spans, answers, foils, cells, site) -> np.ndarray:
    """The metric of each cell: for each continuation by itself, with its tokens forced, one run per cell.

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
