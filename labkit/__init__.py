"""labkit: look inside open language models from a notebook.

The public names, and nothing else. They load when first used, so `import labkit` stays light: torch, transformers
and ipywidgets are imported only by the names that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from labkit import _moved
from labkit._version import __version__ as __version__

_moved.install()

if TYPE_CHECKING:
    from labkit.activations.run import Run
    from labkit.activations.sites import Site
    from labkit.attention_maps.ablation import KnockOut, knock_out
    from labkit.attention_maps.file import SavedAttention, open_attention
    from labkit.attention_maps.patterns import AttentionPatterns, attention
    from labkit.circuits.circuit import Circuit, Faithfulness
    from labkit.circuits.edge_attribution import edge_attribution
    from labkit.circuits.scores import EdgeScores, open_edges
    from labkit.datasets.tasks import PromptPair, Task, task, tasks
    from labkit.generation.generate import Generation
    from labkit.generation.score import Score, score
    from labkit.generation.tree import Branch, Tree
    from labkit.language_model import LanguageModel, load, wrap
    from labkit.lens.direct_attribution import DirectAttribution, direct_logit_attribution
    from labkit.lens.logit_lens import LogitLens, logit_lens, open_lens
    from labkit.models.catalog import catalog
    from labkit.patching.attribution import attribution_patch
    from labkit.patching.grid import PatchGrid
    from labkit.patching.metrics import metric
    from labkit.patching.pair_runs import PairRuns
    from labkit.patching.patch import PatchJob, patch
    from labkit.patching.path_grid import PathGrid
    from labkit.patching.paths import path_patch
    from labkit.patching.saved_grid import open_grid
    from labkit.sanity.checks import ControlsJob, controls
    from labkit.sanity.report import Controls
    from labkit.steering import SteeringVector, open_steering_vector, steering_vector
    from labkit.sweeps.result import Sweep
    from labkit.sweeps.sweep import open_sweep, sweep
    from labkit.text.chat import Chat
    from labkit.widgets.attention_view.view import AttentionView
    from labkit.widgets.blocks.branch_tree import BranchTree
    from labkit.widgets.blocks.head_grid import HeadGrid
    from labkit.widgets.blocks.heatmap import Heatmap
    from labkit.widgets.blocks.token_strip import TokenStrip
    from labkit.widgets.circuit_view import CircuitView
    from labkit.widgets.lens_view.view import LensView
    from labkit.widgets.patch_lab.lab import PatchLab
    from labkit.widgets.prompt_lab.lab import PromptLab
    from labkit.widgets.steer_lab import SteerLab

_HOME = {
    "load": "labkit.language_model",
    "wrap": "labkit.language_model",
    "catalog": "labkit.models.catalog",
    "LanguageModel": "labkit.language_model",
    "Site": "labkit.activations.sites",
    "Run": "labkit.activations.run",
    "Chat": "labkit.text.chat",
    "Generation": "labkit.generation.generate",
    "Tree": "labkit.generation.tree",
    "Branch": "labkit.generation.tree",
    "score": "labkit.generation.score",
    "Score": "labkit.generation.score",
    "attention": "labkit.attention_maps.patterns",
    "AttentionPatterns": "labkit.attention_maps.patterns",
    "attribution_patch": "labkit.patching.attribution",
    "SavedAttention": "labkit.attention_maps.file",
    "open_attention": "labkit.attention_maps.file",
    "knock_out": "labkit.attention_maps.ablation",
    "KnockOut": "labkit.attention_maps.ablation",
    "direct_logit_attribution": "labkit.lens.direct_attribution",
    "DirectAttribution": "labkit.lens.direct_attribution",
    "patch": "labkit.patching.patch",
    "metric": "labkit.patching.metrics",
    "PairRuns": "labkit.patching.pair_runs",
    "PatchJob": "labkit.patching.patch",
    "PatchGrid": "labkit.patching.grid",
    "logit_lens": "labkit.lens.logit_lens",
    "LogitLens": "labkit.lens.logit_lens",
    "open_lens": "labkit.lens.logit_lens",
    "steering_vector": "labkit.steering",
    "SteeringVector": "labkit.steering",
    "open_steering_vector": "labkit.steering",
    "open_grid": "labkit.patching.saved_grid",
    "controls": "labkit.sanity.checks",
    "ControlsJob": "labkit.sanity.checks",
    "Controls": "labkit.sanity.report",
    "task": "labkit.datasets.tasks",
    "tasks": "labkit.datasets.tasks",
    "Task": "labkit.datasets.tasks",
    "PromptPair": "labkit.datasets.tasks",
    "sweep": "labkit.sweeps.sweep",
    "open_sweep": "labkit.sweeps.sweep",
    "Sweep": "labkit.sweeps.result",
    "path_patch": "labkit.patching.paths",
    "PathGrid": "labkit.patching.path_grid",
    "edge_attribution": "labkit.circuits.edge_attribution",
    "EdgeScores": "labkit.circuits.scores",
    "open_edges": "labkit.circuits.scores",
    "Circuit": "labkit.circuits.circuit",
    "Faithfulness": "labkit.circuits.circuit",
    "PromptLab": "labkit.widgets.prompt_lab.lab",
    "AttentionView": "labkit.widgets.attention_view.view",
    "PatchLab": "labkit.widgets.patch_lab.lab",
    "LensView": "labkit.widgets.lens_view.view",
    "SteerLab": "labkit.widgets.steer_lab",
    "TokenStrip": "labkit.widgets.blocks.token_strip",
    "BranchTree": "labkit.widgets.blocks.branch_tree",
    "Heatmap": "labkit.widgets.blocks.heatmap",
    "HeadGrid": "labkit.widgets.blocks.head_grid",
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
    "metric",
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
