"""labkit: look inside open language models from a notebook.

The public names, and nothing else. They load when first used, so `import labkit` stays light: torch, transformers
and ipywidgets are imported only by the names that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from labkit._version import __version__ as __version__

if TYPE_CHECKING:
    from labkit.analysis.attention import AttentionPatterns, attention
    from labkit.analysis.attention_file import SavedAttention, open_attention
    from labkit.analysis.attribution_patching import attribution_patch
    from labkit.analysis.average import Sweep
    from labkit.analysis.circuit import Circuit, Faithfulness
    from labkit.analysis.controls import ControlsJob, controls
    from labkit.analysis.controls_result import Controls
    from labkit.analysis.direct_attribution import DirectAttribution, direct_logit_attribution
    from labkit.analysis.edges import EdgeScores, edge_attribution, open_edges
    from labkit.analysis.grid import PatchGrid, open_grid
    from labkit.analysis.knock_out import KnockOut, knock_out
    from labkit.analysis.lens import LogitLens, logit_lens, open_lens
    from labkit.analysis.pair_runs import PairRuns
    from labkit.analysis.patching import PatchJob, patch
    from labkit.analysis.path_grid import PathGrid
    from labkit.analysis.path_patching import path_patch
    from labkit.analysis.steering import SteeringVector, open_steering_vector, steering_vector
    from labkit.analysis.sweep import open_sweep, sweep
    from labkit.analysis.tasks import PromptPair, Task, task, tasks
    from labkit.branching import Branch, Tree
    from labkit.chat import Chat
    from labkit.generation import Generation
    from labkit.internals.run import Run
    from labkit.internals.sites import Site
    from labkit.models.catalog import catalog
    from labkit.models.language_model import LanguageModel
    from labkit.models.load import load, wrap
    from labkit.scoring import Score, score
    from labkit.widgets.attention_view import AttentionView
    from labkit.widgets.branch_tree import BranchTree
    from labkit.widgets.circuit_view import CircuitView
    from labkit.widgets.head_grid import HeadGrid
    from labkit.widgets.heatmap import Heatmap
    from labkit.widgets.lens_view import LensView
    from labkit.widgets.patch_lab import PatchLab
    from labkit.widgets.prompt_lab import PromptLab
    from labkit.widgets.steer_lab import SteerLab
    from labkit.widgets.token_strip import TokenStrip

_HOME = {
    "load": "labkit.models.load",
    "wrap": "labkit.models.load",
    "catalog": "labkit.models.catalog",
    "LanguageModel": "labkit.models.language_model",
    "Site": "labkit.internals.sites",
    "Run": "labkit.internals.run",
    "Chat": "labkit.chat",
    "Generation": "labkit.generation",
    "Tree": "labkit.branching",
    "Branch": "labkit.branching",
    "score": "labkit.scoring",
    "Score": "labkit.scoring",
    "attention": "labkit.analysis.attention",
    "AttentionPatterns": "labkit.analysis.attention",
    "attribution_patch": "labkit.analysis.attribution_patching",
    "SavedAttention": "labkit.analysis.attention_file",
    "open_attention": "labkit.analysis.attention_file",
    "knock_out": "labkit.analysis.knock_out",
    "KnockOut": "labkit.analysis.knock_out",
    "direct_logit_attribution": "labkit.analysis.direct_attribution",
    "DirectAttribution": "labkit.analysis.direct_attribution",
    "patch": "labkit.analysis.patching",
    "PairRuns": "labkit.analysis.pair_runs",
    "PatchJob": "labkit.analysis.patching",
    "PatchGrid": "labkit.analysis.grid",
    "logit_lens": "labkit.analysis.lens",
    "LogitLens": "labkit.analysis.lens",
    "open_lens": "labkit.analysis.lens",
    "steering_vector": "labkit.analysis.steering",
    "SteeringVector": "labkit.analysis.steering",
    "open_steering_vector": "labkit.analysis.steering",
    "open_grid": "labkit.analysis.grid",
    "controls": "labkit.analysis.controls",
    "ControlsJob": "labkit.analysis.controls",
    "Controls": "labkit.analysis.controls_result",
    "task": "labkit.analysis.tasks",
    "tasks": "labkit.analysis.tasks",
    "Task": "labkit.analysis.tasks",
    "PromptPair": "labkit.analysis.tasks",
    "sweep": "labkit.analysis.sweep",
    "open_sweep": "labkit.analysis.sweep",
    "Sweep": "labkit.analysis.average",
    "path_patch": "labkit.analysis.path_patching",
    "PathGrid": "labkit.analysis.path_grid",
    "edge_attribution": "labkit.analysis.edges",
    "EdgeScores": "labkit.analysis.edges",
    "open_edges": "labkit.analysis.edges",
    "Circuit": "labkit.analysis.circuit",
    "Faithfulness": "labkit.analysis.circuit",
    "PromptLab": "labkit.widgets.prompt_lab",
    "AttentionView": "labkit.widgets.attention_view",
    "PatchLab": "labkit.widgets.patch_lab",
    "LensView": "labkit.widgets.lens_view",
    "SteerLab": "labkit.widgets.steer_lab",
    "TokenStrip": "labkit.widgets.token_strip",
    "BranchTree": "labkit.widgets.branch_tree",
    "Heatmap": "labkit.widgets.heatmap",
    "HeadGrid": "labkit.widgets.head_grid",
    "CircuitView": "labkit.widgets.circuit_view",
}

__all__ = [
    "AttentionPatterns",
    "AttentionView",
    "Branch",
    "BranchTree",
    "Chat",
    "Circuit",
    "CircuitView",
    "Controls",
    "ControlsJob",
    "DirectAttribution",
    "EdgeScores",
    "Faithfulness",
    "Generation",
    "HeadGrid",
    "Heatmap",
    "KnockOut",
    "LanguageModel",
    "LensView",
    "LogitLens",
    "PairRuns",
    "PatchGrid",
    "PatchJob",
    "PatchLab",
    "PathGrid",
    "PromptLab",
    "PromptPair",
    "Run",
    "SavedAttention",
    "Score",
    "Site",
    "SteerLab",
    "SteeringVector",
    "Sweep",
    "Task",
    "TokenStrip",
    "Tree",
    "attention",
    "attribution_patch",
    "catalog",
    "controls",
    "direct_logit_attribution",
    "edge_attribution",
    "knock_out",
    "load",
    "logit_lens",
    "open_attention",
    "open_edges",
    "open_grid",
    "open_lens",
    "open_steering_vector",
    "open_sweep",
    "patch",
    "path_patch",
    "score",
    "steering_vector",
    "sweep",
    "task",
    "tasks",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
