"""Scoring a text, and holding two texts beside each other."""

import math

import pytest
import torch

import labkit as lk
from labkit.generation.token_table import Distribution, largest
from labkit.text.diff import beside, differing, stretches
from labkit.text.tokens import bytes_of, split_characters

TEXT = "The quick brown fox jumps over the lazy dog.\n\tdef f(x):\n\t\treturn x  # 你好 😀 שלום"


def test_token_log_probabilities_sum_to_the_log_probability_of_a_plain_forward(lm32):
    ids = lm32.encode(TEXT)
    with torch.no_grad():
        logits = lm32.hf(ids).logits[0, :-1].double()
    theirs = float(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum())
    score = lk.score(lm32, TEXT)
    assert score.logprob == pytest.approx(theirs, abs=1e-4)
    assert score.record.total == pytest.approx(sum(math.log(t.probability) for t in score.tokens[1:]), abs=1e-3)
    assert score.perplexity == pytest.approx(math.exp(-theirs / (ids.shape[1] - 1)), rel=1e-5)
    size = len("".join(t.text for t in score.prompt[1:] if "\ufffd" not in t.text).encode())
    assert 0 < score.bits_per_byte < -theirs / math.log(2) / size


def test_entropy_rank_and_alternatives_are_those_of_the_distribution(lm32):
    score = lk.score(lm32, "The capital of France is Paris")
    p = lm32.run("The capital of France is Paris").logits[0].float().softmax(-1)
    for place in range(1, len(score.tokens)):
        token, row = score.tokens[place], p[place - 1]
        assert token.entropy == pytest.approx(float(-(row * row.log2()).nansum()), rel=1e-3)
        assert token.rank == int((row > row[token.id]).sum()) + 1
        assert [id for id, _, _ in token.alternatives[:2]] == row.topk(2).indices.tolist()
    assert math.isnan(score.tokens[0].probability)
    assert score.to_frame()["rank"].tolist()[-1] == 1
    first = score.to_frame().iloc[0]
    assert score.tokens[0].rank is None
    assert first[["probability", "rank"]].isna().all()


def test_a_surprise_is_found(lm4):
    score = lk.score(lm4, "Monday, Tuesday, Wednesday, Thursday, banana, Saturday, Sunday")
    place, token = score.surprises(1)[0]
    assert "ban" in token.token.text
    assert "·Friday" in [text for _, text, _ in token.alternatives[:3]]
    assert score.tokens[place].id == token.id


def test_a_score_is_stored_in_under_eighty_bytes_a_token(lm4):
    record = lk.score(lm4, TEXT).record
    assert record.rows.nbytes / len(record) <= 80
    assert record.rows["top_ids"].shape[1] == 10
    assert record.rows["top_probabilities"].dtype == "float16"


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("a", "single token"), ("a " * 9000, "the 8192")])
def test_what_cannot_be_scored_is_told(lm4, text, says):
    with pytest.raises(ValueError, match=says):
        lk.score(lm4, text)


def test_the_beginning_of_a_text_that_is_too_long_can_be_left_out(lm4, monkeypatch):
    monkeypatch.setattr(lm4.config, "max_position_embeddings", 20)
    with pytest.raises(ValueError, match="10 more than the 20"):
        lk.score(lm4, " a" * 30)
    assert len(lk.score(lm4, " a" * 30, truncate_left=True).record) == 20


def test_code_scores_again(lm4):
    names: dict = {"lm": lm4, "lk": lk}
    exec(lk.score(lm4, TEXT).code().split("bits=4)\n")[1], names)
    assert names["score"].logprob == lk.score(lm4, TEXT).logprob


# -- beside each other -------------------------------------------------------------------------------------------------


def pieces(text):
    return [piece.encode() for piece in text.split("|")]


def test_the_same_text_is_cut_where_both_have_a_border():
    found = stretches(pieces("The| quick|ly| fox"), pieces("Th|e| quickly| f|ox"))
    assert [(s.left, s.left_stop, s.right, s.right_stop) for s in found] == [(0, 1, 0, 2), (1, 3, 2, 3), (3, 4, 3, 5)]
    assert all(s.same for s in found)
    assert list(beside(found, 2)) == [2]
    assert list(beside(found, 1, left=False)) == [0]


def test_what_differs_is_marked_and_what_follows_is_aligned_again():
    left, right = pieces("The| cat| sat| on| the| mat|."), pieces("The| dog|gy| sat| on| the| m|at|.")
    assert differing(stretches(left, right)) == ([1], [1, 2])


def test_texts_without_a_word_in_common_differ_altogether():
    assert differing(stretches(pieces("a| b"), pieces("x| y| z"))) == ([0, 1], [0, 1, 2])
    assert differing(stretches([], pieces("x"))) == ([], [0])
    assert stretches([], []) == []


def test_stretches_cover_both_texts_in_order(lm4):
    other = "The quick brown fox jumped over a lazy dog! 你好吗 😀"
    left, right = (bytes_of(lm4.tokenizer, lm4.encode(text)[0].tolist()) for text in (TEXT, other))
    assert b"".join(left).decode() == TEXT
    found = stretches(left, right)
    assert [n for s in found for n in range(s.left, s.left_stop)] == list(range(len(left)))
    assert [n for s in found for n in range(s.right, s.right_stop)] == list(range(len(right)))
    for s in found:
        assert s.same == (b"".join(left[s.left : s.left_stop]) == b"".join(right[s.right : s.right_stop]))


def test_a_character_that_is_split_over_tokens_is_named_at_each(lm4):
    ids = lm4.encode("a 😀 b 你").tolist()[0]
    found = split_characters(lm4.tokenizer, ids)
    assert set(found.values()) == {"😀", "你"}
    assert all("‹" in token.display for n, token in enumerate(lm4.tokens("a 😀 b 你")) if n in found)
    assert [token.display for token in lm4.tokens("a 😀")][1].startswith("·‹F0 9F")


@pytest.mark.parametrize("size", [100, 20_000, 49_152, 50_257])
def test_the_largest_of_a_vocabulary_are_those_of_topk(size):
    for seed in range(5):
        values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        values[7], values[size - 1] = 50.0, -torch.inf
        found, at = largest(values, 10)
        assert torch.equal(found, values.topk(10).values)
        assert torch.equal(at, values.topk(10).indices)


def test_the_entropy_of_a_distribution_with_impossible_tokens_is_a_number():
    logits = torch.tensor([0.0, 0.0, -torch.inf, 0.0, 0.0])
    row = Distribution(logits, 2).row(1)
    assert row[2] == pytest.approx(2.0)
    assert row[3] == 1
