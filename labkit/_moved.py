"""Modules of version 0.1 under their old names, for code that imports them: a `DeprecationWarning` names the new place.
They are removed in the next version.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MOVED = """
analysis.attention: attention_maps.patterns attention_maps.base
analysis.attention_file: attention_maps.file
analysis.attribution: patching.estimates activations.gradients
analysis.attribution_patching: patching.attribution
analysis.average: sweeps.result
analysis.axes: patching.axes
analysis.batching: engine.batching
analysis.circuit: circuits.circuit
analysis.controls: sanity.checks
analysis.controls_result: sanity.report
analysis.direct_attribution: lens.direct_attribution
analysis.edges: circuits.edge_attribution circuits.scores circuits.prepare
analysis.gap: patching.gap
analysis.grid: patching.grid patching.saved_grid
analysis.head_scores: attention_maps.head_scores
analysis.inspect: patching.cell_report
analysis.joint: patching.joint
analysis.knock_out: attention_maps.ablation
analysis.lens: lens.logit_lens
analysis.metrics: activations.metrics
analysis.pair_runs: patching.pair_runs
analysis.patching: patching.patch patching.spec
analysis.path_ends: patching.path_ends
analysis.path_grid: patching.path_grid
analysis.path_patching: patching.paths
analysis.recipe: results.recipe
analysis.saved: results.file
analysis.side_by_side: text.alignment
analysis.statistics: results.bootstrap
analysis.steering: steering.directions steering.steer steering.vector
analysis.store: sweeps.store shards.store
analysis.sweep: sweeps.sweep
analysis.task_words: datasets.words
analysis.tasks: datasets.tasks
analysis.weighting: attention_maps.weighting attention_maps.base
analysis.wiring: circuits.graph
analysis.workers: sweeps.workers shards.workers
branching: generation.tree
chat: text.chat
comparison: text.diff
internals.attention_hook: activations.attention_interface
internals.batch: activations.batch
internals.cells: engine.cells models.devices
internals.heads: activations.head_layout
internals.hooks: activations.hooks
internals.parts: engine.decomposition
internals.readout: engine.readout
internals.recording: engine.recorded_run
internals.rows: engine.block_runner
internals.run: activations.run
internals.sites: activations.sites activations.site_kinds
internals.unembedding: activations.unembedding
internals.wavefront: engine.wavefront
models.checkpoint: models.cache
models.expand: models.sources.expand
models.experts: models.packed_experts
models.fast: models.unpacked_layers
models.gguf_file: models.sources.gguf
models.language_model: language_model models.handle text.types
models.narrow: models.narrow_embeddings
models.offload: models.devices
models.packaged: models.sources.default_model
models.product: models.bf16_matmul
models.quantise: models.quantisation
models.read: models.sources.read
models.stored: models.sources.stored
models.tensors: models.sources.tensors
models.text_part: models.sources.text_part
models.whole: models.sources.whole
once: text.warn
prompts: text.prompts
record: generation.token_table
regions: text.regions
sampling: generation.sampling
scoring: generation.score
tokens: text.tokens text.encode text.pair
widgets.attribution_face: widgets.lens_view.attribution_panel
widgets.block: widgets.base.block
widgets.branch_tree: widgets.blocks.branch_tree
widgets.check_list: widgets.blocks.check_list
widgets.controls_face: widgets.patch_lab.sanity_panel
widgets.curve: widgets.blocks.curve
widgets.given_prompt: widgets.blocks.given_prompt
widgets.head_action: widgets.attention_view.head_actions
widgets.head_finder: widgets.attention_view.head_finder
widgets.head_grid: widgets.blocks.head_grid
widgets.head_maps: widgets.attention_view.head_maps
widgets.head_picture: widgets.blocks.head_picture
widgets.heatmap: widgets.blocks.heatmap
widgets.heatmap_picture: widgets.blocks.heatmap_picture
widgets.inspector: widgets.patch_lab.inspector
widgets.jobs: widgets.base.job_queue
widgets.lab_file: widgets.patch_lab.file
widgets.lens_face: widgets.lens_view.lens_panel
widgets.live_grid: widgets.patch_lab.live_grid
widgets.look_inside: widgets.prompt_lab.look_inside
widgets.pair_editor: widgets.patch_lab.pair_editor
widgets.pair_strip: widgets.blocks.pair_strip
widgets.patchable: widgets.patch_lab.patch_controls
widgets.picture: widgets.base.picture
widgets.prompt_beside: widgets.prompt_lab.pane_diff
widgets.prompt_box: widgets.blocks.prompt_box
widgets.prompt_branches: widgets.prompt_lab.branch_actions
widgets.prompt_chat: widgets.prompt_lab.chat_turns
widgets.prompt_code: widgets.prompt_lab.code
widgets.prompt_column: widgets.prompt_lab.column
widgets.prompt_sessions: widgets.prompt_lab.sessions widgets.prompt_lab.session_file
widgets.prompt_settings: widgets.prompt_lab.settings
widgets.scales: widgets.base.colour_scales
widgets.snapshot: widgets.base.snapshot
widgets.status_line: widgets.base.status_line
widgets.token_bars: widgets.blocks.token_bars
widgets.token_looks: widgets.blocks.token_looks
widgets.token_strip: widgets.blocks.token_strip
widgets.tool: widgets.base.tool
"""
MOVED = {
    f"labkit.{old}": [f"labkit.{new}" for new in places.split()]
    for old, _, places in (line.partition(": ") for line in _MOVED.split("\n") if line)
}
PACKAGES = ("labkit.analysis", "labkit.internals")


class _Moved(ModuleType):
    """Looks up a name in its new place."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for place in MOVED[self.__name__]:
            if hasattr(found := importlib.import_module(place), name):
                warnings.warn(f"{self.__name__}.{name} has moved to {place}", DeprecationWarning, stacklevel=2)
                return getattr(found, name)
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r}; see {', '.join(MOVED[self.__name__])}"
        )


class _Finder(MetaPathFinder, Loader):
    """Finds modules, and the packages that held them, by their old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in MOVED or name in PACKAGES:
            return ModuleSpec(name, self, is_package=name in PACKAGES)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name) if spec.name in PACKAGES else _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Find modules by their old names too, after all others."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
