"""AttentionView without a front end: what it shows is what `lk.attention` gives, and little of it travels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import traitlets
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.attention_maps.base import without_sink
from labkit.attention_maps.head_scores import SCORES
from labkit.widgets.attention_view.head_finder import ranks
from labkit.widgets.attention_view.view import thumbnail_side
from labkit.widgets.blocks.head_picture import as_bytes, pooled


@pytest.fixture(scope="module")
def long_view(lm4):
    view = lk.AttentionView(lm4, "The quick brown fox. " * 120)
    view.wait(300)
    return view


@pytest.fixture
def view(lm4):
    view = lk.AttentionView(lm4, CLEAN, selection=(24, 4), against=CORRUPT, answer=" Mary", foil=" John")
    view.wait(300)
    return view


def shown(view, **settings):
    for name, value in settings.items():
        setattr(view, name, value)
    view.wait(300)
    return view.heatmap.values


# -- what travels -----------------------------------------------------------------------------------------------------


def test_the_first_payload_of_a_long_text_is_below_a_megabyte(long_view):
    parts = (long_view, long_view.heads, long_view.heatmap, long_view.strip, long_view.box)
    sent = 0
    for part in parts:
        state = part.get_state()
        arrays = [value for value in state.values() if isinstance(value, dict) and value.get("data") is not None]
        sent += sum(len(value["data"]) for value in arrays)
        rest = {k: v for k, v in state.items() if not any(v is one for one in arrays)}
        sent += len(json.dumps(rest, default=str))
    assert len(long_view.strip.tokens) > 512
    assert sent <= 1_000_000
    for layers, heads in ((126, 128), (80, 64), (30, 9), (1, 1)):
        assert layers * heads * thumbnail_side(layers, heads) ** 2 + 512 * 512 <= 1_000_000


def test_a_head_travels_as_the_bytes_of_its_triangle(lm4):
    view = lk.AttentionView(lm4, "The quick brown fox. " * 20, selection=(3, 2))
    view.wait(300)
    n = len(view.strip.tokens)
    wire = view.heatmap.get_state()["values"]
    assert wire["triangle"]
    assert wire["shape"] == [n, n]
    assert len(wire["data"]) == n * (n + 1) // 2
    pattern = view.patterns.pattern(3, 2)
    sent = np.frombuffer(wire["data"], np.uint8)
    np.testing.assert_array_equal(sent, as_bytes(pattern, 0, 1)[np.tril_indices(n)])


def test_a_lone_bright_cell_survives_pooling():
    matrix = np.zeros((1000, 1000), np.float32)
    matrix[777, 333], matrix[5, 5] = 1, -2
    small = pooled(matrix, 4)
    assert small.shape == (250, 250)
    assert small[777 // 4, 333 // 4] == 1
    assert small[1, 1] == -2
    assert pooled(matrix[:999], 4).shape == (250, 250)


def test_the_window_of_a_long_text_is_sent_in_full(long_view):
    n = len(long_view.strip.tokens)
    long_view.heatmap.window = (n - 100, n, 40, 140)
    assert long_view.heatmap.detail_at == (n - 100, n, 40, 140)
    pattern = long_view.patterns.pattern(*long_view.selection)
    np.testing.assert_array_equal(long_view.heatmap.detail, as_bytes(pattern[n - 100 :, 40:140], 0, 1))
    long_view.selection = (5, 5)  # another head, seen through the same window
    long_view.wait(300)
    pattern = long_view.patterns.pattern(5, 5)
    np.testing.assert_array_equal(long_view.heatmap.detail, as_bytes(pattern[n - 100 :, 40:140], 0, 1))
    long_view.heatmap.window = None
    assert long_view.heatmap.detail is None


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_it_shows_the_numbers_that_attention_gives(lm4, view):
    patterns = lk.attention(lm4, CLEAN)
    np.testing.assert_array_equal(view.heatmap.values, patterns.pattern(24, 4))
    np.testing.assert_array_equal(shown(view, selection=(29, 8)), patterns.pattern(29, 8))
    np.testing.assert_array_equal(shown(view, hide_sink=True), without_sink(patterns.pattern(29, 8)))
    view.hide_sink = False
    np.testing.assert_array_equal(shown(view, weighting="value"), patterns.value_weighted(29, 8))
    np.testing.assert_allclose(shown(view, weighting="rollout"), patterns.rollout(29), atol=1e-6)


def test_contributions_to_a_logit_are_of_the_last_token(view):
    shown(view, weighting="logit")
    found = view.patterns.contribution(" Mary", " John")
    np.testing.assert_array_equal(view.difference.values, found.values[24])
    np.testing.assert_array_equal(view.strip.values, found.values[24, 4])
    assert view.difference.row_axis == "head"
    view.finder.score = "contribution"
    view.wait(300)
    assert view.heads.order[0] == np.unravel_index(np.nanargmax(np.abs(found.heads)), found.heads.shape)
    shown(view, weighting="pattern")
    assert view.maps.box.children == (view.heatmap,)


def test_the_text_follows_the_pointer_until_a_token_is_locked(view):
    pattern = view.patterns.pattern(24, 4)
    view.strip.hovered = 5
    np.testing.assert_array_equal(view.strip.values, pattern[5])
    assert view.strip.title == "Where ·to (5) looks"
    view.strip.selection = 13
    view.strip.hovered = 2
    assert view.token == 13
    assert view.looks.bars.columns[0][1][0][0] == "1 ·Mary"
    view.direction = "to"
    np.testing.assert_array_equal(view.strip.values, pattern[:, 13])
    view.strip.selection = None
    assert view.token == 2
    view.heatmap.selection = (7, 3)
    assert view.strip.selection == 7
    view.heatmap.selection = view.strip.hovered = None
    assert view.strip.values is None


def test_the_text_shows_the_chosen_heads_together(view):
    heads = [(24, 4), (23, 3)]
    one, other = (view.patterns.pattern(*head) for head in heads)
    shown(view, chosen=heads, over="mean", token=13)
    np.testing.assert_allclose(view.strip.values, ((one + other) / 2)[13], atol=1e-6)
    shown(view, over="max")
    np.testing.assert_allclose(view.strip.values, np.maximum(one, other)[13], atol=1e-6)


def test_two_heads_prompts_or_models_are_compared(lm4, lm32, view):
    shown(view, compare="head", other_head=(23, 3))
    np.testing.assert_array_equal(view.other_map.values, view.patterns.pattern(23, 3))
    np.testing.assert_array_equal(view.difference.values, view.patterns.pattern(24, 4) - view.patterns.pattern(23, 3))
    shown(view, compare="prompt")
    np.testing.assert_array_equal(view.other_map.values, lk.attention(lm4, CORRUPT).pattern(24, 4))
    assert view.other_map.row_labels[9] == "·Mary"
    shown(view, against=CORRUPT + " a", compare="nothing")
    shown(view, compare="prompt")
    assert view.difference.values is None
    assert view.status.text.startswith("14 and 15 tokens: shown side by side; a difference needs")

    two = lk.AttentionView([lm4, lm32], CLEAN, selection=(24, 4), compare="model")
    two.wait(300)
    np.testing.assert_array_equal(two.other_map.values, lk.attention(lm32, CLEAN).pattern(24, 4))
    assert two.heatmap.title.startswith("4-bit")
    assert np.abs(two.difference.values).max() > 0


# -- finding heads ----------------------------------------------------------------------------------------------------


def test_heads_come_in_order_of_a_score_and_filtered(view):
    for name in SCORES:
        view.finder.score = name
        view.wait(300)
        grid = view.patterns.grid(name)
        assert view.heads.order == ranks(grid)[:120]
        assert grid[view.heads.order[0]] == np.nanmax(grid)
    view.finder.score, view.finder.at_least = "previous_token", 0.5
    view.wait(300)
    grid = view.patterns.grid("previous_token")
    assert set(view.heads.order) == {tuple(at) for at in np.argwhere(grid >= 0.5)}
    view.finder.ranked = False
    view.wait(300)
    assert view.heads.order is None
    assert set(view.heads.faint) == {tuple(at) for at in np.argwhere(grid < 0.5)}


def test_what_needs_an_order_is_hidden_without_one(lm4, view):
    for finder in (lk.AttentionView(lm4).finder, view.finder):
        finder.score = ""
        view.wait(300)
        assert finder._least.layout.display == "none"
        assert not finder._least.disabled


def test_a_search_finds_the_heads_where_one_token_looks_at_another(view):
    view.finder.look = (13, 1)
    view.wait(300)
    assert view.heads.order[0] == (24, 4)
    assert view.heads.title == "Heads where ·to looks at ·Mary"


def test_a_score_of_ones_own_orders_heads(lm4):
    view = lk.AttentionView(lm4, CLEAN, scores={"at_mary": lambda pattern: pattern[-1, 1]})
    view.wait(300)
    view.finder.score = "at_mary"
    view.wait(300)
    assert view.heads.order[0] == (24, 4)


# -- doing something --------------------------------------------------------------------------------------------------


def test_a_knock_out_shows_what_knock_out_gives(lm4, view):
    view.chosen = [(23, 3), (16, 0)]
    found = view.knock_out(60)
    expected = lk.knock_out(lm4, CLEAN, heads=[(23, 3), (16, 0)])
    torch.testing.assert_close(found.logits_after, expected.logits_after)
    assert view.action.bars.columns[1][1][0][0] == expected.top(1)[1][0][0]
    assert "logit difference" in view.action.bars.note
    view.action.how = "other"
    torch.testing.assert_close(
        view.knock_out(60).logits_after,
        lk.knock_out(lm4, CLEAN, heads=view.chosen, how="other", other=CORRUPT).logits_after,
    )
    scope = {"lm": lm4, "lk": lk}
    exec(view.code().split("bits=4)\n")[1], scope)
    torch.testing.assert_close(scope["found"].logits_after, view.action.found.logits_after)


def test_what_is_missing_is_said_in_words_and_nothing_is_lost(lm4):
    view = lk.AttentionView(lm4, CLEAN, selection=(3, 2))
    view.wait(300)
    before = view.heatmap.values
    for change, said in (
        ({"compare": "prompt"}, "Write another prompt to compare with"),
        ({"compare": "nothing", "weighting": "logit"}, "Write an answer, such as ' Mary'"),
    ):
        for name, value in change.items():
            setattr(view, name, value)
        with pytest.raises(ValueError, match=said[1:10]):
            view.wait(300)
        assert view.status.text.startswith(said)
        assert view.heatmap.values is before
    with pytest.raises(traitlets.TraitError, match="there is one model"):
        view.compare = "model"
    view.weighting = "pattern"
    view.wait(300)
    view.text = ""
    with pytest.raises(ValueError, match="the text is empty"):
        view.run(300)
    with pytest.raises(ValueError, match="two prompts and an answer"):
        view.patch_lab()


@pytest.mark.parametrize(
    "prompt", [[{"role": "user", "content": "Who are you?"}], torch.tensor([[5, 600, 7000, 5, 600]])]
)
def test_messages_and_ids_are_prompts_too(lm4, prompt):
    view = lk.AttentionView(lm4, prompt, selection=(3, 2))
    view.wait(300)
    patterns = lk.attention(lm4, prompt)
    np.testing.assert_array_equal(view.heatmap.values, patterns.pattern(3, 2))
    scope = {"lm": lm4}
    exec(view.code().replace("lm = lk.load(bits=4)\n", ""), scope)
    np.testing.assert_array_equal(scope["patterns"].pattern(3, 2), patterns.pattern(3, 2))
    view.text = "Another text"  # from now on it is this text
    view.run(300)
    assert [token.text for token in view.patterns.tokens] == ["Another", " text"]


def test_the_saved_picture_is_small(view, long_view):
    assert len(view.snapshot()) < 120_000
    assert len(long_view.snapshot()) < 400_000
