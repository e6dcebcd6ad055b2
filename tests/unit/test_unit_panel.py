"""What heads and neurons write, in AttentionView and PatchLab, without a browser."""

import numpy as np
import pytest
import torch
from loud import loud

import labkit as lk
from labkit.features.writes import Writer

TEXT = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def collection(lm4) -> lk.Collection:
    texts = ["Mary gave a drink to John", "the weather in Paris was fine", "one two three <b>four</b> five"]
    return lk.collect(lm4, texts, read=["z.20", "mlp_act.20"], **QUIET)


def test_a_view_shows_what_its_head_writes_for_the_selected_token(lm4) -> None:
    view = lk.AttentionView(lm4, TEXT, selection=(20, 3), background=False)
    made = view.what_it_writes()
    assert "looking at ·to" in made.title
    view.token = 1
    made = view.what_it_writes()
    assert "looking at ·Mary" in made.title
    strip = view.action.unit.writes
    assert strip.tokens == list(made.tokens)
    assert strip.layout.display != "none"
    assert list(made.logits) == sorted(made.logits, reverse=True)
    names: dict = {}
    exec(view.code(), names | {"__name__": "code"}, names)
    circuit = names["circuit"]
    assert [name for name, _ in circuit.rows("promotes", 0)][:8] == list(made.tokens[:8])
    assert np.allclose([value for _, value in circuit.rows("promotes", 0)][:8], made.logits[:8], rtol=1e-3)
    assert made.title.split(",")[0] in view.snapshot()
    view.selection = (19, 1)  # of another head nothing is shown
    view.wait()
    assert view.action.written is None
    assert strip.layout.display == "none"


def test_a_view_with_a_collection_shows_where_its_head_is_strongest(lm4, collection) -> None:
    view = lk.AttentionView(lm4, TEXT, selection=(20, 3), collection=collection, background=False)
    assert view.action.unit.found is None  # until it is asked for
    view.what_it_writes()
    found = view.action.unit.found
    assert found is not None
    assert found.top == lk.examples(collection, "z.20.3", top=4, context=6, **QUIET).top
    assert "Strongest in 3 texts" in view.snapshot()
    view.against, view.answer, view.foil = CORRUPT, " Mary", " John"
    assert view.patch_lab().inspector.unit.collection is collection
    view.selection = (19, 1)
    view.wait()
    assert view.action.unit.found is None


def test_the_inspector_shows_what_a_head_writes_and_where_it_is_strongest(lm4, collection) -> None:
    lab = lk.PatchLab(lm4, TEXT, CORRUPT, " Mary", " John", site="z", collection=collection, background=False)
    lab.selection = (20, 3)
    lab.wait()
    unit = lab.inspector.unit
    assert unit.writes.title.startswith("Head 20.3, looking at")
    found = lk.examples(collection, "z.20.3", **QUIET)
    assert unit.found is not None
    assert unit.found.top == lk.examples(collection, "z.20.3", top=4, context=6, **QUIET).top
    shown = [strip for strip in unit.strips if strip.layout.display != "none"]
    assert len(shown) == 3  # as many as there are texts
    assert shown[0].marks["differs"] == [found.top[0].at] or found.top[0].at > 6
    assert unit.writes.title.split(",")[0] in lab.snapshot()
    lab.selection = (3, 2)
    lab.wait()
    assert unit.found is None
    assert "z.3.2 was not read" in unit.about.value or "z.3" in unit.about.value
    lab.selection = None
    lab.wait()
    assert unit.layout.display == "none"


def test_the_inspector_shows_what_a_neuron_writes(lm4, collection) -> None:
    lab = lk.PatchLab(
        lm4, TEXT, CORRUPT, " Mary", " John", site="mlp_act", over=("neuron", "position"), layer=20,
        collection=collection, background=False,
    )  # fmt: skip
    neuron = lab.grid.index[0][0]
    lab.selection = (neuron, 13)
    lab.wait()
    unit = lab.inspector.unit
    assert unit.writes.title == f"Neuron 20.{neuron} writes for and against"
    assert unit.found is not None
    assert unit.found.unit == f"mlp_act.20.{neuron}"


def test_without_a_collection_no_examples_are_shown(lm4) -> None:
    lab = lk.PatchLab(lm4, TEXT, CORRUPT, " Mary", " John", site="z", background=False)
    lab.selection = (20, 3)
    lab.wait()
    assert lab.inspector.unit.strips == []
    assert lab.inspector.unit.about.layout.display == "none"


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_what_a_neuron_writes_is_its_column_through_norms_and_unembedding(name) -> None:
    lm = loud(name)
    made = Writer(lm).neuron(1, 7, top=5)
    with torch.no_grad():
        if name == "gpt2":
            column = lm.hf.transformer.h[1].mlp.c_proj.weight[7]
            column = (column - column.mean()) * lm.hf.transformer.ln_f.weight
        else:
            layer, gain = lm.hf.model.layers[1], lm.hf.model.norm.weight
            column = layer.mlp.down_proj.weight[:, 7]
            if name == "gemma2":
                column = column * (1 + layer.post_feedforward_layernorm.weight)
                gain = 1 + gain
            column = column * gain
        logits = (lm.hf.get_output_embeddings().weight @ column)[: len(lm.tokenizer)]
    expected = torch.cat([logits.topk(5).values, -(-logits).topk(5).values.flip(0)])
    mine = torch.tensor(made.logits)
    share = float(mine @ expected / (expected @ expected))  # a norm after the MLP has a scale of its own
    assert name == "gemma2" or abs(share - 1) < 1e-3
    assert torch.allclose(mine, share * expected, rtol=2e-3, atol=2e-3 * float(mine.abs().max()))
