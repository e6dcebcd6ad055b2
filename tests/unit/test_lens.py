"""The logit lens and LensView: the last layer is the model itself, nothing large is kept, all can be repeated."""

import dataclasses
import threading
from html import unescape

import numpy as np
import pytest
import torch
from drawn import opened
from pair import CLEAN
from torch.profiler import ProfilerActivity, profile

import labkit as lk
from labkit.engine.wavefront import Cancelled
from labkit.lens import logit_lens as lens_module
from labkit.results import file as saved

EVIL = "<script>harm()</script><img src=x onerror='harm()'>"


@pytest.fixture(scope="module")
def view(lm4):
    """One view, wholly in this thread; tests leave it on the lens."""
    return lk.LensView(lm4, CLEAN, answer=" Mary", foil=" John", background=False)


# -- the lens ----------------------------------------------------------------------------------------------------------


def test_the_last_layer_says_what_the_model_says(lm):
    lens = lk.logit_lens(lm, CLEAN, follow=[" Mary", " John"])
    own = lm.run(CLEAN).logits[0].float()
    tolerance = 1e-4 if lm.bits == 32 else 0.05
    torch.testing.assert_close(lens.logits(-1), own, atol=tolerance * float(own.abs().max()), rtol=0)
    top = own.softmax(-1).topk(10)
    assert (lens.top_ids[-1, :, 0] == top.indices[:, 0].numpy()).all()
    np.testing.assert_allclose(lens.top_probabilities[-1], top.values.numpy(), atol=2e-3 if lm.bits == 32 else 0.02)
    np.testing.assert_array_equal(lens.final_ids, lens.top_ids[-1])
    assert lens.kl[-1].max() < 1e-5
    assert lens.kl[0].min() > 0.1
    assert lens.ranks[0, -1, -1] == 1
    assert lens.top(-1)[0][0] == "·Mary"


def test_numbers_are_those_of_the_formula_written_out(lm32):
    """A layer in the middle: norm and unembedding by hand on what leaves it."""
    run = lm32.run(CLEAN, read=["resid_post.20"])
    with torch.no_grad():
        logits = lm32.hf.lm_head(lm32.hf.model.norm(run["resid_post.20"]))[0]
    here, own = logits.log_softmax(-1), run.logits[0].log_softmax(-1)
    mary = lm32.tokenizer(" Mary").input_ids[0]
    lens = lk.logit_lens(lm32, CLEAN, follow=" Mary")
    np.testing.assert_array_equal(lens.top_ids[20], logits.topk(10).indices.numpy())
    np.testing.assert_allclose(lens.entropy[20], -(here.exp() * here).sum(-1).numpy(), atol=1e-4)
    np.testing.assert_allclose(lens.kl[20], (own.exp() * (own - here)).sum(-1).numpy(), atol=1e-3)
    np.testing.assert_array_equal(lens.ranks[0, 20], (logits > logits[:, mary, None]).sum(-1).numpy() + 1)
    np.testing.assert_allclose(lens.probabilities[0, 20], here[:, mary].exp().numpy(), atol=1e-5)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_a_part_alone_is_read_the_same_way(lm32, site):
    lens = lk.logit_lens(lm32, CLEAN, site=site)
    with torch.no_grad():
        logits = lm32.hf.lm_head(lm32.hf.model.norm(lm32.run(CLEAN, read=[f"{site}.23"])[f"{site}.23"]))[0]
    np.testing.assert_array_equal(lens.top_ids[23, :, 0], logits.argmax(-1).numpy())
    assert lens.kl[-1].max() > 0.01  # it is not the model's own answer


def test_blocks_of_positions_and_chosen_positions_give_the_same(lm32, monkeypatch):
    whole = lk.logit_lens(lm32, CLEAN, follow=" Mary")
    monkeypatch.setattr(lens_module, "AT_ONCE", 4 * lm32.n_vocab)
    blocks = lk.logit_lens(lm32, CLEAN, follow=" Mary")
    np.testing.assert_array_equal(blocks.top_ids[:, :, 0], whole.top_ids[:, :, 0])
    np.testing.assert_allclose(blocks.kl, whole.kl, atol=1e-3)
    some = lk.logit_lens(lm32, CLEAN, positions=[-1, 9], follow=" Mary")
    assert some.positions == [9, 13]
    np.testing.assert_array_equal(some.ranks[0], whole.ranks[0][:, [9, 13]])
    assert some.top(20, -1)[0][0] == whole.top(20, 13)[0][0]
    with pytest.raises(
        ValueError, match=r"no layer 3, position 4; it read resid_post at layers 0 to 29 and positions 9, 13"
    ):
        some.top(3, 4)


def test_layers_times_positions_times_vocabulary_never_exists(lm32):
    """The highest of all allocations against the whole table of logits in float32."""
    lk.logit_lens(lm32, CLEAN)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        lk.logit_lens(lm32, CLEAN)
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    one_layer = 4 * 14 * lm32.n_vocab
    assert held.max() < 8 * one_layer  # of 30


