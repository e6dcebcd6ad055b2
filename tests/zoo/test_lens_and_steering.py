"""The logit lens and steering on architectures that differ, in 32 and 4 bits: kept, or absent in words."""

import pytest
import torch
from conformance import ANSWER, IDS, close, model
from test_zoo import CORE

import labkit as lk
from labkit.activations.sites import absent

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WITHOUT = {"deepseek_v4": "several copies"}  # no one residual stream that the readout takes


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("name", CORE)
def test_the_last_layer_of_the_lens_is_the_model_itself(name, bits, tmp_path):
    lm = model(name, bits, tmp_path / "made")
    if name in WITHOUT:
        with pytest.raises(ValueError, match=f"{lm.name} has no logit lens: .*{WITHOUT[name]}"):
            lk.logit_lens(lm, IDS)
        return
    own = lm.run(IDS).logits[0]
    lens = lk.logit_lens(lm, IDS, follow=[ANSWER])
    close(lens.logits(-1), own)
    assert lens.layers == list(range(lm.n_layers))
    assert (lens.ranks[0, -1] == (own > own[:, ANSWER, None]).sum(-1).numpy() + 1).all()
    assert float(lens.kl[-1].max()) < 1e-4 < float(lens.kl[0].max())
    for site in ("attn_out", "mlp_out"):
        if absent(lm, site):
            with pytest.raises(ValueError, match=f"has no logit lens on {site}"):
                lk.logit_lens(lm, IDS, site=site)
        else:
            assert lk.logit_lens(lm, IDS, site=site).site == site


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("name", CORE)
def test_steering_adds_the_vector_and_leaves_nothing_behind(name, bits, tmp_path):
    lm = model(name, bits, tmp_path / "made")
    plain = lm.run(IDS, read=["resid_post.0"])
    vector = lk.steering_vector(lm, IDS, IDS.flip(1), 0)
    with lm.steer(vector, 3.0):
        steered = lm.run(IDS, read=["resid_post.0"])
        written = [one.id for one in lm.generate(IDS, max_new_tokens=4).tokens]
        whole = lm.run(torch.cat([IDS, torch.tensor([written])], 1)).logits[0]
    close(steered["resid_post.0"], plain["resid_post.0"] + 3 * vector.values)
    assert not torch.equal(steered.logits, plain.logits)
    assert whole[IDS.shape[1] - 1 : -1].argmax(-1).tolist() == written
    assert torch.equal(lm.run(IDS).logits, plain.logits)
