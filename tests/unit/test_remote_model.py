"""A model elsewhere is asked by name, and answers as if it were here."""

from __future__ import annotations

import base64
import json
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from next_room import CLEAN, CORRUPT, PAIR, NextRoom

import labkit as lk
from labkit.elsewhere import CALLS, Elsewhere
from labkit.engine.wavefront import Cancelled
from labkit.remote import calls, wire
from labkit.remote.calls import is_small, key, perform
from labkit.remote.model import RemoteModel
from labkit.text.encode import TooLong


def same(a: Any, b: Any) -> bool:
    """Are two results made of the same numbers and texts?"""
    return wire.pack(a) == wire.pack(b)


def parts(of: Any, lm: Any) -> Any:
    """A result without its model and without the time it took, for `same`."""
    packing = json.loads(json.dumps(wire._Packing(lm).tree(of, 0)))

    def timeless(tree: Any) -> Any:
        if isinstance(tree, list):
            return [timeless(one) for one in tree]
        if isinstance(tree, dict):
            return {name: timeless(one) for name, one in tree.items() if name not in ("seconds", "first_seconds")}
        return tree

    return timeless(packing)


def equal(here: Any, there: Any, lm: Any, away: Any) -> None:
    """The same tree, and the same tensors bit by bit."""
    assert parts(here, lm) == parts(there, away)
    a, b = wire._Packing(lm), wire._Packing(away)
    a.tree(here, 0), b.tree(there, 0)
    assert list(a.tensors) == list(b.tensors)
    for name, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[name].dtype
        assert torch.equal(tensor.view(torch.uint8).cpu(), b.tensors[name].view(torch.uint8)) if tensor.ndim else True


ASK: dict[str, Callable[[Any], Any]] = {
    "run": lambda lm: lm.run(CLEAN, read=["resid_post.2", "pattern.2", "z.1.3"]),
    "run of several": lambda lm: lm.run([CLEAN, "Hello"], read=["resid_pre@-1"], logits="last"),
    "write": lambda lm: lm.run(CLEAN, write={"z.1.3": torch.zeros(16), lk.Site("mlp_out", 2): torch.ones(128)}),
    "gradient": lambda lm: lm.run(CLEAN, grad=["z.1"], of="logit_diff", answer=" Susan", foil=" William"),
    "generate": lambda lm: lm.generate(CLEAN, max_new_tokens=6, read=["resid_post.2"]),
    "samples": lambda lm: lm.generate("A cat", samples=2, temperature=1.0, seed=3, max_new_tokens=4),
    "score": lambda lm: lk.score(lm, CLEAN),
    "patch": lambda lm: lk.patch(lm, *PAIR, site="z", layers=[1, 3], progress=False),
    "patch by noise": lambda lm: lk.patch(
        lm, CLEAN, answer=" Susan", by=lk.Noise("Susan", samples=2), layers=[1, 2], progress=False
    ),
    "attribution patch": lambda lm: lk.attribution_patch(lm, *PAIR, sites=["resid_pre", "z"]),
    "path patch": lambda lm: lk.path_patch(lm, *PAIR, receiver="v.3.1", senders=["z.1", "mlp_out.2"], progress=False),
    "lens": lambda lm: lk.logit_lens(lm, CLEAN, follow=" Susan"),
    "direct attribution": lambda lm: lk.direct_logit_attribution(lm, CLEAN, " Susan", " William"),
    "patchscope": lambda lm: lk.patchscope(lm, CLEAN, site="resid_post.2@-1", max_new_tokens=4, progress=False),
    "steering vector": lambda lm: lk.steering_vector(lm, ["I love it", "Great"], ["I hate it", "Awful"], 2),
    "knock out": lambda lm: lk.knock_out(lm, CLEAN, heads=[(1, 3), (2, 1)], how="mean"),
    "head circuit": lambda lm: lk.head_circuit(lm, "1.3", sample=64),
    "choices": lambda lm: lk.choices(lm, CLEAN, [" Susan", " William"]),
    "edges": lambda lm: lk.edge_attribution(lm, *PAIR, progress=False),
    "input attribution": lambda lm: lk.input_attribution(lm, CLEAN, written=" Susan", progress=False),
    "deletion": lambda lm: lk.deletion(
        lk.input_attribution(lm, CLEAN, written=" Susan", progress=False), progress=False
    ),
    "head circuits": lambda lm: lk.head_circuits(lm, sample=64, progress=False),
    "one weight": lambda lm: lm.weight("o_proj", 1),
}


@pytest.mark.parametrize("name", ASK)
def test_what_is_asked_is_answered_as_it_is_here(
    name: str, away: RemoteModel, next_room: NextRoom, home: lk.LanguageModel
) -> None:
    there = ASK[name](away)
    assert next_room.calls
    equal(ASK[name](home), there, home, away)


