"""Path patching: the fast way against the definition, on the real model and on tiny ones of many shapes."""

import warnings
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.engine.block_runner import BlockRunner
from labkit.patching.paths import CHECKED

ASKED = {"answer": " Mary", "foil": " John", "progress": False}
TINY = {"answer": ANSWER, "foil": FOIL, "progress": False}


def by_plain_hooks(lm, base, source, layer, head, receiver, *, freeze_mlps=False):
    """The four runs of Wang et al. with nothing but PyTorch hooks on a Llama model; the logits at the end.

    `receiver` is (projection, layer, head), such as ("q_proj", 23, 3), or None for the logits.
    """
    blocks, d_head = lm.hf.model.layers, lm.d_head

    def forward(hooks=()):
        with ExitStack() as stack, torch.no_grad():
            for module, method, hook in hooks:
                stack.callback(getattr(module, method)(hook).remove)
            return lm.hf(base, use_cache=False).logits[0, -1]

    def kept(ids):
        z, mlp = {}, {}
        with ExitStack() as stack, torch.no_grad():
            for n, block in enumerate(blocks):
                stack.callback(
                    block.self_attn.o_proj.register_forward_pre_hook(lambda m, a, n=n: z.__setitem__(n, a[0])).remove
                )
                stack.callback(block.mlp.register_forward_hook(lambda m, a, out, n=n: mlp.__setitem__(n, out)).remove)
            lm.hf(ids, use_cache=False)
        return z, mlp

    (z, mlp), (z_source, _) = kept(base), kept(source)
    spoken = z[layer].clone()
    mine = slice(head * d_head, (head + 1) * d_head)
    spoken[..., mine] = z_source[layer][..., mine]
    hold = {n: spoken if n == layer else z[n] for n in z}
    third = [(b.self_attn.o_proj, "register_forward_pre_hook", lambda m, a, n=n: hold[n]) for n, b in enumerate(blocks)]
    if freeze_mlps:
        third += [(b.mlp, "register_forward_hook", lambda m, a, out, n=n: mlp[n]) for n, b in enumerate(blocks)]
    if receiver is None:
        return forward(third)
    name, at, which = receiver
    projection = getattr(blocks[at].self_attn, name)
    heard = {}
    forward([*third, (projection, "register_forward_hook", lambda m, a, out: heard.update(x=out.clone()))])

    def put(module, args, out):
        out = out.clone()
        part = slice(which * d_head, (which + 1) * d_head)
        out[..., part] = heard["x"][..., part]
        return out

    return forward([(projection, "register_forward_hook", put)])


@pytest.mark.parametrize(
    ("receiver", "plain", "options"),
    [
        ("logits", None, {}),
        ("q.23.3", ("q_proj", 23, 3), {"mlps": "freeze"}),
        ("k.20.1", ("k_proj", 20, 1), {"direction": "noise"}),
        ("v.20.1", ("v_proj", 20, 1), {}),
    ],
)
def test_paths_equal_four_runs_with_everything_else_held_by_hand(lm32, receiver, plain, options):
    senders = ["z.5.2", "z.19.2"] + (["z.23.3"] if plain is None else [])
    grid = lk.path_patch(lm32, CLEAN, CORRUPT, receiver=receiver, senders=senders, **ASKED, **options)
    base, source = lm32.encode(CORRUPT), lm32.encode(CLEAN)
    if options.get("direction") == "noise":
        base, source = source, base
    mary, john = (lm32.tokenizer(name).input_ids[0] for name in (" Mary", " John"))
    for row in grid.to_frame().itertuples():
        freeze = options.get("mlps") == "freeze"
        logits = by_plain_hooks(lm32, base, source, row.layer, row.head, plain, freeze_mlps=freeze)
        assert row.value == pytest.approx(float(logits[mary] - logits[john]), abs=1e-4), row.sender
    assert len(grid.to_frame()) == len(senders)


