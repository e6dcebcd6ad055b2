"""Directions of several layers, by means and by PCA, of plain values, and as control vectors in GGUF files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from loud import loud

import labkit as lk
from labkit.steering.directions import of_means, of_pairs

CLEAN = "When Mary and John went to the store"
POSITIVE = ["The film was wonderful", "What a beautiful day", "The food was delicious"]
NEGATIVE = ["The film was terrible", "What an awful day", "The food was disgusting"]


@pytest.fixture(scope="module")
def vectors(lm4: lk.LanguageModel) -> dict[int, lk.SteeringVector]:
    return lk.steering_vector(lm4, POSITIVE, NEGATIVE, [12, -12])


def by_hand(
    path: Path, directions: dict[str, np.ndarray], *, architecture: str = "controlvector", **texts: str
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, text in texts.items():
        writer.add_string(f"controlvector.{name}", text)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# -- directions --------------------------------------------------------------------------------------------------------


def test_several_layers_at_once_are_what_each_is_alone(lm4, vectors):
    assert list(vectors) == [12, 18]
    for layer, vector in vectors.items():
        alone = lk.steering_vector(lm4, POSITIVE, NEGATIVE, layer)
        assert torch.equal(vector.values, alone.values)
        assert (vector.layer, vector.code()) == (layer, alone.code())


def test_pca_finds_the_direction_that_noise_hides_from_no_one_pair():
    """A planted direction, in pairs that differ by it and by noise; the sign is that of positive minus negative."""
    draw = torch.Generator().manual_seed(0)
    planted = torch.randn(64, generator=draw)
    planted /= planted.norm()
    negative = torch.randn(40, 64, generator=draw) * 5
    positive = negative + 3 * planted + 0.3 * torch.randn(40, 64, generator=draw)
    for flipped in (1.0, -1.0):
        vector = of_pairs(flipped * positive, flipped * negative, 0)
        assert float(vector.values @ planted) / vector.norm == pytest.approx(flipped, abs=0.02)
        assert vector.norm == pytest.approx(3, abs=0.3)
        assert sum(vector.spread) / 40 == pytest.approx(1, abs=0.05)


def test_pca_follows_what_pairs_share_and_the_mean_what_one_pair_shouts():
    """Nine pairs differ along one axis in one sense, the last in another axis and much more: the mean turns to it less
    than a principal component does, which is then the wrong one; `spread` shows it."""
    apart = torch.zeros(10, 8)
    apart[:9, 0], apart[9, 1] = 1.0, 10.0
    zero = torch.zeros(10, 8)
    loud_one, mean = of_pairs(apart, zero, 0), of_means(apart, zero, 0)
    assert abs(float(loud_one.values[1])) / loud_one.norm > 0.99
    assert float(mean.values[0]) / mean.norm > 0.6
    assert sorted(loud_one.spread)[-1] > 5 * sorted(loud_one.spread)[-2]


def test_pca_on_a_model_is_near_the_difference_of_means_and_its_code_repeats_it(lm4):
    vector = lk.steering_vector(lm4, POSITIVE, NEGATIVE, 18, method="pca")
    mean = lk.steering_vector(lm4, POSITIVE, NEGATIVE, 18)
    assert float(vector.values @ mean.values) / (vector.norm * mean.norm) > 0.7
    assert "PCA" in repr(vector)
    scope: dict = {}
    exec(vector.code(), scope)
    torch.testing.assert_close(scope["vector"].values, vector.values)


@pytest.mark.parametrize(
    ("positive", "layer", "settings", "says"),
    [
        (["good"], 3, {"method": "pca"}, "as many positive as negative prompts, at least two; got 1 and 1"),
        (["good", "kind", "fine"], 3, {"method": "pca"}, "got 3 and 1"),
        (["good"], 3, {"method": "svm"}, "'mean_difference' or 'pca'; got 'svm'"),
        (["good"], [], {}, "names no layer"),
        (["good"], [3, 30], {}, "layers 0 to 29"),
        (["bad"], [3, 4], {}, "give the same activations at layer 3"),
    ],
)
def test_what_gives_no_direction_is_answered_in_words(lm4, positive, layer, settings, says):
    with pytest.raises(ValueError, match=says):
        lk.steering_vector(lm4, positive, ["bad"], layer, **settings)


def test_any_values_make_a_vector(lm4):
    values = np.linspace(-1, 1, lm4.d_model)
    vector = lk.SteeringVector.of(values, 12, recipe={"about": "a line"})
    assert vector.values.dtype == torch.float32
    assert repr(vector).endswith("a line)")
    with lm4.steer(vector, 2.0):
        steered = lm4.run(CLEAN).logits
    with lm4.steer(torch.tensor(values), 2.0, layer=12):
        assert torch.equal(lm4.run(CLEAN).logits, steered)
    values[:] = 0  # they were copied
    assert float(vector.values[0]) == -1


@pytest.mark.parametrize(
    ("values", "layer", "says"),
    [
        (np.zeros((2, 3, 4)), 1, r"has shape \(d_model,\); these values have \(2, 3, 4\)"),
        ([1.0, float("nan")], 1, "must be finite"),
        ([1.0], -1, "layer must be a whole number, at least 0; got -1"),
    ],
)
def test_values_that_make_no_vector_are_refused(values, layer, says):
    with pytest.raises(ValueError, match=says):
        lk.SteeringVector.of(values, layer)


def test_vectors_by_layer_steer_each_after_its_layer(lm4, vectors):
    sites = ["resid_post.12", "resid_post.18"]
    with lm4.steer(vectors, 1.5):
        together = lm4.run(CLEAN, read=sites)
    with lm4.steer(vectors[12], 1.5), lm4.steer(vectors[18], 1.5):
        nested = lm4.run(CLEAN, read=sites)
    assert all(torch.equal(together[site], nested[site]) for site in sites)
    assert torch.equal(together.logits, nested.logits)
    assert not torch.equal(together.logits, lm4.run(CLEAN).logits)
    for bad, settings, says in (({}, {}, "no vectors"), (vectors, {"layer": 3}, "each for its layer")):
        with pytest.raises(ValueError, match=says), lm4.steer(bad, **settings):
            raise AssertionError("the block must not run")


# -- GGUF --------------------------------------------------------------------------------------------------------------


def test_a_control_vector_comes_back_as_it_was(lm4, vectors, tmp_path):
    path = lk.save_control_vector(vectors, tmp_path / "kind.gguf")
    again = lk.load_control_vector(lm4, path)
    assert {layer: one.values.tolist() for layer, one in again.items()} == {
        layer: one.values.tolist() for layer, one in vectors.items()
    }
    assert [one.layer for one in again.values()] == [12, 18]
    with lm4.steer(vectors, 1.5):
        steered = lm4.run(CLEAN).logits
    with lm4.steer(again, 1.5):
        assert torch.equal(lm4.run(CLEAN).logits, steered)
    scope: dict = {}
    exec(again[18].code(), scope)
    assert torch.equal(scope["vector"].values, vectors[18].values)
    assert lk.save_control_vector(again, tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["again.gguf", "kind.gguf"]


def test_the_file_has_what_llama_cpp_reads(vectors, tmp_path):
    """`direction.N`, N from 0 as the output of layer N is counted, float32; architecture and metadata."""
    reader = gguf.GGUFReader(vectors[18].to_gguf(tmp_path / "kind.gguf"))
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "controlvector"
    assert (said["controlvector.model_hint"], said["controlvector.layer_count"]) == ("llama", 1)
    (tensor,) = reader.tensors
    assert (tensor.name, tensor.tensor_type.name, tensor.data.shape) == ("direction.18", "F32", (576,))
    assert tensor.data.tolist() == vectors[18].values.tolist()


@pytest.mark.parametrize("hint", ["llama", "Llama", "mistral", None])
def test_a_file_made_by_hand_opens(lm4, hint, tmp_path):
    """As repeng and llama.cpp's generator write them, whose files may leave layers out."""
    values = np.linspace(-1, 1, 576, dtype=np.float32)
    hints = {} if hint is None else {"model_hint": hint}
    path = by_hand(tmp_path / "hand.gguf", {"direction.29": values, "direction.3": 2 * values}, **hints)
    vectors = lk.load_control_vector(lm4, path)
    assert list(vectors) == [3, 29]
    assert vectors[3].values.tolist() == (2 * values).tolist()
    assert vectors[29].norm == pytest.approx(float(np.linalg.norm(values)), rel=1e-5)


