"""Collecting activations of many texts: what is on disk, how it is read, resumed and refused."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from collect_texts import TEXTS
from filelock import FileLock
from loud import loud
from torch.utils.data import DataLoader

import labkit as lk
from labkit.collected import collect as collecting
from labkit.collected.batches import ignores_padding

HERE = Path(__file__).parent
SOME = ["To Mary and John", "Hello", "In the middle of the night a train arrived", "One two three"]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def tiny():
    return loud("llama")


def ids_of(seed: int, count: int) -> list[torch.Tensor]:
    """Token ids of different lengths, for the tiny model."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=draw)
    return [torch.randint(1, 200, (1, int(n)), generator=draw) for n in lengths]


@pytest.fixture(scope="module")
def texts():
    return ids_of(0, 12)


def same(a: lk.Collection, b: lk.Collection) -> bool:
    return a.sites == b.sites and a.rows.equals(b.rows) and all(np.array_equal(a[s], b[s]) for s in a.sites)


def times(store: Path) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*.safetensors")}


def agree(collected: np.ndarray, run: torch.Tensor, tolerance: float) -> None:
    assert collected.shape == tuple(run.shape)
    scale = max(1.0, float(run.float().abs().max()))
    assert float(np.abs(collected - run.float().numpy()).max()) <= tolerance * scale


# -- what is collected -------------------------------------------------------------------------------------------------


def test_what_is_collected_is_what_a_run_of_each_text_reads(lm32):
    read = ["resid_post", "embed", "z.5.3", "q.7", "mlp_act.3"]
    collected = lk.collect(lm32, SOME, read=read, **QUIET)
    assert collected.complete
    assert len(collected) == sum(len(lm32.tokens(text)) for text in SOME)
    for number, text in enumerate(SOME):
        run, mine = lm32.run(text, read=read), (collected.rows.text == number).to_numpy()
        assert list(collected.rows.token[mine]) == [token.display for token in lm32.tokens(text)]
        assert list(collected.rows.position[mine]) == list(range(mine.sum()))
        agree(collected["resid_post"][:, mine], run["resid_post"][:, 0], 1e-5)
        for site in ("resid_post.-1", "embed", "z.5.3", "q.7", "q.7.2", "mlp_act.3"):
            agree(collected[site][mine], run[site][0], 1e-5)


def test_four_bit_models_are_collected_as_they_compute(lm4):
    collected = lk.collect(lm4, SOME, read=["resid_post.20"], batch=1, **QUIET)
    assert collected.dtype == "bfloat16" if lm4.dtype == torch.bfloat16 else "float32"
    for number, text in enumerate(SOME):
        alone = lm4.run(text, read=["resid_post.20"])["resid_post.20"][0]
        mine = (collected.rows.text == number).to_numpy()
        assert np.array_equal(collected["resid_post.20"][mine], alone.float().numpy())
    together = lk.collect(lm4, SOME, read=["resid_post.20"], **QUIET)["resid_post.20"]
    difference = np.linalg.norm(together - collected["resid_post.20"], axis=1)
    assert (difference < 0.1 * np.linalg.norm(together, axis=1)).all()  # other batches, other rounding


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_dtype_rounds_and_changes_nothing_else(tiny, texts, dtype):
    exact = lk.collect(tiny, texts, read=["resid_post.0"], **QUIET)["resid_post.0"]
    collected = lk.collect(tiny, texts, read=["resid_post.0"], dtype=dtype, **QUIET)
    assert collected.dtype == dtype
    rounded = torch.from_numpy(exact.copy()).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(collected["resid_post.0"].astype(np.float32), rounded)
    assert collected["resid_post.0"].dtype == (np.float16 if dtype == "float16" else np.float32)