def test_a_model_elsewhere_has_the_names_and_sizes_of_one_that_is_here(
    away: RemoteModel, home: lk.LanguageModel
) -> None:
    names = "name bits revision n_layers n_heads n_kv_heads d_model d_head n_vocab context dtype"
    for name in names.split():
        assert getattr(away, name) == getattr(home, name), name
    assert away.licence is None
    assert away.sites().equals(home.sites())
    assert away.memory() == home.memory()
    assert away.code() == home.code()
    assert away.config.model_type == "llama"
    assert torch.equal(away.encode(CLEAN), home.encode(CLEAN))
    assert away.tokens("A <|im_start|>") == home.tokens("A <|im_start|>")
    assert repr(away) == repr(home).replace("LanguageModel", "RemoteModel")[:-1] + ", elsewhere)"


def test_attention_is_computed_there_and_read_here(
    away: RemoteModel, next_room: NextRoom, home: lk.LanguageModel
) -> None:
    here, there = lk.attention(home, CLEAN), lk.attention(away, CLEAN)
    assert np.array_equal(here.pattern(1), there.pattern(1))
    assert np.array_equal(here.pattern(1, 3), there.pattern(1, 3))
    assert np.array_equal(here.looks(13, 2), there.looks(13, 2), equal_nan=True)
    assert np.array_equal(here.thumbnails(), there.thumbnails())
    assert here.scores().equals(there.scores())
    assert np.array_equal(here.value_weighted(1, 3), there.value_weighted(1, 3))
    assert np.array_equal(here.rollout(2), there.rollout(2))
    ours, theirs = (one.contribution(" Susan", " William") for one in (here, there))
    assert np.array_equal(ours.values, theirs.values, equal_nan=True)
    own = {"last": lambda pattern: pattern[-1, 0]}
    few = lk.attention(away, CLEAN)
    few.layers = [1]
    next_room.calls.clear()
    assert few.add_score("last", own["last"])[1, 3] == here.pattern(1, 3)[-1, 0]
    assert len(next_room.calls) == 8  # your own function runs here, on what was read there


def test_results_of_a_model_elsewhere_can_ask_it_again(away: RemoteModel, home: lk.LanguageModel) -> None:
    here, there = (lk.logit_lens(lm, CLEAN) for lm in (home, away))
    assert np.array_equal(here.rank(" William"), there.rank(" William"))
    assert torch.equal(here.logits(2), there.logits(2))
    grid = lk.patch(away, *PAIR, layers=[1, 2], progress=False)
    found = lk.continue_under(away, grid, layer=2, position=13, max_new_tokens=4)
    assert found.after.text == lk.continue_under(home, grid, layer=2, position=13, max_new_tokens=4).after.text
    assert away.run(CLEAN).lm is away


def test_tokens_come_as_they_are_written(away: RemoteModel, next_room: NextRoom, home: lk.LanguageModel) -> None:
    came: list[Any] = []
    written = away.generate(CLEAN, max_new_tokens=12, on_token=came.append)
    assert [token.id for token in came] == written.record.ids
    assert came[0].alternatives == home.generate(CLEAN, max_new_tokens=1).tokens[0].alternatives
    streamed = [told for told in next_room.reports if "partial" in told]
    assert "".join(told["text"] for told in streamed).removesuffix("<|end|>") == written.text
    assert all(json.dumps(told) for told in next_room.reports)


def test_a_tree_grows_there(away: RemoteModel, home: lk.LanguageModel) -> None:
    came: list[Any] = []
    here, there = (
        lm.tree(CLEAN, max_new_tokens=6, temperature=1.0, seed=2, on_token=came.append) for lm in (home, away)
    )
    assert [token.id for token in came[:6]] == [token.id for token in came[6:]] == here["A"].record.ids
    for tree in (here, there):
        tree.branch("A", 2, " and")
        tree.extend("B", 2)
    assert here["B"].record.to_dict() == there["B"].record.to_dict()
    assert here.to_dict()["branches"][1]["finish"] == there.to_dict()["branches"][1]["finish"]