ONES = np.ones(576, np.float32)


@pytest.mark.parametrize(
    ("directions", "settings", "says"),
    [
        ({"direction.3": np.ones(64, np.float32)}, {}, "direction.3 of .* has 64 numbers; .* needs 576, the width"),
        ({"direction.30": ONES}, {}, "a direction for layer 30; .* are for layers 1 to 29"),
        ({"direction.0": ONES}, {}, "a direction for layer 0"),
        ({"direction.3": ONES}, {"model_hint": "qwen2"}, "for 'qwen2', and .* is 'llama'.*any_model=True"),
        ({"blk.0.attn_q.weight": ONES}, {"architecture": "llama"}, r"the weights of a model \(llama\), which lk"),
        ({"blk.0.attn_q.weight": ONES}, {}, "has a tensor 'blk.0.attn_q.weight'; a control vector has direction.1"),
        ({"direction.3": ONES.astype(np.float16)}, {}, r"is F16 of shape \(576,\); a control vector has F32"),
        ({"direction.3": np.ones((2, 576), np.float32)}, {}, r"is F32 of shape \(2, 576\)"),
        ({}, {}, "without any direction"),
    ],
)  # fmt: skip
def test_what_is_no_control_vector_for_this_model_is_refused(lm4, directions, settings, says, tmp_path):
    path = by_hand(tmp_path / "hand.gguf", directions, **settings)
    with pytest.raises(ValueError, match=says):
        lk.load_control_vector(lm4, path)