def test_what_float16_cannot_hold_is_an_error_with_what_is_done(tiny, texts):
    vector = torch.full((tiny.d_model,), 1e5)
    with (
        tiny.steer(vector, layer=1),
        pytest.raises(ValueError, match=r"resid_post\.1 has .* more than float16") as error,
    ):
        lk.collect(tiny, texts, read=["resid_post"], dtype="float16", **QUIET)
    assert not error.value.collection.complete
    assert "0 of 12 texts, 0 rows" in repr(error.value.collection)


@pytest.mark.parametrize(
    ("positions", "places"),
    [
        ("last", lambda n: [n - 1]),
        ([-1], lambda n: [n - 1]),
        ([0, -2], lambda n: [0, n - 2]),
        (1, lambda n: [1]),
        (slice(1, None), lambda n: range(1, n)),
        (slice(None, None, 2), lambda n: range(0, n, 2)),
        (lambda tokens: range(len(tokens) % 3), lambda n: range(n % 3)),
    ],
    ids=["last", "-1", "0 and -2", "1", "from 1", "every second", "function"],
)
def test_positions_are_chosen_in_each_text(tiny, texts, positions, places):
    every = lk.collect(tiny, texts, read=["resid_post"], **QUIET)
    some = lk.collect(tiny, texts, read=["resid_post"], positions=positions, **QUIET)
    wanted = [(number, place) for number, ids in enumerate(texts) for place in places(ids.shape[1])]
    assert list(zip(some.rows.text, some.rows.position, strict=True)) == wanted
    where = {key: row for row, key in enumerate(zip(every.rows.text, every.rows.position, strict=True))}
    agree(some["resid_post"], torch.from_numpy(every["resid_post"][:, [where[key] for key in wanted]]), 1e-5)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "mamba", "recurrent_gemma", "xlstm", "rwkv", "deepseek_v4"])
def test_texts_run_together_only_where_padding_changes_nothing(texts, kind):
    lm = loud(kind)
    collected = lk.collect(lm, texts, read=["resid_post"], **QUIET)
    assert ignores_padding(lm) == (kind in ("llama", "mixtral", "mamba"))
    for number, ids in enumerate(texts):
        mine = (collected.rows.text == number).to_numpy()
        agree(collected["resid_post"][:, mine], lm.run(ids, read=["resid_post"])["resid_post"][:, 0], 1e-5)


# -- what it is read by ------------------------------------------------------------------------------------------------


def test_parts_are_the_whole_shard_by_shard(tiny, texts):
    collected = lk.collect(tiny, texts, read=["resid_post", "z"], shard=5, **QUIET)
    parts = list(collected.parts())
    assert len(parts) == 3
    assert sum(map(len, parts)) == len(collected)
    assert pd.concat([part.rows for part in parts], ignore_index=True).equals(collected.rows)
    for site in ("resid_post.1", "z.0", "z.0.2"):
        assert np.array_equal(np.concatenate([part[site] for part in parts]), collected[site])
    with pytest.raises(ValueError, match="read-only"):
        parts[0]["resid_post.1"][0] = 0


def test_a_data_frame_brings_its_columns_along(tiny):
    frame = pd.DataFrame({"text": SOME, "about": list("abab"), "n": [1.5, 2, 3, 4]}, index=[9, 8, 7, 6])
    collected = lk.collect(tiny, frame, read=["resid_post.0"], positions="last", **QUIET)
    assert list(collected.rows.columns) == ["text", "position", "token", "about", "n"]
    assert collected.rows.about.tolist() == list("abab")
    assert collected.by_row("n").tolist() == [1.5, 2, 3, 4]
    assert same(lk.collect(tiny, frame.text, read=["resid_post.0"], positions="last", **QUIET), collected) is False
    wide = collected.to_frame("resid_post.0")
    assert wide.shape == (4, 5 + 64)
    assert np.array_equal(wide["resid_post.0[7]"], collected["resid_post.0"][:, 7])
    with pytest.raises(ValueError, match=r"needs a column 'text'; it has 'a'"):
        lk.collect(tiny, pd.DataFrame({"a": SOME}), read=["resid_post.0"])
    with pytest.raises(ValueError, match="'token' is called like one of the collection's own"):
        lk.collect(tiny, frame.assign(token=1), read=["resid_post.0"])


