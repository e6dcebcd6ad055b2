"""Patching between two models: the same prompt in 4 bits and in 32, cell by cell."""

import copy

import numpy as np
import pytest
import torch
from naive import close
from pair import CLEAN, CORRUPT

import labkit as lk

ENDS = {"denoise": ("clean", "corrupt"), "noise": ("corrupt", "clean")}
ASKED = {"answer": " Mary", "foil": " John", "progress": False}


def naive(job: lk.PatchJob, cells: np.ndarray) -> np.ndarray:
    """One forward of each model for every cell."""
    grid, (source, base) = job.grid, (job.runs.models[name] for name in ENDS[job.direction])
    values = []
    for cell in cells:
        place = dict(zip(grid.over, cell, strict=True))
        site = ".".join(str(part) for part in (grid.site, place["layer"], place.get("head")) if part is not None)
        site += f"@{place['position']}" if "position" in place else ""
        given = source.run(CLEAN, read=[site])[site].to(base.dtype)
        logits = base.run(CLEAN, write={site: given}).logits[0, -1].float()
        values.append(float(logits[base.encode(" Mary")[0, -1]] - logits[base.encode(" John")[0, -1]]))
    return np.array(values, np.float32)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "z", "pattern"])
def test_a_grid_between_precisions_equals_two_forwards_for_every_cell(lm4, lm32, site, direction):
    job = lk.PatchJob(lm4, CLEAN, source=lm32, site=site, direction=direction, layers=[0, 3, 12, 29], **ASKED)
    assert [*job.steps()]
    grid = job.grid
    assert grid.complete
    cells = np.argwhere(grid.values != (grid.corrupt if direction == "denoise" else grid.clean))
    cells = cells[np.linspace(0, len(cells) - 1, 8).astype(int)]
    found = np.array([grid.values[tuple(cell)] for cell in cells])
    numbers = np.array([[grid.index[0][row], grid.index[1][column]] for row, column in cells])
    slow = naive(job, numbers)
    assert close(lm4, found, slow)
    if direction == "noise":  # only what is put in was rounded to bfloat16, in one batch or in another
        assert np.median(np.abs(found - slow)) < 0.03
        assert np.abs(found - slow).max() < 0.15


def test_clean_is_the_source_and_corrupt_is_this_model(lm4, lm32):
    grid = lk.patch(lm4, CLEAN, source=lm32, site="resid_post", layers=[29], **ASKED)
    for found, model in ((grid.clean, lm32), (grid.corrupt, lm4)):
        logits = model.run(CLEAN).logits[0, -1].float()
        expected = float(logits[model.encode(" Mary")[0, -1]] - logits[model.encode(" John")[0, -1]])
        assert found == pytest.approx(expected, abs=1e-4 if model is lm32 else 0.3)
    # the last residual stream at the last position is all that the logits come from
    assert grid.values[0, -1] == pytest.approx(grid.clean, abs=0.1)
    np.testing.assert_allclose(grid.values[0, :-1], grid.corrupt, atol=1e-3)


def test_everything_put_in_gives_the_other_precisions_logits(lm4, lm32):
    last = f"resid_post.{lm32.n_layers - 1}"
    given = lm32.run(CLEAN, read=[last])[last]
    own, theirs = (lm.run(CLEAN).logits.float() for lm in (lm4, lm32))
    put = lm4.run(CLEAN, write={last: given.to(lm4.dtype)}).logits.float()
    assert (put - theirs).abs().mean() < 0.05 < 0.2 < (own - theirs).abs().mean()


def test_between_two_equal_models_every_cell_is_zero(lm32):
    other = copy.deepcopy(lm32)
    for site in ("resid_pre", "z"):
        grid = lk.patch(lm32, CLEAN, source=other, site=site, layers=[0, 15], **ASKED)
        np.testing.assert_allclose(grid.values, grid.corrupt, atol=1e-4)
        assert grid.clean == pytest.approx(grid.corrupt, abs=1e-4)
        assert grid.too_close


