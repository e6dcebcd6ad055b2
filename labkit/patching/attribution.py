"""Every site at a glance: the gradient estimates of all of them from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from labkit.activations.sites import layers_with
from labkit.elsewhere import where_the_model_is
from labkit.language_model import LanguageModel
from labkit.patching.grid import PatchGrid
from labkit.patching.pair_runs import engine_kind
from labkit.patching.patch import PatchJob
from labkit.patching.spec import PatchSpec, asks

SITES = ("resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")


@dataclass(frozen=True, kw_only=True)
class EstimateSpec(PatchSpec):
    """What `attribution_patch` is asked for."""

    method: str = "attribution"
    sites: Sequence[str] | None = None


@where_the_model_is
@asks(EstimateSpec)
def attribution_patch(lm: LanguageModel, spec: EstimateSpec) -> dict[str, PatchGrid]:
    """Estimate what patching does at many sites, from one forward and one backward pass (Nanda 2023).

    The numbers are those of `lk.patch(..., method="attribution")`, which does one site. Use them to find where to look,
    then patch exactly: the estimate is a linear approximation.

    Args:
        all other arguments: as for `labkit.patch`.
        sites: kinds of site; without it those of the residual stream, attention, MLPs and heads that this model has.

    Returns:
        A `PatchGrid` by kind of site.

    Raises:
        ValueError: invalid input, before the model has run; a metric without a gradient.
    """
    asked = spec.sites
    wanted = list(dict.fromkeys(asked)) if asked is not None else [kind for kind in SITES if layers_with(lm, kind)]
    jobs: dict[str, PatchJob] = {}
    runs = None
    for site in wanted:
        jobs[site] = PatchJob(lm, replace(spec, site=site, method="attribution"), runs=runs)
        runs = jobs[site].runs
    if runs is not None:
        runs.together = tuple(engine_kind(site) for site in wanted)
    for job in jobs.values():
        for _ in job.steps():
            pass
    grids = {site: job.grid for site, job in jobs.items()}
    if grids:
        next(iter(grids.values())).warned()  # one pair and one metric, so once
    return grids