def test_a_dataset_gives_each_row_with_the_label_of_its_text(tiny, texts):
    collected = lk.collect(tiny, texts, read=["resid_post"], shard=5, dtype="bfloat16", **QUIET)
    names = [f"{'odd' if n % 2 else 'even'}" for n in range(12)]
    dataset = collected.dataset("resid_post.1", labels=names)
    assert dataset.classes == ["even", "odd"]
    assert len(dataset) == len(collected)
    for row in (0, 17, len(dataset) - 1, -1):
        values, label = dataset[row]
        assert values.dtype == torch.float32
        assert np.array_equal(values.numpy(), collected["resid_post.1"][row])
        assert int(label) == collected.rows.text.iloc[row] % 2
    batch, labels = next(iter(DataLoader(dataset, batch_size=7)))
    assert batch.shape == (7, 64)
    assert labels.shape == (7,)
    assert torch.equal(collected.dataset("resid_post.0")[3], torch.from_numpy(collected["resid_post.0"][3].copy()))
    with pytest.raises(IndexError, match="out of range"):
        dataset[len(dataset)]
    with pytest.raises(ValueError, match=r"one of labels per text or per row: 12 texts, \d+ rows; got 5"):
        collected.dataset("resid_post.1", labels=[1] * 5)
    with pytest.raises(ValueError, match=r"a dataset is of one layer; write which, such as resid_post\.0"):
        collected.dataset("resid_post")


def test_a_site_that_was_not_collected_is_told_of(tiny, texts):
    collected = lk.collect(tiny, texts, read=["resid_post.0", "z.1.2"], **QUIET)
    for site in ("resid_post.1", "mlp_out", "z.1", "z.1.3"):
        with pytest.raises(KeyError, match=r"was not read in this collection \(it read resid_post\.0, z\.1\.2\)"):
            collected[site]
    with pytest.raises(ValueError, match="rows have positions here"):
        collected["resid_post.0@3"]
    with pytest.raises(ValueError, match="there is no site 'nowhere'"):
        collected["nowhere"]


def test_code_collects_the_same_again(lm4):
    def nouns(tokens: list) -> list:
        return [n for n, token in enumerate(tokens) if len(token.text) > 4]

    frame = pd.DataFrame({"text": SOME, "about": list("abab")})
    for texts, positions in ((SOME, slice(1, None)), (frame, "last"), (SOME, nouns)):
        collected = lk.collect(lm4, texts, read=["resid_post.3"], positions=positions, dtype="float32", **QUIET)
        names: dict = {}
        exec(collected.code(), names)
        assert same(names["collected"], collected)
        assert repr(names["collected"]) == repr(collected)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_the_same_call_resumes_and_collects_nothing_twice(tiny, texts, tmp_path):
    store = tmp_path / "store"
    collected = lk.collect(tiny, texts, read=["resid_post"], store=store, shard=5, **QUIET)
    before = times(store)
    assert len(before) == 3
    (store / "shard-00001.safetensors").unlink()
    partial = lk.open_collection(store)
    assert repr(partial) == f"Collection(resid_post; 7 of 12 texts, {len(partial)} rows, float32)"
    assert partial.texts_done == [0, 1, 2, 3, 4, 10, 11]
    assert partial.by_row(range(12)).tolist() == partial.rows.text.tolist()
    again = lk.collect(tiny, texts, read=["resid_post"], store=store, **QUIET)  # with the size of shards that it has
    after = times(store)
    assert [name for name in before if before[name] != after[name]] == ["shard-00001.safetensors"]
    assert same(again, collected)
    opened = lk.open_collection(store)
    assert same(opened, collected)
    assert (repr(opened), opened.code()) == (repr(collected), collected.code())