def test_steering_goes_with_each_call_of_its_block(away: RemoteModel, home: lk.LanguageModel) -> None:
    vector = lk.steering_vector(home, ["I love it"], ["I hate it"], 2)
    plain = away.run(CLEAN).logits
    patterns = lk.attention(away, CLEAN)
    before = patterns.pattern(3, 1)
    with away.steer(vector, 2.0), home.steer(vector, 2.0):
        assert torch.equal(away.run(CLEAN).logits, home.run(CLEAN).logits)
        steered = lk.patch(away, *PAIR, layers=[3], progress=False)
        assert np.array_equal(steered.values, lk.patch(home, *PAIR, layers=[3], progress=False).values)
        assert not np.array_equal(patterns.pattern(3, 1), before)
        other: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: other.append(away.run(CLEAN).logits))
        thread.start()
        thread.join()
    assert torch.equal(other[0], plain)
    assert torch.equal(away.run(CLEAN).logits, plain)
    assert np.array_equal(patterns.pattern(3, 1), before)
    with pytest.raises(ValueError, match="has shape"), away.steer(torch.ones(3), layer=2):
        pass


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda lm: lm.run(CLEAN, read=["resid_pre.99"]), ValueError),
        (lambda lm: lm.run(""), ValueError),
        (lambda lm: lm.run(CLEAN, reed=["z"]), TypeError),
        (lambda lm: lm.generate(CLEAN, max_new_tokens=10**6), TooLong),
        (lambda lm: lm.generate(CLEAN, temperature=-1), ValueError),
        (lambda lm: lk.patch(lm, CLEAN, CORRUPT, " Susan", " William", site="zz"), ValueError),
        (lambda lm: lk.patch(lm, CLEAN, "Hello"), ValueError),
        (lambda lm: lk.knock_out(lm, CLEAN, heads=[]), ValueError),
        (lambda lm: lm.run(CLEAN, read=["z"])["q"], KeyError),
        (lambda lm: lk.logit_lens(lm, [CLEAN, ""]), ValueError),
    ],
)
def test_an_error_there_is_the_error_it_is_here(
    wrong: Any, kind: type[Exception], away: RemoteModel, home: lk.LanguageModel
) -> None:
    errors = []
    for lm in (home, away):
        with pytest.raises(kind) as caught:
            wrong(lm)
        errors.append(caught.value)
    here, there = errors
    assert type(there) is type(here) is kind
    assert str(there) == str(here)
    assert getattr(there, "over", None) == getattr(here, "over", None)
    assert getattr(there, "__notes__", None) == getattr(here, "__notes__", None)
    assert len(getattr(there, "results", ())) == len(getattr(here, "results", ()))


def test_functions_are_refused_before_anything_is_sent(away: RemoteModel, next_room: NextRoom) -> None:
    for ask in (
        lambda: away.run(CLEAN, write={"z.1.3": lambda z: 0 * z}),
        lambda: away.run(CLEAN, grad=["z.1"], of=lambda logits: logits[:, 0]),
        lambda: lk.patch(away, *PAIR, metric=lambda logits: logits[:, 0], progress=False),
        lambda: lk.patchscope(away, CLEAN, mapping=lambda x: x),
    ):
        with pytest.raises(TypeError, match="runs no code of yours"):
            ask()
    assert not next_room.calls


def test_what_needs_the_weights_says_what_to_do(
    away: RemoteModel, home: lk.LanguageModel, next_room: NextRoom, tmp_path: Any
) -> None:
    for use in (lambda: away.hf, lambda: away.anatomy, lambda: lk.attention(away, CLEAN).call(3)):
        with pytest.raises(Elsewhere, match=r"on another machine: .*lk\.load\(\)"):
            use()
    with pytest.raises(Elsewhere, match="store= is of one machine"):
        away.generate(CLEAN, store=tmp_path)
    with pytest.raises(TypeError, match="is another model"):
        lk.patchscope(away, CLEAN, source=home)
    assert not next_room.calls
    assert away.run(CLEAN, to="cpu").logits.device.type == "cpu"


def test_stopping_keeps_what_is_done(away: RemoteModel, small_chunks: None) -> None:
    job = lk.PatchJob(away, *PAIR)
    for done in job.steps():
        if done > 30:
            job.cancel()
    assert 30 < job.done < job.total
    kept = job.grid.values.copy()
    for _ in job.steps():
        pass
    assert job.done == job.total
    had = ~np.isnan(kept)
    assert np.array_equal(job.grid.values[had], kept[had])
    stop = threading.Event()
    written = away.generate(CLEAN, max_new_tokens=100, stop=stop, on_token=lambda _: stop.set())
    assert written.finish == "stopped"
    assert 0 < len(written.record) < 100


def test_an_interrupt_keeps_what_is_done(away: RemoteModel, next_room: NextRoom, small_chunks: None) -> None:
    def interrupt(told: dict[str, Any]) -> None:
        if told.get("done", 0) >= 1:
            next_room.on_report = next_room.reports.append
            raise KeyboardInterrupt

    next_room.on_report = interrupt
    with pytest.warns(UserWarning, match="interrupted: 1 of 4 layers are in the circuits"):
        found = lk.head_circuits(away, sample=64, progress=False)
    assert np.isfinite(found.eigen[0]).all()
    assert np.isnan(found.eigen[1:]).all()

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        away.generate(CLEAN, max_new_tokens=50, on_token=stop)


