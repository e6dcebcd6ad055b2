"""labkit: look inside open language models from a notebook.

The public names, and nothing else. They load when first used, so `import labkit` stays light: torch, transformers
and ipywidgets are imported only by the names that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.analysis.attention import AttentionPatterns, attention
    from labkit.analysis.attribution_patching import attribution_patch
    from labkit.analysis.direct_attribution import DirectAttribution, direct_logit_attribution
    from labkit.analysis.grid import PatchGrid, open_grid
    from labkit.analysis.pair_runs import PairRuns
    from labkit.analysis.patching import PatchJob, patch
    from labkit.branching import Branch, Tree
    from labkit.generation import Generation
    from labkit.internals.run import Run
    from labkit.internals.sites import Site
    from labkit.models.catalog import catalog
    from labkit.models.language_model import LanguageModel
    from labkit.models.load import load, wrap
    from labkit.scoring import Score, score
    from labkit.widgets.attention_view import AttentionView
    from labkit.widgets.branch_tree import BranchTree
    from labkit.widgets.head_grid import HeadGrid
    from labkit.widgets.heatmap import Heatmap
    from labkit.widgets.patch_lab import PatchLab
    from labkit.widgets.prompt_lab import PromptLab
    from labkit.widgets.token_strip import TokenStrip

__version__ = "0.1.0"

_HOME = {
    "load": "labkit.models.load",
    "wrap": "labkit.models.load",
    "catalog": "labkit.models.catalog",
    "LanguageModel": "labkit.models.language_model",
    "Site": "labkit.internals.sites",
    "Run": "labkit.internals.run",
    "Generation": "labkit.generation",
    "Tree": "labkit.branching",
    "Branch": "labkit.branching",
    "score": "labkit.scoring",
    "Score": "labkit.scoring",
    "attention": "labkit.analysis.attention",
    "AttentionPatterns": "labkit.analysis.attention",
    "attribution_patch": "labkit.analysis.attribution_patching",
    "direct_logit_attribution": "labkit.analysis.direct_attribution",
    "DirectAttribution": "labkit.analysis.direct_attribution",
    "patch": "labkit.analysis.patching",
    "PairRuns": "labkit.analysis.pair_runs",
    "PatchJob": "labkit.analysis.patching",
    "PatchGrid": "labkit.analysis.grid",
    "open_grid": "labkit.analysis.grid",
    "PromptLab": "labkit.widgets.prompt_lab",
    "AttentionView": "labkit.widgets.attention_view",
    "PatchLab": "labkit.widgets.patch_lab",
    "TokenStrip": "labkit.widgets.token_strip",
    "BranchTree": "labkit.widgets.branch_tree",
    "Heatmap": "labkit.widgets.heatmap",
    "HeadGrid": "labkit.widgets.head_grid",
}

__all__ = [
    "AttentionPatterns",
    "AttentionView",
    "Branch",
    "BranchTree",
    "DirectAttribution",
    "Generation",
    "HeadGrid",
    "Heatmap",
    "LanguageModel",
    "PairRuns",
    "PatchGrid",
    "PatchJob",
    "PatchLab",
    "PromptLab",
    "Run",
    "Score",
    "Site",
    "TokenStrip",
    "Tree",
    "attention",
    "attribution_patch",
    "catalog",
    "direct_logit_attribution",
    "load",
    "open_grid",
    "patch",
    "score",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