@pytest.mark.parametrize("harm", ["cut", "bit", "swapped", "empty"])
def test_a_damaged_shard_is_collected_again(tiny, texts, tmp_path, harm):
    collected = lk.collect(tiny, texts, read=["resid_post"], store=tmp_path, shard=6, **QUIET)
    whole = {site: collected[site].copy() for site in collected.sites}
    before, victim = times(tmp_path), tmp_path / "shard-00001.safetensors"
    data = bytearray(victim.read_bytes())
    data[-len(data) // 3] ^= 4 * (harm == "bit")
    other = (tmp_path / "shard-00000.safetensors").read_bytes()
    victim.unlink()
    victim.write_bytes({"cut": data[:-200], "bit": data, "empty": b"", "swapped": other}[harm])
    with pytest.warns(UserWarning, match=r"shard-00001\.safetensors is damaged"):
        again = lk.collect(tiny, texts, read=["resid_post"], store=tmp_path, **QUIET)
    assert all(np.array_equal(again[site], values) for site, values in whole.items())
    assert times(tmp_path)["shard-00000.safetensors"] == before["shard-00000.safetensors"]


def test_a_folder_of_something_else_is_refused(tiny, texts, tmp_path):
    store = tmp_path / "store"
    lk.collect(tiny, texts, read=["resid_post"], store=store, **QUIET)
    files = times(store)
    for other, says in (
        ({"read": ["mlp_out"]}, r"read is \['resid_post'\] there and \['mlp_out'\] here"),
        ({"positions": "last"}, r"positions is 'all' there and \[-1\] here"),
        ({"dtype": "float16"}, "stored_dtype is None there and 'float16' here"),
    ):
        with pytest.raises(ValueError, match=f"holds another collection: {says}"):
            lk.collect(tiny, texts, **{"read": ["resid_post"], **other}, store=store, **QUIET)
    with pytest.raises(ValueError, match=r"its texts differ \(12 there, 11 here\)"):
        lk.collect(tiny, texts[1:], read=["resid_post"], store=store, **QUIET)
    with pytest.raises(ValueError, match=r"holds another collection: .*weights is '\w+' there"):
        lk.collect(loud("gpt2"), texts, read=["resid_post"], store=store, **QUIET)
    assert times(store) == files
    with pytest.raises(ValueError, match="it holds a collection, which lk"):
        lk.open_sweep(store)
    with pytest.raises(ValueError, match="it holds a sweep, which lk"):
        lk.collect(tiny, texts, read=["resid_post"], store=HERE.parent / "files" / "sweep", **QUIET)
    (other := tmp_path / "other").mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"is not empty, and holds no collection: it has 'thesis\.tex'"):
        lk.collect(tiny, texts, read=["resid_post"], store=other, **QUIET)
    with pytest.raises(ValueError, match="is a file; a collection is stored in a folder"):
        lk.collect(tiny, texts, read=["resid_post"], store=other / "thesis.tex", **QUIET)
    with pytest.raises(FileNotFoundError, match=r"it has no file collection\.json"):
        lk.open_collection(tmp_path)
    with FileLock(store / ".lock"):
        with pytest.raises(ValueError, match="another process is writing a collection"):
            lk.collect(tiny, texts, read=["resid_post"], store=store, **QUIET)
        assert lk.open_collection(store).complete  # ... but one may look


def test_other_labels_need_no_other_activations(tiny, tmp_path):
    frame = pd.DataFrame({"text": SOME, "about": list("abab")})
    lk.collect(tiny, frame, read=["resid_post"], store=tmp_path, **QUIET)
    before = times(tmp_path)
    lk.collect(tiny, frame.assign(about=list("xyzw")), read=["resid_post"], store=tmp_path, **QUIET)
    assert times(tmp_path) == before
    assert set(lk.open_collection(tmp_path).rows.about) == set("xyzw")