def test_a_name_that_another_tool_has_for_the_architecture_can_be_accepted(lm4, tmp_path):
    path = by_hand(tmp_path / "hand.gguf", {"direction.3": ONES}, model_hint="smollm")
    vectors = lk.load_control_vector(lm4, path, any_model=True)
    assert "any_model=True" in vectors[3].code()
    assert vectors[3].norm == pytest.approx(24, rel=1e-5)


def test_files_of_other_kinds_are_named(lm4, vectors, tmp_path):
    with pytest.raises(ValueError, match="does not begin with the letters GGUF"):
        lk.load_control_vector(lm4, vectors[12].save(tmp_path / "kind.npz"))
    whole = vectors[12].to_gguf(tmp_path / "kind.gguf")
    with pytest.raises(ValueError, match=r"a control vector, which lk\.load_control_vector"):
        lk.open_steering_vector(whole)
    for share in (0.05, 0.5, 0.98):
        (cut := tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        with pytest.raises(ValueError, match=r"is not a control vector: .* cut short or damaged"):
            lk.load_control_vector(lm4, cut)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lk.load_control_vector(lm4, tmp_path / "none.gguf")


def test_vectors_that_make_no_control_vector_are_refused_and_leave_no_file(lm4, vectors, tmp_path):
    plain = lk.SteeringVector.of(ONES, 3)
    for given, settings, says in (
        ([], {}, "no vectors to write"),
        ([plain], {}, "do not say for which model"),
        ([plain, vectors[12]], {}, "not all for one architecture"),
        ([plain, plain * 2], {"model_type": "llama"}, "several vectors for layer 3"),
        ({3: plain, 4: lk.SteeringVector.of(ONES[:9], 4)}, {"model_type": "llama"}, r"\(9,\), \(576,\)"),
        ([lk.SteeringVector.of(ONES, 0)], {"model_type": "llama"}, "llama.cpp cannot steer layer 0"),
        ([lk.SteeringVector.of(np.ones((4, 576)), 3)], {"model_type": "llama"}, r"of one shape, \(d_model,\)"),
    ):
        with pytest.raises(ValueError, match=says):
            lk.save_control_vector(given, tmp_path / "none.gguf", **settings)
    with pytest.raises(ValueError, match="does not say for which model"):
        plain.to_gguf(tmp_path / "none.gguf")
    assert not list(tmp_path.iterdir())
    assert lk.load_control_vector(lm4, plain.to_gguf(tmp_path / "plain.gguf", model_type="llama"))[3].layer == 3


def test_a_vector_keeps_its_model_type_when_it_is_scaled_or_drawn_anew(vectors, tmp_path):
    lm = loud("llama")
    small = lk.steering_vector(lm, ["I"], ["To"], 1)
    for n, one in enumerate((small, 2 * small, small.random(3))):
        found = lk.load_control_vector(lm, one.to_gguf(tmp_path / f"{n}.gguf"))[1]
        assert torch.equal(found.values, one.values)
    with pytest.raises(ValueError, match=r"numbers; .* needs 64"):
        lk.load_control_vector(lm, vectors[12].to_gguf(tmp_path / "large.gguf").rename(tmp_path / "other.gguf"))