def test_what_is_kept_is_compact(lm4):
    lens = lk.logit_lens(lm4, CLEAN, follow=" Mary")
    assert lens.top_ids.dtype == np.int32
    assert lens.top_probabilities.dtype == np.float16
    arrays = [value for value in vars(lens).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) < 100 * 30 * 14


def test_a_token_that_was_not_followed_is_ranked_when_asked_for(lm4):
    lens = lk.logit_lens(lm4, CLEAN, follow=" Mary")
    assert lens.rank(" Mary") is lens.ranks[0] or (lens.rank(" Mary") == lens.ranks[0]).all()
    assert (lens.rank(" John")[-1, -1]) > 1
    with pytest.raises(ValueError, match="rank of which token"):
        lk.logit_lens(lm4, CLEAN, positions=[-1]).shade("rank")


def test_the_words_of_a_figure_fit_their_cells_and_are_no_tags(lm4):
    chat = lk.Chat([{"role": "user", "content": "Name a colour."}])
    figure = lk.logit_lens(lm4, chat).figure()
    heat = figure.data[0]
    assert next(label for label in heat.x if "im_start" in label) == "0 &lt;|im_start|&gt;"  # plotly leaves tags out
    assert not any("<" in word for row in (*heat.text, *heat.hovertext) for word in row)
    room = figure.layout.width / len(heat.x) / 6  # pixels of a letter
    assert all(len(unescape(word)) <= room for row in heat.text for word in row)
    for shown, whole in zip(heat.text, heat.hovertext, strict=True):
        assert all(
            b.startswith(a.removesuffix("…")) for a, b in zip(map(unescape, shown), map(unescape, whole), strict=True)
        )
    assert lk.logit_lens(lm4, CLEAN).figure().layout.width <= 748  # as wide as a narrow notebook


def test_code_frame_figure_and_file_hold_the_same(lm4, tmp_path):
    lens = lk.logit_lens(lm4, CLEAN, site="mlp_out", positions=[9, 13], follow=[" Mary"], k=5)
    scope: dict = {}
    exec(lens.code(), scope)
    np.testing.assert_array_equal(scope["lens"].top_ids, lens.top_ids)
    frame = lens.to_frame()
    assert len(frame) == 60
    assert list(frame["rank of ' Mary'"]) == lens.ranks[0].ravel().tolist()
    for shade in lens_module.SHADES:
        assert lens.figure(shade).data[0].hovertext[29][1] == lens.top(29, 13)[0][0]
    again = lk.open_lens(lens.save(tmp_path / "a.npz"))
    for name in lens_module._ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(lens, name))
    assert repr(again) == repr(lens)
    assert again.top(20) == lens.top(20)
    with pytest.raises(ValueError, match=r"open it with lk.open_lens\(path, lm\)"):
        again.rank(" John")
    assert lk.open_lens(tmp_path / "a.npz", lm4).rank(" John").shape == (30, 2)
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a lens saved by labkit"):
        lk.open_lens(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        lk.open_lens(tmp_path / "c.npz")


def test_ranks_of_an_older_file_are_counted_from_one_when_it_is_opened(lm4, tmp_path, monkeypatch):
    lens = lk.logit_lens(lm4, CLEAN, positions=[13], follow=[" Mary"])
    monkeypatch.setitem(saved.KINDS, "lens", dataclasses.replace(saved.KINDS["lens"], newest=1))
    old = dataclasses.replace(lens, ranks=lens.ranks - 1).save(tmp_path / "old.npz")
    monkeypatch.undo()
    np.testing.assert_array_equal(lk.open_lens(old).ranks, lens.ranks)
    assert lens.ranks.min() == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"site": "z"}, "a lens reads resid_post, attn_out, mlp_out; got 'z'"),
        ({"positions": [14]}, "position 14 is out of range; the prompt has 14 tokens"),
        ({"positions": []}, "no positions to read"),
        ({"follow": "antidisestablishment"}, "it must be one"),
        ({"k": 0}, "at least 1; got 0"),
    ],
)
def test_bad_settings_are_answered_in_words(lm4, settings, says):
    with pytest.raises(ValueError, match=says):
        lk.logit_lens(lm4, CLEAN, **settings)


def test_it_stops_when_told_to(lm4):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        lk.logit_lens(lm4, CLEAN, stop=stop)


# -- LensView ----------------------------------------------------------------------------------------------------------