def test_without_a_store_the_shards_go_with_the_result(tiny, texts):
    collected = lk.collect(tiny, texts, read=["resid_post"], **QUIET)
    folder = collected.store.folder
    assert folder.exists()
    assert "store" not in collected.code()
    assert str(folder) not in repr(collected)
    del collected
    assert not folder.exists()


# -- who does the work -------------------------------------------------------------------------------------------------


def test_columns_with_gaps_are_in_the_code(tiny):
    texts = ids_of(0, 3)
    frame = pd.DataFrame({"text": texts, "score": [0.5, np.nan, np.inf], "name": ["a", None, "b"]})
    collected = lk.collect(tiny, frame, read=["embed"], **QUIET)
    space = {"pd": pd, "lk": lk, "lm": tiny, "torch": torch}
    exec("texts = " + collected.code().split("texts = ", 1)[1], space)
    assert space["collected"].rows.equals(collected.rows)


def test_an_array_of_texts_is_taken(tiny):
    rows = np.array(["To Mary", "Hello"])
    assert same(lk.collect(tiny, rows, read=["embed"], **QUIET), lk.collect(tiny, list(rows), read=["embed"], **QUIET))


def test_rows_of_ids_are_texts(tiny):
    rows = torch.arange(1, 13).reshape(3, 4)
    collected = lk.collect(tiny, rows, read=["resid_post.1"], **QUIET)
    assert collected.rows.text.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert collected.ids.tolist() == rows.flatten().tolist()


def test_threads_and_a_function_that_loads_give_the_same(tiny, texts):
    here = lk.collect(tiny, texts, read=["resid_post"], shard=3, **QUIET)
    with ThreadPoolExecutor(2) as executor:
        assert same(lk.collect(tiny, texts, read=["resid_post"], shard=3, executor=executor, **QUIET), here)
    assert same(lk.collect(lambda: tiny, texts, read=["resid_post"], shard=3, **QUIET), here)


@pytest.mark.long
def test_dask_workers_give_the_same(lm4, tmp_path):
    from distributed import Client, LocalCluster

    settings = {"read": ["resid_post"], "positions": slice(1, None), "shard": 25, **QUIET}
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        there = lk.collect(lm4, TEXTS[:300], executor=client, store=tmp_path, **settings)
        ran = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert len(ran) == 2
    assert all(ran.values()), ran
    assert same(there, lk.collect(lm4, TEXTS[:300], **settings))


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_the_model_runs(lm32, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "shard_of", lambda *_: pytest.fail("the model ran"))
    monkeypatch.setattr(collecting, "shapes_of", lambda *_: pytest.fail("the model ran"))
    long = "word " * 9000
    twice = pd.DataFrame([["a", "b"], ["c", "d"]], columns=["text", "text"])
    for texts, how, says in (
        ([], {}, "no texts"),
        ([*SOME, ""], {}, "1 of 5 texts cannot be collected from; the first, text 4, '': the prompt is empty"),
        ([*SOME, long], {}, r"1 of 5 texts .* text 4, 'word .* more than the 8192 of"),
        (SOME, {"read": ["resid"]}, "there is no site 'resid'"),
        (SOME, {"read": []}, "names nothing to collect"),
        (SOME, {"read": ["resid_post.99"]}, "layer 99 is out of range"),
        (SOME, {"read": ["router"]}, "has no router"),
        (SOME, {"read": ["pattern.3"]}, r"pattern\.3: pattern has one number per key"),
        (SOME, {"read": ["resid_post.3@-1"]}, "positions= says which"),
        (SOME, {"positions": [3]}, r"2 of 4 texts .* text 1, 'Hello': position 3 is out of range; it has 1 token"),
        (SOME, {"positions": "first"}, "positions must be 'all', 'last', a list"),
        (SOME, {"positions": []}, "positions must be"),
        (SOME, {"positions": lambda tokens: []}, "chooses no position of any text"),
        (SOME, {"positions": lambda tokens: [99]}, "4 of 4 texts .* position 99 is out of range"),
        (SOME, {"dtype": "int8"}, "dtype must be one of float16, bfloat16, float32; got 'int8'"),
        (SOME, {"batch": 0}, "batch must be a whole number of texts, at least 1"),
        (SOME, {"batch": "a"}, "batch must be a whole number of texts"),
        (SOME, {"shard": 1.5}, "shard must be a whole number of texts"),
        (SOME, {"positions": [1.5]}, "positions must be"),
        (twice, {}, "several columns called 'text'"),
    ):
        with pytest.raises(ValueError, match=says):
            lk.collect(lm32, texts, **{"read": ["resid_post.3"], "store": tmp_path / "store", **how})
    for texts, how, says in (
        ([*SOME, 7], {}, "text 4, 7: a prompt is text"),
        (SOME, {"positions": lambda tokens: None}, "must give a list of positions"),
        (SOME, {"read": None}, "read= takes sites"),
        (SOME, {"read": [3]}, "read= takes sites"),
        (SOME, {"executor": 2}, r"concurrent\.futures\.Executor or a distributed\.Client"),
    ):
        with pytest.raises(TypeError, match=says):
            lk.collect(lm32, texts, **{"read": ["resid_post.3"], **how})
    with pytest.raises(TypeError, match=r"lk\.collect needs a model"):
        lk.collect(7, SOME, read=["resid_post.3"])
    assert not (tmp_path / "store").exists()


