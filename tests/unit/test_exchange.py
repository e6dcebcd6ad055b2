"""Results in the formats of others: MIB's JSON, xarray, Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud

import labkit as lk
from labkit.circuits.graph import Wiring
from labkit.circuits.scores import EdgeScores

xr = pytest.importorskip("xarray", reason="the exchange extra is not installed")
pytest.importorskip("pyarrow", reason="the exchange extra is not installed")

FILES = Path(__file__).parents[1] / "files"
PAIR = (IDS, CORRUPT_IDS, ANSWER, FOIL)


@pytest.fixture(scope="module")
def llama() -> lk.LanguageModel:
    return loud("llama")


@pytest.fixture(scope="module")
def scored(llama) -> lk.EdgeScores:
    return lk.edge_attribution(llama, *PAIR, steps=2, progress=False)


def some_scores(wiring: Wiring) -> EdgeScores:
    values = np.random.default_rng(0).normal(size=wiring.exists.shape).astype(np.float32)
    return EdgeScores(np.where(wiring.exists, values, np.nan), wiring, 1.0, 0.0, {"metric": "score", "d_model": 768})


def test_gpt2_has_the_edges_that_mib_counts_by_their_names(tmp_path):
    gpt2 = some_scores(Wiring.of([12] * 12, [12] * 12, [False] * 12))
    graph = json.loads(gpt2.save_mib(tmp_path / "gpt2.json").read_text())
    assert graph["cfg"] == {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768}
    assert len(graph["edges"]) == 32491  # Syed et al. 2023; Hanna et al. 2024
    assert len(graph["nodes"]) == 12 * 13 + 2
    at = gpt2.wiring.senders.index("z.3.7"), gpt2.wiring.receivers.index("k.9.2")
    assert graph["edges"]["a3.h7->a9.h2<k>"] == {"score": pytest.approx(float(gpt2.values[at])), "in_graph": False}
    assert {"input->m0", "a0.h0->m0", "m11->logits", "input->a0.h0<q>"} <= set(graph["edges"])
    assert not {"m0->a0.h0<q>", "a1.h0->a1.h1<v>", "m0->m0"} & set(graph["edges"])
    again = lk.load_mib(tmp_path / "gpt2.json")
    assert isinstance(again, lk.EdgeScores)
    np.testing.assert_allclose(again.values, gpt2.values, rtol=1e-6)


def test_side_by_side_mlps_have_no_edge_from_the_heads_of_their_layer(tmp_path):
    path = some_scores(Wiring.of([2] * 2, [2] * 2, [True] * 2)).save_mib(tmp_path / "parallel.json")
    graph = json.loads(path.read_text())
    assert graph["cfg"]["parallel_attn_mlp"] is True
    assert "a0.h0->m0" not in graph["edges"]
    assert "a0.h0->m1" in graph["edges"]


def test_a_circuit_with_shared_keys_comes_back_as_it_was(llama, scored, tmp_path):
    circuit = scored.circuit(40)
    path = circuit.save_mib(tmp_path / "circuit.json")
    again = lk.load_mib(path, llama)
    assert isinstance(again, lk.Circuit)
    assert np.array_equal(again.kept, circuit.kept)
    np.testing.assert_allclose(again.scores.values, scored.values, rtol=1e-5, atol=1e-7)
    assert float(again.faithfulness(llama, [PAIR])) == pytest.approx(float(circuit.faithfulness(llama, [PAIR])))
    graph, share = json.loads(path.read_text()), llama.n_heads // llama.n_kv_heads
    assert share > 1
    column = scored.wiring.receivers.index("k.1.0")
    parts = [graph["edges"][f"input->a1.h{n}<k>"] for n in range(share)]
    assert sum(edge["score"] for edge in parts) == pytest.approx(float(scored.values[0, column]), rel=1e-5)
    nodes = {name for name, node in graph["nodes"].items() if node["in_graph"]}
    assert "input" in nodes
    assert "logits" in nodes
    assert len(nodes) == len(circuit.nodes)
    out: dict = {}
    exec(again.code().replace(llama.load_code, ""), {"lm": llama}, out)
    assert np.array_equal(out["circuit"].kept, circuit.kept)


def test_scores_saved_before_the_width_was_kept_ask_for_it(tmp_path):
    old = lk.open_edges(FILES / "edges.npz")
    with pytest.raises(ValueError, match="d_model"):
        old.save_mib(tmp_path / "old.json")
    assert not (tmp_path / "old.json").exists()
    assert json.loads(old.save_mib(tmp_path / "old.json", d_model=64).read_text())["cfg"]["d_model"] == 64


def test_layers_that_differ_cannot_be_said_in_mibs_format(tmp_path):
    with pytest.raises(ValueError, match="one number of heads"):
        some_scores(Wiring.of([2, 4], [2, 4], [False] * 2)).save_mib(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no graph in MIB"),
        ("[1, 2]", "no graph in MIB"),
        ('{"cfg": {"n_layers": 2}, "nodes": {}, "edges": {}}', "n_heads"),
        ("[" * 100_000, "no graph in MIB"),
        (
            '{"cfg": {"n_layers": 1e9, "n_heads": 2, "parallel_attn_mlp": false}, "edges": {}}',
            "sizes that no model has",
        ),
        ('{"cfg": {"n_layers": 4096, "n_heads": 4096, "parallel_attn_mlp": false}, "edges": {}}', "too few"),
    ],
)
def test_a_file_that_is_no_graph_is_refused_in_words(text, said, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        lk.load_mib(tmp_path / "x.json")


def test_a_graph_of_another_model_or_with_broken_edges_is_refused(llama, tmp_path):
    path = some_scores(Wiring.of([2] * 3, [2] * 3, [False] * 3)).save_mib(tmp_path / "other.json")
    with pytest.raises(ValueError, match="3 layers of 2 heads"):
        lk.load_mib(path, llama)
    graph = json.loads(path.read_text())
    for name, edge, said in (("m0->m9", {}, "layer 9"), ("m2->m0", {}, "do not allow"), ("m0->m1", 3, "no score")):
        path.write_text(json.dumps(graph | {"edges": graph["edges"] | {name: edge}}))
        with pytest.raises(ValueError, match=said):
            lk.load_mib(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        lk.load_mib(tmp_path / "none.json")


def test_a_grid_as_xarray_has_its_axes_tokens_and_recipe(llama):
    grid = lk.patch(llama, *PAIR, progress=False)
    array = grid.to_xarray()
    assert array.dims == ("layer", "position")
    np.testing.assert_array_equal(array.values, grid.values)
    assert array.sel(layer=1, position=5).item() == grid.values[1, 5]
    assert array.token.values.tolist() == [token.text for token in grid.tokens]
    assert array.attrs["clean"] == grid.clean
    assert json.loads(array.attrs["recipe"])["site"] == "resid_pre"
    assert all(isinstance(value, str | float | int) for value in array.attrs.values())  # or NetCDF cannot hold it
    array.values[:] = 0  # a copy: what is done to it leaves the grid alone
    assert grid.values.any()


def test_a_sweep_as_xarray_has_a_pair_axis_with_the_ends_of_each(llama):
    pairs = [PAIR, (CORRUPT_IDS, IDS, ANSWER, FOIL)]
    sweep = lk.sweep(llama, pairs, site="z", progress=False)
    array = sweep.to_xarray()
    assert array.dims == ("pair", "layer", "head")
    np.testing.assert_array_equal(array.values, sweep.values)
    assert array.clean.values.tolist() == pytest.approx([grid.clean for grid in sweep.done])
    assert isinstance(array.mean("pair"), xr.DataArray)


def test_without_xarray_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install .*exchange"):
        lk.open_grid(FILES / "grid.npz").to_xarray()


OPENERS = {
    "grid.npz": lk.open_grid, "paths.npz": lk.open_grid, "lens.npz": lk.open_lens, "report.npz": lk.open_report,
    "findings.npz": lk.open_findings, "audit.npz": lk.open_audit, "audit_heads.npz": lk.open_audit_heads,
    "audit_ablation.npz": lk.open_audit_ablation, "benchmark.npz": lk.open_benchmark, "refusal.npz": lk.open_refusal,
    "injection.npz": lk.open_injection, "memorisation.npz": lk.open_memorisation, "choices.npz": lk.open_choices,
    "running_cost.npz": lk.open_running_cost, "probe.npz": lk.open_probe, "generation.npz": lk.open_generation,
    "input_attribution.npz": lk.open_input_attribution, "deletion_curve.npz": lk.open_deletion_curve,
    "patchscope.npz": lk.open_patchscope, "continued.npz": lk.open_continued, "examples.npz": lk.open_examples,
    "steering_search.npz": lk.open_steering_search, "head_circuit.npz": lk.open_head_circuit,
    "head_circuits.npz": lk.open_head_circuits, "sweep": lk.open_sweep, "collection": lk.open_collection,
}  # fmt: skip


@pytest.mark.parametrize("name", OPENERS)
def test_every_frame_goes_through_parquet(name, tmp_path):
    result = OPENERS[name](FILES / name)
    if not hasattr(result, "to_frame"):
        assert name == "generation.npz"
        return
    frame = result.to_frame()
    frame.to_parquet(tmp_path / "x.parquet")
    again = pd.read_parquet(tmp_path / "x.parquet")
    assert list(again.columns) == list(frame.columns)
    assert len(again) == len(frame)
    pd.testing.assert_frame_equal(again, frame, check_dtype=False, check_exact=False, check_index_type=False)