def test_a_view_shows_what_the_function_gives(view, lm4):
    lens = lk.logit_lens(lm4, CLEAN, follow=" Mary")
    assert view.selection == (29, 13)
    np.testing.assert_array_equal(view.lens.top_ids, lens.top_ids)
    heatmap = view.lens_face.heatmap
    assert heatmap.texts == [lens.words[int(id)].display for id in lens.top_ids[:, :, 0].ravel()]
    np.testing.assert_allclose(heatmap.values, lens.top_probabilities[:, :, 0].astype(np.float32))
    assert "rank of ·Mary: 1" in heatmap.notes[-1]
    heatmap.selection = (20, 9)  # a click
    assert view.selection == (20, 9)
    assert view.lens_face.bars.columns[0][1][0][0] == lens.top(20, 9)[0][0]
    assert len(view.lens_face.bars.columns[0][1]) == 10
    np.testing.assert_allclose(view.lens_face.curve.values, np.log10(lens.ranks[0, :, 9]), rtol=1e-5)
    view.lens_face.curve.selection = 29
    assert view.selection == (29, 9)
    view.selection = (29, 13)
    assert heatmap.selection == (29, 13)


def test_colours_sites_and_followed_tokens_are_settings(view):
    heatmap = view.lens_face.heatmap
    for shade, unit in (("entropy", "entropy (nats)"), ("kl", "KL to final layer (nats)"), ("rank", "rank of ·Mary")):
        view.shade = shade
        assert heatmap.unit == unit
    assert heatmap.scale == "order"
    assert heatmap.values[-1, -1] == 0
    view.follow = " John"
    view.wait(300)
    assert view.lens.followed[0].text == " John"
    assert heatmap.unit == "rank of ·John"
    view.site = "attn_out"
    view.wait(300)
    assert view.lens.site == "attn_out"
    view.follow = "antidisestablishment"
    assert "it must be one" in view.status.text
    assert view.status.kind == "error"
    assert view.lens.site == "attn_out"  # what was there is still there
    view.follow, view.site, view.shade = "", "resid_post", "probability"
    assert view.status.kind == "info"


def test_direct_attribution_is_the_functions_own_and_its_parts_add_up(view, lm4):
    view.face = "direct"
    view.wait(300)
    found = lk.direct_logit_attribution(lm4, CLEAN, " Mary", " John")
    np.testing.assert_allclose(view.attribution.heads, found.heads)
    np.testing.assert_allclose(view.direct_face.heads.values, found.heads)
    np.testing.assert_allclose(view.direct_face.parts.values, np.stack([found.attn, found.mlp], 1))
    parts = found.embed + found.attn.sum() + found.mlp.sum() + found.bias + found.rest
    assert parts == pytest.approx(found.total, abs=1e-3)
    assert f"is +{found.total:.2f}; the parts add up to +{parts:.2f}." in view.direct_face.sum.text
    view.foil = "johns"
    assert "The foil 'johns' is 3 tokens" in view.status.text
    assert view.attribution.total == found.total  # what was there is still there
    view.foil, view.answer = " John", ""
    assert view.attribution.answer == " Mary"  # what the model itself says
    view.answer, view.face = " Mary", "lens"


def test_its_code_does_the_same_without_it(view):
    scope: dict = {}
    exec(view.code(), scope)
    np.testing.assert_array_equal(scope["lens"].top_ids, view.lens.top_ids)
    view.face = "direct"
    exec(view.code(), scope)
    assert scope["found"].total == view.attribution.total
    view.face = "lens"


def test_token_ids_and_messages_are_used_as_given_until_somebody_types(lm4):
    ids = lm4.encode(CLEAN)
    view = lk.LensView(lm4, ids, background=False)
    assert view.lens.recipe["ids"] == ids[0].tolist()
    assert view.box.value == CLEAN
    assert "14 token ids" in view.box.label
    view.box.value = "Once upon a"
    assert view.prompt == "Once upon a"
    assert view.box.label == "Prompt"
    assert view.run().recipe["ids"] == lm4.encode("Once upon a")[0].tolist()
    chat = lk.LensView(lm4, [{"role": "user", "content": "Hello"}], background=False)
    assert chat.lens.recipe["ids"] == lm4.encode([{"role": "user", "content": "Hello"}])[0].tolist()
    assert chat.lens.top(-1)[0][0]


def test_of_a_long_prompt_the_end_is_read_first_and_the_window_can_move(lm4):
    view = lk.LensView(lm4, "one two three four five six seven eight nine ten " * 6, background=False)
    length = len(view.lens.tokens)
    assert view.lens.positions == list(range(length - 20, length))
    view.lens_face._window.value = (3, 12)
    assert view.lens.positions == list(range(3, 13))
    assert view.selection == (29, 12)
    view.prompt = "one two three"
    view.run()
    assert view.lens.positions == [0, 1, 2]


def test_an_empty_prompt_is_answered_and_nothing_is_lost(view):
    before = view.lens
    view.prompt = ""
    with pytest.raises(ValueError, match="the prompt is empty"):
        view.run()
    assert view.lens is before
    view.prompt = CLEAN
    view.run()


def test_markup_stays_text_in_its_picture(lm4):
    view = lk.LensView(lm4, EVIL, background=False)
    view.wait(300)
    for face in ("lens", "direct", "steering"):
        view.face = face
        view.wait(300)
        picture = opened(view.snapshot())
        assert "<script" not in picture
        assert "<img" not in picture
    assert repr(view).startswith("LensView('SmolLM2-135M-Instruct'")
