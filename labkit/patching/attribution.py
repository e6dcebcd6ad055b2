"""Every site at a glance: the gradient estimates of all of them from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.activations.sites import layers_with
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import engine_kind
from labkit.patching.patch import PatchJob

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

SITES = ("resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")


def attribution_patch(
    lm: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    answer: str | int | None = None,
    foil: str | int | None = None,
    *,
    sites: Sequence[str] | None = None,
    **how: Any,
) -> dict[str, PatchGrid]:
    """Estimate what patching does at many sites, from one forward and one backward pass (Nanda 2023).

    The numbers are those of `lk.patch(..., method="attribution")`, which does one site. Use them to see where to look,
    and exact patching to know: the estimate is a straight line through what is not straight.

    Args:
        lm: the model.
        clean, corrupt, answer, foil: as for `labkit.patch`.
        sites: kinds of site; without it those of the residual stream, attention, MLPs and heads that this model has.
        how: `metric`, `direction`, `over`, `layers`, `positions`, `at`, as for `labkit.patch`.

    Returns:
        A `PatchGrid` by kind of site.

    Raises:
        ValueError: anything about the input that cannot work, before the model has run; a metric without a gradient.
    """
    wanted = list(dict.fromkeys(sites)) if sites is not None else [kind for kind in SITES if layers_with(lm, kind)]
    jobs: dict[str, PatchJob] = {}
    runs = None
    for site in wanted:
        jobs[site] = PatchJob(lm, clean, corrupt, answer, foil, site=site, method="attribution", runs=runs, **how)
        runs = jobs[site].runs
    if runs is not None:
        runs.together = tuple(engine_kind(site) for site in wanted)
    for job in jobs.values():
        for _ in job.steps():
            pass
    grids = {site: job.grid for site, job in jobs.items()}
    for grid in list(grids.values())[:1]:  # one pair and one metric, so once
        grid.warned()
    return grids
