"""The small model of tests/files, trained in full precision: what it can do in 32 and 4 bits, and how it is made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

import labkit as lk

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "files" / "small_llama"
sys.path.insert(0, str(ROOT / "tools"))

import small_model  # noqa: E402

BITS = (32, 4)
SHARES = {
    "indirect object": 0.85, "greater than": 0.85, "factual recall": 0.9, "gender and occupation": 0.9,
    "subject-verb agreement": 0.9, "docstring": 0.9, "induction": 0.75, "sums": 0.85,
}  # fmt: skip
"""What it does of each task at least, in both: a little less than was measured."""
PERPLEXITY = 3.668


@pytest.fixture(scope="module", params=BITS, ids=lambda bits: f"{bits} bits")
def small(request: pytest.FixtureRequest) -> lk.LanguageModel:
    return lk.load(FOLDER, bits=request.param, device="cpu", progress=False)


def test_it_does_the_tasks_in_full_precision_and_in_4_bits(small: lk.LanguageModel) -> None:
    found = {name: check.share for name, check in small_model.checks(small, 25).items()}
    assert found.keys() == SHARES.keys()
    assert {name: share for name, share in found.items() if share < SHARES[name]} == {}


def test_its_weights_are_full_precision_and_fit_the_blocks_of_4_bits() -> None:
    weights = load_file(FOLDER / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert 1e6 < sum(weight.numel() for weight in weights.values()) < 2e6
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            assert (weight.shape[0] % 32, weight.shape[1] % 64) == (0, 0), name
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_4_bits_cost_something_and_little() -> None:
    full, quantised = (
        small_model.perplexity(lk.load(FOLDER, bits=bits, device="cpu", progress=False)) for bits in BITS
    )
    assert full == pytest.approx(PERPLEXITY, rel=0.01)
    assert full < quantised < 1.1 * full


def test_its_tokenizer_gives_text_back_and_knows_the_words_whole(small: lk.LanguageModel) -> None:
    written = small_model.texts(7)
    for text in [next(written).replace("|", "") for _ in range(200)] + ["Zoë’s 12 naïve cats?\n\n  — 猫"]:
        ids = small.tokenizer(text).input_ids
        assert small.tokenizer.decode(ids, skip_special_tokens=True) == text
    mary = small.tokenizer(" Mary", add_special_tokens=False).input_ids
    assert len(mary) == 1
    assert [token.text for token in small.tokens("When Mary")] == ["<|end|>", "When", " Mary"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """Two models of three steps."""
    folders = [tmp_path_factory.mktemp("small") for _ in range(2)]
    for folder in folders:
        small_model.main([str(folder), "--steps", "3", "--pairs", "1"])
    return folders


def test_the_script_makes_the_same_model_twice(short: Sequence[Path]) -> None:
    one, other = (load_file(folder / "model.safetensors") for folder in short)
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)


def test_the_stored_model_has_the_words_and_the_shape_that_the_script_gives(short: Sequence[Path]) -> None:
    stored, now = (json.loads((folder / "tokenizer.json").read_text("utf-8")) for folder in (FOLDER, short[0]))
    assert stored["model"]["vocab"] == now["model"]["vocab"]
    stored, now = (json.loads((folder / "config.json").read_text("utf-8")) for folder in (FOLDER, short[0]))
    assert stored["vocab_size"] == now["vocab_size"]
    for name in small_model.SHAPE:
        assert stored[name] == now[name], name