def test_an_interrupt_keeps_the_shards_that_are_done(tiny, texts, tmp_path):
    seen = []

    def positions(tokens: list) -> list:
        seen.append(len(tokens))
        if len(seen) == 12 + 8:  # all are looked at first; then it is the second shard's turn
            raise KeyboardInterrupt
        return [0]

    with pytest.warns(UserWarning, match="interrupted: 4 of 12 texts are in the collection"):
        partial = lk.collect(tiny, texts, read=["resid_post"], positions=positions, store=tmp_path, shard=4, **QUIET)
    assert partial.texts_done == [0, 1, 2, 3]
    assert same(lk.open_collection(tmp_path), partial)
    before = times(tmp_path)
    whole = lk.collect(tiny, texts, read=["resid_post"], positions=positions, store=tmp_path, shard=4, **QUIET)
    assert whole.complete
    assert all(times(tmp_path)[name] == when for name, when in before.items())


# -- a thousand texts --------------------------------------------------------------------------------------------------


def started(store: Path, *read: str) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "collect_texts.py"), str(store), *read]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_1000_texts_killed_and_resumed_are_those_of_an_uninterrupted_run(tmp_path):
    killed = started(tmp_path / "killed", "resid_post.20")
    end = time.monotonic() + 600
    while len(times(tmp_path / "killed")) < 3:
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = times(tmp_path / "killed")
    assert 3 <= len(before) < 20
    partial = lk.open_collection(tmp_path / "killed")
    assert len(partial.texts_done) == 50 * len(before)

    for name in ("killed", "whole"):
        process = started(tmp_path / name, "resid_post.20")
        out, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
        assert out.startswith("Collection(resid_post.20; 1000 texts, ")
    assert all(times(tmp_path / "killed")[name] == when for name, when in before.items())
    killed, whole = (lk.open_collection(tmp_path / name) for name in ("killed", "whole"))
    assert same(killed, whole)
    assert json.loads((tmp_path / "killed" / "collection.json").read_text())["hash"] == whole.store.hash


@pytest.mark.long
def test_1000_texts_take_less_than_a_gigabyte_beside_the_model():
    with TemporaryDirectory() as folder:
        process = started(Path(folder) / "store", "resid_post", "mlp_out")
        out, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors
        size = sum(path.stat().st_size for path in (Path(folder) / "store").iterdir())
    assert size > 1 << 30  # what is on disk would not fit
    assert int(out.split()[-1]) < 1024, out