@pytest.mark.parametrize(
    ("layer", "name", "site"), [(20, "self_attn.o_proj", "attn_out"), (12, "mlp.down_proj", "mlp_out")]
)
def test_one_destroyed_matrix_is_found_at_its_layer(lm32, layer, name, site):
    broken = copy.deepcopy(lm32)
    with torch.no_grad():
        broken.hf.model.layers[layer].get_submodule(name).weight.zero_()
    share = lk.patch(broken, CLEAN, source=lm32, site=site, **ASKED).normalized
    # before it the two models agree, at its layer the positions together bring back everything, after it less
    np.testing.assert_allclose(share[:layer], 0, atol=1e-4)
    assert share[layer].sum() == pytest.approx(1, abs=0.05)
    assert share.sum(1).argmax() == layer


def test_the_estimate_has_the_models_own_gradient(lm4, lm32):
    grid = lk.patch(lm32, CLEAN, source=lm4, site="resid_post", method="attribution", layers=[28, 29], **ASKED)
    exact = lk.patch(lm32, CLEAN, source=lm4, site="resid_post", layers=[28, 29], **ASKED)
    assert grid.values[1, -1] == pytest.approx(exact.values[1, -1], abs=0.3)
    assert (grid.values[1, -1] - grid.corrupt) * (exact.values[1, -1] - grid.corrupt) > 0


def test_it_can_be_repeated_from_its_code_and_its_file(lm4, lm32, tmp_path):
    grid = lk.patch(lm4, CLEAN, source=lm32, site="z", layers=[3], metric="kl", progress=False)
    assert grid.clean == pytest.approx(0, abs=1e-5)
    assert grid.corrupt > 0
    names: dict = {}
    exec(grid.code(), names)
    assert "source = lk.load(bits=32)" in grid.code()
    assert "corrupt" not in grid.code()
    np.testing.assert_array_equal(names["grid"].values, grid.values)
    opened = lk.open_grid(grid.save(tmp_path / "grid.npz"))
    np.testing.assert_array_equal(opened.values, grid.values)
    assert opened.code() == grid.code()
    assert "32-bit activation put into the 4-bit run" in opened.title()
    assert "0 = 4-bit, 1 = 32-bit" in str(grid.figure(normalized=True).to_dict())


def test_what_cannot_be_compared_is_refused_before_anything_runs(lm4, lm32, tmp_path):
    with pytest.raises(ValueError, match="give a corrupt prompt, or another model as source="):
        lk.patch(lm4, CLEAN, answer=" Mary")
    with pytest.raises(ValueError, match="leave corrupt out"):
        lk.patch(lm4, CLEAN, CORRUPT, source=lm32, **ASKED)
    with pytest.raises(ValueError, match="use z, or attn_out"):
        lk.patch(lm4, CLEAN, source=lm32, site="head_out", **ASKED)
    with pytest.raises(ValueError, match="for a grid between two prompts"):
        lk.controls(lm4, CLEAN, source=lm32, answer=" Mary", foil=" John")
    with pytest.raises(TypeError, match="source"):
        lk.sweep(lm4, [(CLEAN, CORRUPT, " Mary", " John")], source=lm32)


class TestOtherModels:
    """Models that do not go together."""

    @pytest.fixture
    def small(self, lm32):
        from transformers import AutoModelForCausalLM

        def made(**changes):
            config = copy.deepcopy(lm32.hf.config)
            for name, value in {"num_hidden_layers": 2, **changes}.items():
                setattr(config, name, value)
            return lk.wrap(AutoModelForCausalLM.from_config(config).eval(), lm32.tokenizer)

        return made

    def test_other_sizes(self, lm32, small):
        with pytest.raises(ValueError, match="n_layers 2 instead of 30"):
            lk.patch(lm32, CLEAN, source=small(), **ASKED)

    def test_other_tokens(self, small, lm32):
        one, two = small(), small(vocab_size=49200)
        two.tokenizer = copy.deepcopy(lm32.tokenizer)
        two.tokenizer.add_tokens([" Mary and"])
        with pytest.raises(ValueError, match=r"different tokens .*first at position"):
            lk.patch(one, CLEAN, source=two, **ASKED)

    def test_other_vocabularies_have_no_kl(self, small):
        one, two = small(), small(vocab_size=49200)
        with pytest.raises(ValueError, match="kl compares whole distributions"):
            lk.patch(one, CLEAN, source=two, metric="kl")
        assert lk.patch(one, CLEAN, source=two, **ASKED).complete
