"""A benchmark counts what a plain forward pass prefers, and says how sure that is and where the items come from."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import labkit as lk
from labkit.audits.benchmark import BenchmarkJob, items_of
from labkit.datasets.items import FORMATS, from_frame, read_table
from labkit.datasets.mini import MINI
from labkit.generation import continuations
from labkit.results.bootstrap import interval, interval_of_mean

SMALL = Path(__file__).parents[1] / "files" / "small_llama"
PAIRS = pd.DataFrame({
    "good": ["When Mary and John went to the store, John gave a drink to Mary", "Mary went to the park"],
    "bad": ["When Mary and John went to the store, John gave a drink to John", "Mary went the to park"],
    "category": ["names", "order"],
})  # fmt: skip
QUESTIONS = pd.DataFrame({
    "prompt": ["The capital of France is", "The capital of Italy is the city of", "Two and two make"],
    "choices": [["Paris", "Rome"], ["London", "Rome", "Berlin"], ["four", "five"]],
    "answer": ["Paris", 1, "0"],
    "category": ["cities", "cities", "numbers"],
})  # fmt: skip


@pytest.fixture(scope="module")
def small() -> lk.LanguageModel:
    return lk.load(SMALL, bits=32, progress=False)


@pytest.fixture(scope="module")
def other(small) -> lk.LanguageModel:
    """A model with the same tokenizer that knows less."""
    changed = copy.deepcopy(small)
    with torch.no_grad():
        changed.hf.model.layers[2].self_attn.o_proj.weight.zero_()
        changed.hf.model.layers[1].mlp.down_proj.weight.zero_()
    return changed


@pytest.fixture
def data(tmp_path):
    """A folder with small sets in the formats and folders of the published ones."""
    blimp = tmp_path / "blimp-master" / "data"
    crows = tmp_path / "crows-pairs" / "data"
    blimp.mkdir(parents=True)
    crows.mkdir(parents=True)
    for paradigm, term in (("adjunct_island", "island_effects"), ("wh_island", "island_effects"), ("npi", "npi")):
        labels = {"UID": paradigm, "linguistics_term": term}
        rows = [{"sentence_good": good, "sentence_bad": bad, **labels} for good, bad, _ in MINI[3:6]]
        (blimp / f"{paradigm}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    pd.DataFrame({
        "sent_more": ["Mary gave the key to John", "None of the boys", "The same"],
        "sent_less": ["John gave the key to Mary", "None of the girls", "The same"],
        "stereo_antistereo": ["stereo", "antistereo", "stereo"],
        "bias_type": ["gender", "gender", "age"],
        "annotations": ["[]"] * 3,
    }).to_csv(crows / "crows_pairs_anonymized.csv")  # fmt: skip
    return tmp_path


def total(lm, prompt, text):
    """The log-probability of a text after a prompt, or after BOS."""
    start = lm.encode(prompt)[0].tolist() if prompt else []
    ids = lm.tokenizer(prompt + text).input_ids if prompt else lm.tokenizer(text, add_special_tokens=False).input_ids
    if not prompt:
        start, ids = [lm.tokenizer.bos_token_id], [lm.tokenizer.bos_token_id, *ids]
    with torch.no_grad():
        logits = lm.hf(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return float(logits.gather(1, torch.tensor(ids)[1:, None])[len(start) - 1 :].sum())


def test_the_choice_counted_is_the_one_a_plain_forward_prefers(lm32):
    found = lk.benchmark(lm32, QUESTIONS, progress=False)
    expected = np.full((3, 3), np.nan)
    for n, row in QUESTIONS.iterrows():
        for choice, text in enumerate(row.choices):
            expected[n, choice] = total(lm32, row.prompt, f" {text}")
    assert np.allclose(found.logprobs, expected, atol=1e-4, equal_nan=True)
    assert found.right().tolist() == (np.nanargmax(expected, 1) == [0, 1, 0]).astype(float).tolist()
    sizes = np.array([[5, 4, 1], [6, 4, 6], [4, 4, 1]])  # of the choices without the space that joins them
    assert found.chosen("per_byte").tolist() == np.nanargmax(expected / sizes, 1).tolist()
    assert found.chosen("per_token").tolist() == np.nanargmax(expected / np.maximum(found.tokens, 1), 1).tolist()
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    frame = found.to_frame()
    assert list(frame.index) == ["cities", "numbers", "all"]
    assert frame["items"].tolist() == [2, 1, 3]
    assert frame.loc["all", "accuracy"] == found.right().mean()
    items = found.items()
    assert items.right.tolist() == (found.right() == 1).tolist()
    assert items.margin[0] == pytest.approx(expected[0, 0] - expected[0, 1], abs=1e-4)


def test_sentences_are_scored_after_bos(lm32):
    found = lk.benchmark(lm32, PAIRS, progress=False)
    expected = [[total(lm32, "", text) for text in (row.good, row.bad)] for row in PAIRS.itertuples()]
    assert np.allclose(found.logprobs, expected, atol=1e-4)
    assert found.right().tolist() == [1, 1]


def test_blimp_is_read_by_paradigm_and_phenomenon(small, data, monkeypatch):
    found = lk.benchmark(small, "blimp", data_dir=data, progress=False)
    assert found.data.name == "BLiMP, 3 of 67 parts"  # and not taken for the whole
    assert list(found.to_frame().index) == ["island_effects", "npi", "all"]
    by = found.to_frame("paradigm")
    assert by["items"].to_dict() == {"adjunct_island": 3, "npi": 3, "wh_island": 3, "all": 9}
    assert (by.low <= by.accuracy).all()
    assert (by.accuracy <= by.high).all()
    first = found.data.items[0]
    assert first.delimiter == " "  # as the harness joins them
    assert found.logprobs[0, 0] == pytest.approx(total(small, "", f" {first.choices[0]}"), abs=1e-4)
    limited = lk.benchmark(small, "blimp", data_dir=data / "blimp-master" / "data", limit=2, progress=False)
    assert limited.to_frame("paradigm")["items"].tolist() == [2, 2, 2, 6]
    monkeypatch.setenv("LABKIT_DATA", str(data))
    assert items_of("blimp").items == found.data.items
    assert items_of(data / "blimp-master" / "data").items == found.data.items
    assert "people agree with 96 %" in found.words()


def test_crows_pairs_are_a_preference(small, data):
    found = lk.benchmark(small, "crows_pairs", data_dir=data, progress=False)
    assert found.data.items[1].choices[0] == "None of the boys"  # not a missing value
    frame = found.to_frame()
    assert list(frame.columns[:4]) == ["items", "preference", "low", "high"]
    assert list(frame.index) == ["gender", "age", "all"]
    assert frame.loc["age", "preference"] == 0  # neither of two equal sentences is preferred
    logprobs = found.logprobs
    assert frame.loc["all", "preference"] == (logprobs[:, 0] > logprobs[:, 1]).mean()
    assert "50 would be none" in found.words()
    assert "Blodgett et al. 2021" in found.words()
    assert list(found.to_frame("direction").index) == ["stereo", "antistereo", "all"]


def test_the_mini_set_is_always_there(lm4):
    found = lk.benchmark(lm4, "mini", progress=False)
    frame = found.to_frame()
    assert len(MINI) >= 60
    assert frame.loc["all", "items"] == len(MINI)
    assert frame["items"][:-1].eq(8).all()
    assert len(set(MINI)) == len(MINI)
    assert all(good != bad and "[" not in good + bad for good, bad, _ in MINI)
    assert frame.loc["all", "low"] > 0.5  # a model of English does better than guessing
    assert "guessing gets 50.0" in found.words()


@pytest.mark.parametrize("name", ["items.csv", "items.tsv", "items.jsonl", "items.json"])
def test_a_file_is_read_as_its_frame(small, tmp_path, name):
    path = tmp_path / name
    frame = QUESTIONS.assign(choices=[json.dumps(choices) for choices in QUESTIONS.choices])
    if name.endswith("sv"):
        frame.to_csv(path, index=False, sep="," if name == "items.csv" else "\t")
    else:
        QUESTIONS.to_json(path, orient="records", lines=name == "items.jsonl")
    assert items_of(path).items == items_of(QUESTIONS).items
    found = lk.benchmark(small, path, progress=False)
    assert found.data.name == name
    scope: dict = {}
    exec(found.code(), scope)
    assert np.array_equal(scope["result"].logprobs, found.logprobs, equal_nan=True)


def test_two_models_are_compared_item_by_item(small, other, tmp_path):
    task = lk.task("indirect object").pairs(small, n=40)
    frame = pd.DataFrame({
        "good": [pair.clean + pair.answer for pair in task], "bad": [pair.clean + pair.foil for pair in task],
        "category": ["a", "b"] * 20,
    })  # fmt: skip
    both = lk.benchmark(small, frame, compare=other, progress=False)
    alone = lk.benchmark(other, frame, progress=False)
    assert np.allclose(both.other.logprobs, alone.logprobs, atol=1e-4)
    assert both.other.recipe["load"] == other.code()
    values = both.right() - alone.right()
    assert values.mean() > 0  # what was taken from it matters
    difference = both.difference
    assert difference.values().tolist() == values.tolist()
    row = difference.to_frame().loc["all"]
    assert row.difference == pytest.approx(values.mean())
    assert row["first"] - row["second"] == pytest.approx(row.difference)
    assert row.changed == (values != 0).mean()
    low, high = interval(lambda weights: weights @ values, len(values), resamples=20000)
    assert row.low == pytest.approx(float(low), abs=0.03)
    assert row.high == pytest.approx(float(high), abs=0.03)
    assert list(difference.to_frame().index) == ["a", "b", "all"]
    assert both.words().count("percentage points more often") == 1
    again = lk.benchmark(small, frame, compare=alone, progress=False)  # a result in the place of a model
    assert again.difference.values().tolist() == values.tolist()
    assert lk.benchmark(small, frame[::-1], progress=False).minus(alone).to_frame().loc["all"].equals(row)
    opened = lk.open_benchmark(both.save(tmp_path / "both.npz"))
    assert opened.difference.to_frame().equals(difference.to_frame())
    assert opened.words() == both.words()
    assert (
        len(both.figure().data)
        == len(both.figure("category", way="per_byte").data)
        == 2 - (both.model == both.other.model)
    )
    assert len(difference.figure().data) == 1


def test_a_model_has_no_difference_from_itself(small):
    found = lk.benchmark(small, PAIRS, compare=small, progress=False)
    row = found.difference.to_frame().loc["all"]
    assert (row.difference, row.low, row.high, row.changed) == (0, 0, 0, 0)


def test_a_result_is_saved_opened_drawn_and_said_as_code(small, data, tmp_path):
    for found in (
        lk.benchmark(small, "blimp", data_dir=data, limit=1, by="paradigm", progress=False),
        lk.benchmark(small, QUESTIONS, progress=False),
    ):
        opened = lk.open_benchmark(found.save(tmp_path / "benchmark.npz"))
        assert opened.to_frame().equals(found.to_frame())
        assert opened.items().equals(found.items())
        assert (opened.words(), opened.code(), repr(opened)) == (found.words(), found.code(), repr(found))
        assert opened.recipe == found.recipe
        figure = found.figure()
        assert len(figure.data) == 1
        assert len(figure.data[0].x) == len(found.to_frame())
        assert figure.layout.xaxis.title.text == "accuracy, % of items"
        scope: dict = {}
        exec(found.code(), scope)
        assert scope["result"].to_frame().equals(found.to_frame())


def test_an_interrupt_keeps_the_items_that_are_done(small, monkeypatch):
    real, passes = continuations.measured_tail, []

    def stopped(*args):
        passes.append(args)
        if len(passes) == 6:
            raise KeyboardInterrupt
        return real(*args)

    whole = lk.benchmark(small, "mini", progress=False)
    monkeypatch.setattr(continuations, "measured_tail", stopped)
    with pytest.warns(UserWarning, match=r"interrupted: \d+ of 128 texts are in the benchmark"):
        found = lk.benchmark(small, "mini", batch=8, progress=False)
    done = found.done
    assert 0 < done.sum() < len(done)
    assert np.allclose(found.logprobs[done], whole.logprobs[done], atol=1e-4)
    assert found.to_frame().loc["all", "items"] == done.sum()
    assert f"{(~done).sum()} items were not reached" in found.words()
    assert found.minus(whole).values().tolist() == [0] * int(done.sum())  # on those that both have


def test_an_error_carries_what_is_done(small, monkeypatch):
    real, passes = continuations.measured_tail, []

    def broken(*args):
        passes.append(args)
        if len(passes) == 6:
            raise RuntimeError("no more")
        return real(*args)

    monkeypatch.setattr(continuations, "measured_tail", broken)
    with pytest.raises(RuntimeError, match="no more") as error:
        lk.benchmark(small, "mini", batch=8, progress=False)
    assert 0 < error.value.benchmark.done.sum() < len(MINI)


def test_a_job_that_has_not_begun_has_no_numbers(small):
    empty = BenchmarkJob(small, "mini").benchmark
    assert empty.words() == "Nothing has been measured yet."
    assert "nothing measured" in repr(empty)
    assert empty.to_frame()["items"].tolist() == [0]


@pytest.mark.parametrize("name", ["blimp", "crows_pairs"])
def test_a_set_that_is_missing_says_where_to_get_it(small, tmp_path, monkeypatch, name):
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing_there)
    with pytest.raises(FileNotFoundError, match=r"\$LABKIT_DATA \(not set\)"):
        lk.benchmark(small, name)
    with pytest.raises(FileNotFoundError) as error:
        lk.benchmark(small, name, data_dir=tmp_path)
    for part in (
        str(tmp_path),
        "on GitHub",
        {"blimp": "alexwarstadt/blimp"}.get(name, "nyu-mll/crows-pairs"),
        "'mini'",
    ):
        assert part in str(error.value)


def nothing_there(*args, local_files_only, **more):
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert local_files_only  # nothing is downloaded
    raise LocalEntryNotFoundError("not there")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pd.DataFrame({"text": ["a"]}), "the frame has the columns text; a benchmark needs those of one of these"),
        (PAIRS[:0], "has no rows"),
        (pd.DataFrame({"good": ["a", None], "bad": ["b", "c"]}), "row 1 of the frame: good must be text; got "),
        (QUESTIONS.assign(answer="Oslo"), "row 0 of the frame: the answer 'Oslo' is none of the choices"),
        (QUESTIONS.assign(answer=2), "row 0 of the frame: the answer 2 is none of"),
        (QUESTIONS[:1].assign(choices=[["1", "0"]], answer=1), "the answer 1 can be more than one of the choices"),
        (QUESTIONS[:1].assign(choices=[["yes"]]), "choices must be a list of two or more"),
        (QUESTIONS[:1].assign(choices=["yes or no"]), r"choices must be a list, or JSON such as"),
        (QUESTIONS[:1].assign(choices=[["Paris", ""]]), "one of the choices is empty"),
        (pd.DataFrame({"good": ["Mary went"], "bad": ["Mary " * 300]}), "has room for; shorten it"),
    ],
)  # fmt: skip
def test_what_is_no_item_is_told_by_its_row(small, data, says):
    with pytest.raises(ValueError, match=says):
        lk.benchmark(small, data)


def test_settings_that_do_not_fit_are_told_before_anything_runs(small, other, tmp_path, monkeypatch):
    monkeypatch.setattr(continuations, "measured_tail", None)
    with pytest.raises(ValueError, match="no label or column 'topic' to group by; its labels are category"):
        lk.benchmark(small, PAIRS, by="topic")
    with pytest.raises(ValueError, match="limit is a number of items, at least 1; got 0"):
        lk.benchmark(small, PAIRS, limit=0)
    with pytest.raises(FileNotFoundError, match="go by a name are blimp, crows_pairs, mini"):
        lk.benchmark(small, "blimpp")
    with pytest.raises(TypeError, match="data is a name"):
        lk.benchmark(small, ["a", "b"])
    with pytest.raises(FileNotFoundError, match="no table in the folder"):
        lk.benchmark(small, tmp_path)
    (tmp_path / "items.xml").write_text("<a/>")
    with pytest.raises(ValueError, match="is no table; give a file that ends in"):
        lk.benchmark(small, tmp_path / "items.xml")
    (tmp_path / "items.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged or is no \.jsonl file"):
        lk.benchmark(small, tmp_path / "items.jsonl")
    unlike = BenchmarkJob(small, "mini").benchmark
    with pytest.raises(ValueError, match="has no item in common with the frame"):
        lk.benchmark(small, PAIRS, compare=unlike)


def test_results_that_cannot_be_subtracted_are_told(small, data):
    pairs, mini = (lk.benchmark(small, one, progress=False) for one in (PAIRS, "mini"))
    with pytest.raises(ValueError, match="have no item in common; run both on the same items"):
        pairs.minus(mini)
    with pytest.raises(ValueError, match="only results of one measure can be subtracted"):
        pairs.minus(lk.benchmark(small, "crows_pairs", data_dir=data, progress=False))
    with pytest.raises(ValueError, match="have no label 'topic'; they have category"):
        pairs.to_frame("topic")
    with pytest.raises(ValueError, match="no way 'length' to compare choices"):
        pairs.right("length")


def test_a_space_joins_a_prompt_and_its_choice_once():
    frame = QUESTIONS[:1]
    assert items_of(frame).items[0].delimiter == " "
    assert items_of(frame.assign(prompt="Answer: ")).items[0].delimiter == ""
    assert items_of(frame.assign(choices=[[" Paris", " Rome"]], answer=0)).items[0].delimiter == ""
    assert items_of(frame, delimiter="\n").items[0].delimiter == "\n"


def test_items_are_grouped_by_any_column_that_is_named():
    grouped = from_frame(PAIRS.assign(source=["x", "y"]), name="pairs", by="source")
    assert grouped.labels_by(None) == ["x", "y"]
    assert grouped.labels_by("category") == ["names", "order"]
    assert from_frame(PAIRS.drop(columns="category"), name="pairs").labels_by(None) == ["", ""]


def test_every_format_is_known_by_columns_of_its_own():
    for n, one in enumerate(FORMATS):
        assert not any(set(other.columns) <= set(one.columns) for other in FORMATS[:n])


def test_an_interval_of_few_kinds_is_that_of_a_bootstrap_item_by_item():
    values = np.repeat([1.0, 0.0, -1.0], [30, 50, 20])
    low, high = interval(lambda weights: weights @ values, len(values), resamples=50000)
    assert interval_of_mean(values, resamples=50000) == pytest.approx((float(low), float(high)), abs=0.011)
    with pytest.raises(ValueError, match="at least two items; there is 1"):
        interval_of_mean(values[:1])


def test_a_table_in_the_cache_of_the_hub_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "adjunct_island"
    folder.mkdir()
    (folder / "train-00000-of-00001.parquet").write_bytes(b"not a table")
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **more: str(tmp_path))
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet' (is damaged|cannot be read here)"):
        items_of("blimp")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "nothing.csv")