def test_one_experiment_equals_transformerlens(lm32):
    """Its `patching.get_act_patch_direct_path(..., src_layer=20, src_head=0, component="q")`, version 4.3.0, in fp32.

    It adds the sender's change to the receiver's input alone, so MLPs in between are held; for grouped keys and values
    it has no path patching. These are the receivers that move most; all 81 agree within 2e-5.
    """
    theirs = {"q.23.0": -4.14141, "q.23.1": -4.99966, "q.23.5": -4.93445, "q.23.3": -5.87171, "q.21.5": -6.00044}
    for receiver, value in theirs.items():
        grid = lk.path_patch(lm32, CLEAN, CORRUPT, receiver=receiver, senders=["z.20.0"], mlps="freeze", **ASKED)
        assert grid.to_frame().value.item() == pytest.approx(value, abs=1e-4), receiver


def whole(lm, sender, receivers, *, mlps, base=CORRUPT_IDS, source=IDS):
    """One sender by the definition, through `lm.run`, with every head's z held one layer at a time."""
    kind = "z" if sender.startswith("z") else "mlp_out"
    layer = int(sender.split(".")[1])
    plain = lm.run(base, read=["z", "mlp_out"])
    write = {f"z.{n}": plain[f"z.{n}"].clone() for n in range(lm.n_layers)}
    if mlps == "freeze":
        write |= {f"mlp_out.{n}": plain[f"mlp_out.{n}"].clone() for n in range(lm.n_layers)}
        write |= {} if kind == "z" else {f"mlp_out.{layer}": plain[f"mlp_out.{layer}"]}
    said = lm.run(source, read=[sender])[sender]
    if kind == "z":
        write[f"z.{layer}"][:, :, int(sender.split(".")[2])] = said
    else:
        write[f"mlp_out.{layer}"] = said
    third = lm.run(base, write=write, read=receivers)
    logits = third.logits if not receivers else lm.run(base, write={r: third[r] for r in receivers}).logits
    return float(logits[0, -1, ANSWER] - logits[0, -1, FOIL])


