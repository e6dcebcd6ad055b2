"""What may be asked of a model that is elsewhere, and how it is answered: a server's half that knows no network.

    perform(lm, body, stop=event, report=tell) -> bytes    does what a client asked, in this thread
    describe(lm), tokenizer_files(lm)                      what a client needs to know first
    key(body), is_small(body), failed(answer)              for a server's queue

A `body` is a packed call (`labkit.remote.wire`): the name of a function that is marked with `where_the_model_is`, its
arguments, and what the client steers meanwhile. Nothing else can be named, and no argument is a function or a path.
`perform` never raises for what a client sends: errors are packed as well, with what had been computed, and `raised` on
the client makes them errors again. `tell` gets dicts for JSON: `{"done": 3, "total": 30}`, and where the client asked
for it, at most every 80 ms, `{"partial": "<base64>"}`, what came since, with the `"text"` of generated tokens. All of
it is in the answer again, so an answer can be kept by its `key` and be given to everybody who asks the same.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from inspect import BoundArguments, signature
from pathlib import Path
from typing import Any

import labkit.attribution.input_attribution
import labkit.audits.heads
import labkit.audits.openers
import labkit.audits.refusal
import labkit.circuits.edge_attribution
import labkit.collected.reading
import labkit.lens.patchscope
import labkit.patching.attribution
import labkit.patching.paths
import labkit.shards.workers
import labkit.sweeps.workers
import labkit.text.alignment  # noqa: F401 - what is marked there can be asked for
from labkit._version import __version__
from labkit.activations.site_kinds import HEAD_IN
from labkit.activations.site_kinds import KINDS as SITE_KINDS
from labkit.activations.sites import _missing, adds_keys, n_heads_of, of_keys
from labkit.elsewhere import BLOCKS, CALLS, LISTENER, Call, Elsewhere
from labkit.engine.recorded_run import Unsupported
from labkit.engine.wavefront import Cancelled
from labkit.generation.loop import ends_of
from labkit.generation.token_table import GeneratedToken
from labkit.language_model import LanguageModel
from labkit.models import errors
from labkit.models.catalog import known
from labkit.models.handle import Model
from labkit.patching.axes import neurons_of
from labkit.remote import kinds
from labkit.remote.wire import START, outline, pack, unpack
from labkit.text.encode import TooLong

Report = Callable[[dict[str, Any]], None]
FRAME = 0.08  # seconds between two partial answers
SMALL = 64 << 10  # bytes of a call that may be small
FORM = {"call": str, "args": list, "kwargs": dict, "streams": bool, "within": list}
"""What a call is made of."""
ERRORS: dict[str, type[Exception]] = {
    one.__name__: one
    for one in (*vars(builtins).values(), *vars(errors).values(), Cancelled, Elsewhere, TooLong, Unsupported)
    if isinstance(one, type) and issubclass(one, Exception)
}
"""By name, the errors that come back as themselves."""


def packed_call(
    call: Call, bound: BoundArguments, *, lm: Model, within: tuple[Any, ...] = (), streams: bool = False
) -> bytes:
    """A call as the body of a request.

    Raises:
        TypeError: an argument that cannot be sent.
    """
    body = {"call": call.name, "args": list(bound.args), "kwargs": bound.kwargs, "streams": streams}
    return pack(body | {"within": list(within)}, lm=lm)


def only_here(call: Call, bound: BoundArguments) -> None:
    """Refuse arguments that mean something on the client's machine alone.

    Raises:
        Elsewhere: there is one.
    """
    for name in call.without:
        if (value := (bound.arguments | bound.kwargs).get(name)) is not None and str(value) != "cpu":
            raise Elsewhere(f"{name}= is of one machine, and the model is on another; leave it out")


def perform(lm: Model, body: bytes, *, stop: threading.Event, report: Report) -> bytes:
    """Do what a client asked, and pack what came of it.

    Args:
        lm: the model, which is here.
        body: the request, from anybody.
        stop: set from another thread, it ends the work soon; what is done is in the answer.
        report: called on the way, in this thread.
    """
    listener = _Listener(report, stop)
    token = LISTENER.set(listener)
    try:
        answer = {"result": _performed(lm, body, listener)}
    except KeyboardInterrupt:
        answer = {"error": told(Cancelled("it was stopped before there was anything to keep"))}
    except Exception as error:
        answer = {"error": told(error, lm=lm)}
    finally:
        LISTENER.reset(token)
    try:
        return pack(answer | {"warnings": listener.warnings}, lm=lm)
    except (TypeError, ValueError) as error:  # more than can be sent
        return pack({"error": told(error), "warnings": listener.warnings})


def _performed(lm: Model, body: bytes, listener: _Listener) -> Any:
    call, bound, asked = _read(lm, body)
    parameters = signature(call.function).parameters
    only_here(call, bound)
    for name in {"stop", "progress", call.streams} & set(parameters):
        given: dict[str, Any] = {"stop": listener.stop, "progress": False}
        each = listener.each(lm) if asked["streams"] else None
        bound.arguments[name] = given.get(name, each)
    if listener.stop.is_set():
        raise Cancelled("it was stopped before it began")
    with ExitStack() as stack:
        if asked["within"]:
            kinds.forget(lm)
            stack.callback(kinds.forget, lm)
        for name, args, how in asked["within"]:
            stack.enter_context(BLOCKS[name](lm, *args, **how))
        if call.busy:
            stack.enter_context(lm.busy())
        try:
            return call.function(*bound.args, **bound.kwargs)
        finally:
            listener.flush(lm)


def _read(lm: Model, body: bytes) -> tuple[Call, BoundArguments, dict[str, Any]]:
    """The call in a body, bound to its function.

    Raises:
        ValueError: it is no call, or one of something that cannot be asked for.
        TypeError: its arguments are not those of the function.
    """
    asked = unpack(body, lm=lm, only_sent=True)
    if not isinstance(asked, dict) or {name: type(one) for name, one in asked.items()} != FORM:
        raise ValueError("this is no call: it has a name, arguments, and what the model is steered with")
    if (call := CALLS.get(asked["call"])) is None:
        raise ValueError(f"there is no {asked['call']!r:.80} to ask for; another version of labkit may have it")
    if any(type(one) is not tuple or list(map(type, one)) != [str, tuple, dict] for one in asked["within"]):
        raise ValueError("this is no call: what is done to the model meanwhile has a name and arguments")
    if unknown := [name for name, *_ in asked["within"] if name not in BLOCKS]:
        raise ValueError(f"there is no {unknown[0]!r:.80} to do to a model; another version of labkit may have it")
    bound = signature(call.function).bind(*asked["args"], **asked["kwargs"])
    first = next(iter(bound.arguments.values()), None)
    if getattr(first, "lm", first) is not lm:
        raise ValueError(f"{call.name} is asked of the model, which is its first argument")
    return call, bound, asked


class _Listener:
    """Passes on what work tells, and gathers what it streams."""

    def __init__(self, report: Report, stop: threading.Event) -> None:
        self.report, self.stop = report, stop
        self.warnings: list[str] = []
        self._waiting: list[tuple[Any, ...]] = []
        self._due = 0.0

    def progress(self, done: int, total: int) -> None:
        self.report({"done": int(done), "total": int(total)})
        if self.stop.is_set():
            raise KeyboardInterrupt  # work that can keep what is done knows this one

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def each(self, lm: Model) -> Callable[..., None]:
        def each(*part: Any) -> None:
            self._waiting.append(part)
            if time.monotonic() >= self._due:
                self.flush(lm)

        return each

    def flush(self, lm: Model) -> None:
        if not self._waiting:
            return
        parts, self._waiting = self._waiting, []
        told: dict[str, Any] = {"partial": base64.b64encode(pack(parts, lm=lm)).decode()}
        if texts := [part[0].token.text for part in parts if isinstance(part[0], GeneratedToken)]:
            told["text"] = "".join(texts)
        self.report(told)
        self._due = time.monotonic() + FRAME


def parts_of(told: Mapping[str, Any], *, lm: Model) -> list[tuple[Any, ...]]:
    """What a report streams: the arguments of each call of the function that gets it."""
    found: list[tuple[Any, ...]] = unpack(base64.b64decode(told["partial"]), lm=lm)
    return found


# -- errors ----------------------------------------------------------------------------------------------------------


def told(error: Exception, *, lm: Model | None = None) -> dict[str, Any]:
    """An error for the wire: its class, its words, and what it carries."""
    kind = next(one.__name__ for one in type(error).__mro__ if ERRORS.get(one.__name__) is one)
    words = error.args if all(isinstance(one, str | int | float) for one in error.args) else (str(error),)
    kept = {}
    for name, value in vars(error).items():
        try:
            pack(value, lm=lm)
        except (TypeError, ValueError):
            continue  # a live object of the server
        kept[name] = value
    return {"kind": kind, "words": list(words), "kept": kept}


def raised(found: Mapping[str, Any]) -> Exception:
    """The error that was `told`, to raise."""
    kind = ERRORS.get(found["kind"], RuntimeError)
    error = kind.__new__(kind, *found["words"])
    error.args = tuple(found["words"])
    vars(error).update(found["kept"])
    return error


# -- what a queue may want to know ------------------------------------------------------------------------------------


def _outline(body: bytes) -> tuple[Call, dict[str, Any]]:
    """What a body asks for, and its keyword arguments as they are on the wire.

    Raises:
        ValueError: it is no call.
    """
    tree = outline(body)
    try:
        asked = dict(tree["dict"])
        name, given = asked["call"], dict(asked["kwargs"]["dict"])
        fits = set(asked) == set(FORM) and isinstance(name, str)
    except (TypeError, ValueError, KeyError, IndexError):
        fits = False
    if not fits:
        raise ValueError("this is no call: it has a name, arguments, and what the model is steered with")
    if (call := CALLS.get(name)) is None:
        raise ValueError(f"there is no {name!r:.80} to ask for; another version of labkit may have it")
    return call, given


def key(body: bytes) -> str | None:
    """The same for calls that have the same answer; None for those that draw at random.

    Raises:
        ValueError: it is no call, so it needs no turn to be refused.
    """
    call, given = _outline(body)
    if call.draws and given.get("temperature") and given.get(call.draws) is None:
        return None
    return hashlib.sha256(body).hexdigest()


def is_small(body: bytes) -> bool:
    """Is this one pass over a short prompt at most, so that it may go before others?"""
    try:
        return len(body) <= SMALL and _outline(body)[0].small
    except ValueError:
        return False


def failed(answer: bytes) -> bool:
    """Is what `perform` answered an error, which is not to be kept for others who ask the same?"""
    return answer[START:].startswith(b'{"dict":[["error",')


# -- what a client needs to know first --------------------------------------------------------------------------------


def describe(lm: LanguageModel) -> dict[str, Any]:
    """A model for JSON: its name, sizes, origin and licence, and what is where in it."""
    memory = lm.memory()
    try:
        licence = known(lm.name).licence
    except (LookupError, ValueError):
        licence = None
    layers = range(lm.n_layers)
    heads = [[n_heads_of(lm, kind, n) for n in (None, *layers)] for kind in ("q", "k")]
    return {
        "labkit": __version__,
        "name": lm.name,
        "revision": lm.revision,
        "bits": lm.bits,
        "stored_as": lm.stored_as,
        "load_code": lm.load_code,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "licence": None if licence is None else str(licence),
        "memory": {"parts": memory.parts, "away": memory.away, "unpacked": memory.unpacked},
        "config": json.loads(lm.config.to_json_string(use_diff=False)),
        "embedding": list(lm.embedding.shape),
        "sizes": {
            name: getattr(lm, name)
            for name in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "n_vocab", "context")
        },
        "heads": {"queries": heads[0], "keys": heads[1]},
        "neurons": [neurons_of(lm, n) for n in (None, *layers)],
        "adds_keys": [adds_keys(lm, n) for n in layers],
        "ends": ends_of(lm),
        "missing": {
            kind: [_missing(lm, kind, n) for n in (range(1) if kind == "final_norm" else layers)]
            for kind in (*SITE_KINDS, HEAD_IN)
            if kind != "embed"
        },
    }


def answers_of(about: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """By name of a call, what `describe` has answered already."""

    def of_layer(values: list[Any], layer: int | None) -> Any:
        return values[0 if layer is None else 1 + layer]

    def heads(_: Any, kind: str, layer: int | None = None) -> int:
        return int(of_layer(about["heads"]["keys" if of_keys(kind) else "queries"], layer))

    return {
        "activations.sites._missing": lambda _, kind, layer: about["missing"][kind][layer],
        "activations.sites.n_heads_of": heads,
        "activations.sites.adds_keys": lambda _, layer: about["adds_keys"][layer],
        "patching.axes.neurons_of": lambda _, layer=None: of_layer(about["neurons"], layer),
        "generation.loop.ends_of": lambda _: list(about["ends"]),
    }


def tokenizer_files(lm: Model) -> dict[str, bytes]:
    """The files of the tokenizer by name, which `AutoTokenizer` reads."""
    with tempfile.TemporaryDirectory() as folder:
        lm.tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".py")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