def test_an_error_carries_what_was_computed(
    away: RemoteModel, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lk.PatchJob._values

    def values(self: lk.PatchJob, some: Any) -> Any:
        if self.done > 20:
            raise RuntimeError("the GPU is gone")
        return real(self, some)

    monkeypatch.setattr(lk.PatchJob, "_values", values)
    with pytest.raises(RuntimeError, match="the GPU is gone") as caught:
        lk.patch(away, *PAIR, progress=False)
    assert np.isfinite(caught.value.grid.values).sum() > 20  # type: ignore[attr-defined]


def test_warnings_are_given_here_at_the_users_line(away: RemoteModel) -> None:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        lk.attribution_patch(away, CLEAN, CLEAN, " Susan", " William", sites=["z"])
    assert [one.filename for one in given] == [__file__]
    assert "hardly differ" in str(given[0].message) or "same" in str(given[0].message)


def test_what_a_server_is_sent_is_checked(home: lk.LanguageModel, away: RemoteModel, next_room: NextRoom) -> None:
    away.run(CLEAN)
    (good,) = next_room.calls

    def answer(body: bytes) -> Any:
        found = wire.unpack(perform(home, body, stop=threading.Event(), report=lambda _: None), lm=away)
        return calls.raised(found["error"])

    def asking(**changed: Any) -> bytes:
        asked = wire.unpack(good, lm=home)
        return wire.pack(asked | changed, lm=home)

    name = "activations.run.run"
    for body, words in (
        (b"", "no message"),
        (b"\x80\x04K\x01.", "no message"),
        (wire.pack([1]), "no call"),
        (asking(more=1), "no call"),
        (asking(call="os.system"), "no 'os.system' to ask for"),
        (asking(call="models.load.loaded"), "to ask for"),
        (asking(args=[]), "missing a required argument"),
        (asking(args=["lm", CLEAN]), "asked of the model"),
        (asking(kwargs={"read": ["z"], "store": "/"}), "unexpected keyword"),
        (asking(kwargs={"to": "cuda:7"}), "to= is of one machine"),
        (asking(within=[("steer",)]), "no call"),
        (asking(within=[("steering.steer.steer", (torch.ones(3),), {"layer": 3})]), "has shape"),
        (asking(within=[("os.system", ("ls",), {})]), "no 'os.system' to do to a model"),
    ):
        error = answer(body)
        assert isinstance(error, ValueError | TypeError | Elsewhere)
        assert words in str(error)
    assert name in CALLS
    assert all("." in one and call.name == one for one, call in CALLS.items())


def test_a_stop_before_the_turn_does_nothing(home: lk.LanguageModel, away: RemoteModel, next_room: NextRoom) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        away.generate(CLEAN, stop=stop)


def test_the_same_question_has_the_same_key(away: RemoteModel, next_room: NextRoom) -> None:
    for seed, text in ((None, CLEAN), (None, CLEAN), (1, CLEAN), (1, CLEAN), (None, CORRUPT)):
        away.generate(text, max_new_tokens=1, seed=seed)
    away.generate(CLEAN, max_new_tokens=1, temperature=1.0)
    away.generate(CLEAN, max_new_tokens=1, temperature=1.0, seed=4)
    one, two, three, four, other, drawn, seeded = map(key, next_room.calls)
    assert one == two != three == four != other
    assert drawn is None
    assert seeded is not None
    with pytest.raises(ValueError, match="no message"):
        key(b"nonsense")
    next_room.calls.clear()
    away.run(CLEAN)
    lk.edge_attribution  # noqa: B018
    lk.patch(away, *PAIR, layers=[3], progress=False)
    assert [is_small(body) for body in next_room.calls] == [True, False]
    assert not is_small(b"nonsense")


def test_a_tokenizer_that_leads_out_of_its_folder_is_refused(away: RemoteModel, tmp_path: Any) -> None:
    class Liar(NextRoom):
        def tokenizer_files(self) -> dict[str, bytes]:
            return {"../../evil.json": b"{}"}

    with pytest.raises(ValueError, match="leads out of its folder"):
        RemoteModel(Liar(away.transport.lm))


def test_reports_are_plain_json(away: RemoteModel, next_room: NextRoom) -> None:
    away.generate(CLEAN, max_new_tokens=3, on_token=lambda _: None)
    assert all(set(told) <= {"partial", "text", "done", "total"} for told in next_room.reports)
    assert all(base64.b64decode(told["partial"]).startswith(wire.MAGIC) for told in next_room.reports)