@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "gpt2",
        "gemma2",
        "qwen2",
        "qwen3",
        "gpt_neox",
        "cohere",
        "olmo2",
        "phi",
        "granite",
        "mixtral",
        "gpt_oss",
    ],
)
@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
def test_paths_equal_whole_runs_on_every_shape_of_block(model_type, mlps):
    """Sequential and parallel blocks, norms before and after, multipliers, grouped queries, experts, sinks."""
    lm = loud(model_type)
    for receiver in ("logits", "q.1.3", ["k.1.1", "v.1.0"], "resid_post.0"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no falling back
            grid = lk.path_patch(lm, IDS, CORRUPT_IDS, receiver=receiver, senders=["z", "mlp_out"], mlps=mlps, **TINY)
        receivers = [] if receiver == "logits" else [receiver] if isinstance(receiver, str) else receiver
        scale = max(1.0, abs(grid.clean), abs(grid.corrupt))
        moved = 0.0
        for row in grid.to_frame().itertuples():
            assert row.value == pytest.approx(whole(lm, row.sender, receivers, mlps=mlps), abs=1e-5 * scale), row.sender
            moved = max(moved, abs(row.value - grid.corrupt))
        assert moved > 3e-4 * scale, "too little happens for the test to say anything"


def test_a_model_that_cannot_be_restarted_is_run_whole_with_a_warning():
    lm = loud("gemma3n_text")  # several residual streams, keys and values shared by layers
    with pytest.warns(UserWarning, match="two full forward passes per sender"):
        grid = lk.path_patch(lm, IDS, CORRUPT_IDS, receiver="q.1.3", senders=["z.0.0", "z.0.2"], **TINY)
    for row in grid.to_frame().itertuples():
        assert row.value == pytest.approx(whole(lm, row.sender, ["q.1.3"], mlps="recompute"), abs=1e-4)


def test_attention_that_cannot_be_run_on_some_positions_is_run_on_all_of_them():
    lm = loud("bloom")  # its biases by distance come as a tensor of all positions
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid = lk.path_patch(lm, IDS, CORRUPT_IDS, receiver="logits", **TINY)
    for row in grid.to_frame().itertuples():
        assert row.value == pytest.approx(whole(lm, row.sender, [], mlps="recompute"), abs=1e-4), row.sender


def test_rows_that_disagree_with_whole_runs_are_not_trusted(monkeypatch):
    lm = loud("llama")
    right = lk.path_patch(lm, IDS, CORRUPT_IDS, **TINY)
    CHECKED[lm].clear()
    block = BlockRunner.block
    monkeypatch.setattr(BlockRunner, "block", lambda self, layer, x, **more: block(self, layer, 1.1 * x, **more))
    with pytest.warns(UserWarning, match="where whole runs gave"):
        grid = lk.path_patch(lm, IDS, CORRUPT_IDS, **TINY)
    assert np.allclose(grid.values, right.values, atol=1e-5)


def test_a_model_without_attention_has_no_paths():
    lm = loud("mamba")
    with pytest.raises(ValueError, match="no paths to patch"):
        lk.path_patch(lm, IDS, CORRUPT_IDS, **TINY)


def test_identical_prompts_move_nothing_and_senders_above_the_receiver_say_nothing(lm32):
    grid = lk.path_patch(lm32, CLEAN, CLEAN, receiver="q.4.3", **ASKED)
    assert np.abs(grid.values - grid.clean).max() < 1e-4
    assert grid.complete
    grid = lk.path_patch(lm32, CLEAN, CORRUPT, receiver="q.4.3", **ASKED)
    assert (grid.values[4:] == np.float32(grid.corrupt)).all()
    assert not (grid.values[:4] == np.float32(grid.corrupt)).all()


def test_in_four_bits_the_head_that_writes_the_name_is_found(lm4):
    grid = lk.path_patch(lm4, CLEAN, CORRUPT, **ASKED)
    frame = grid.to_frame().sort_values("normalized", ascending=False)
    assert frame.iloc[0].sender == "z.23.3"
    assert frame.iloc[0].normalized > 0.4


def test_a_path_grid_is_saved_and_opened_and_its_code_gives_it_again(lm4, tmp_path):
    asked = {"receiver": ["q.23.3"], "senders": ["z.20.0", "mlp_out.20", "z.19.2"], "direction": "noise"}
    grid = lk.path_patch(lm4, CLEAN, CORRUPT, **ASKED, **asked)
    again = lk.open_grid(grid.save(tmp_path / "paths.npz"))
    assert isinstance(again, lk.PathGrid)
    assert repr(again) == repr(grid)
    assert np.array_equal(again.values, grid.values, equal_nan=True)
    assert again.labels("head")[-1] == "MLP"
    assert "Paths to q.23.3" in again.figure().layout.title.text
    names: dict = {}
    code = again.code()
    assert "lk.load(bits=4)" in code
    exec(code.replace("lk.load(bits=4)", "the_model"), {"the_model": lm4}, names)
    assert np.array_equal(names["paths"].values, grid.values, equal_nan=True)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"receiver": "mlp_out.3"}, "is not a receiver"),
        ({"receiver": "q"}, "is not a receiver"),
        ({"receiver": ["q.3.1", "logits"]}, "alone"),
        ({"receiver": ["q.3.1", "resid_pre.4"]}, "give it alone"),
        ({"receiver": "v.23.3"}, "head 3 uses v.23.1"),
        ({"receiver": "q.40.0"}, "out of range"),
        ({"senders": ["q.1.1"]}, "is not a sender"),
        ({"senders": []}, "senders is empty"),
        ({"senders": ["z.1.9"]}, "out of range"),
        ({"mlps": "hold"}, "mlps must be recompute or freeze"),
        ({"direction": "up"}, "direction denoise or noise"),
        ({"at": 14}, "out of range"),
        ({"metric": "rnak"}, "there is no metric"),
        ({"foil": "Johnathan Smith"}, "tokens"),
    ],
)
def test_what_cannot_work_is_said_before_the_model_runs(lm4, asked, says):
    with pytest.raises(ValueError, match=says):
        lk.path_patch(lm4, CLEAN, CORRUPT, **ASKED | asked)
