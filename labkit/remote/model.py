"""RemoteModel: a model that is elsewhere, with the names of one that is here.

It has the model's tokenizer and everything that `describe` says, so prompts, sites and settings are checked here,
before anything is sent. What needs the weights is asked for by name (`labkit.elsewhere`).
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cached_property
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from labkit.activations.run import Run
from labkit.elsewhere import PIECES, Call, Elsewhere
from labkit.language_model import LanguageModel
from labkit.models.memory import MemoryReport
from labkit.models.unpacked_layers import FastLayers
from labkit.remote.calls import answers_of, only_here, packed_call, parts_of, raised
from labkit.remote.wire import unpack
from labkit.steering.steer import _edits
from labkit.steering.vector import Manner, SteeringVector
from labkit.text.types import Prompt
from labkit.text.warn import warn

MOST_FILES = 256 << 20  # bytes of a tokenizer
_WITHIN: ContextVar[tuple[tuple[Any, Any], ...]] = ContextVar("labkit_within", default=())
"""(model, what is done to it) for each block that is open in this context."""


class Transport(Protocol):
    """How a client reaches a model."""

    def describe(self) -> dict[str, Any]: ...
    def tokenizer_files(self) -> dict[str, bytes]: ...
    def call(
        self, body: bytes, *, report: Callable[[dict[str, Any]], None], stop: threading.Event | None = None
    ) -> bytes:
        """Ask, and wait for the answer. `report` is called on the way, in this thread, with `{"waiting": ahead}`,
        `{"done", "total"}` and `{"partial", "text"}`. When `stop` is set, and at a KeyboardInterrupt, the work is
        asked to end, and what it answers then is returned.
        """


class RemoteModel(LanguageModel):
    """A model on another machine, made by `labkit.connect`.

    What is read arrives on the CPU. Functions of your own cannot be sent: metrics go by name, and what is written is a
    tensor or a steering vector.

    Attributes:
        about: what the server says of the model.
        licence: of the weights, where it is known.
    """

    def __init__(self, transport: Transport) -> None:
        self.about = about = transport.describe()
        self.transport = transport
        self.tokenizer = _tokenizer(transport.tokenizer_files())
        self.name, self.revision, self.bits = str(about["name"]), about["revision"], int(about["bits"])
        self.stored_as, self.load_code, self.licence = about["stored_as"], str(about["load_code"]), about["licence"]
        self.lock, self.fast = threading.RLock(), FastLayers()  # of no layers: they are elsewhere
        self._answers = answers_of(about)

    def ask(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Have a call done where the model is; what it gives, or raises, is as if it had been done here.

        Raises:
            TypeError: arguments that the function does not have, or that cannot be sent.
            Elsewhere: an argument that means something on this machine alone.
        """
        if (known := self._answers.get(call.name)) is not None:
            return known(*args, **kwargs)
        form = signature(call.function)
        bound = form.bind(*args, **kwargs)
        only_here(call, bound)
        given = bound.arguments
        each, own = given.pop(call.streams, None), given.pop("stop", None)
        stop = own or threading.Event()
        shows = bool(given.pop("progress", "progress" in form.parameters))
        within = tuple(how for lm, how in _WITHIN.get() if lm is self)
        body = packed_call(call, bound, lm=self, within=within, streams=each is not None)
        answer = self._answered(body, call.name.rpartition(".")[2], each, stop, shows)
        if own is None and stop.is_set():  # by an interrupt
            if call.small:
                raise KeyboardInterrupt
            if (pieces := PIECES.get()) is not None:
                pieces.set()
        for message in answer["warnings"]:
            warn(message)
        if "error" in answer:
            raise raised(answer["error"])
        return answer["result"]

    def _answered(
        self, body: bytes, doing: str, each: Callable[..., None] | None, stop: threading.Event, shows: bool
    ) -> dict[str, Any]:
        """The answer to a request, with its progress shown and its parts passed on."""
        failed: list[BaseException] = []

        with tqdm(total=0, desc=doing, disable=not shows, leave=False) as bar:

            def report(told: dict[str, Any]) -> None:
                if "done" in told:
                    bar.total = told["total"]
                    bar.update(told["done"] - bar.n)
                elif "waiting" in told:
                    bar.set_description(f"{doing} ({told['waiting']} before it)" if told["waiting"] else doing)
                if "partial" not in told or each is None or failed:
                    return
                try:
                    for part in parts_of(told, lm=self):
                        each(*part)
                except BaseException as error:  # of the caller's own function: its work ends
                    failed.append(error)
                    stop.set()

            found: dict[str, Any] = unpack(self.transport.call(body, report=report, stop=stop), lm=self)
        if failed:
            raise failed[0]
        return found

    # -- what it has ---------------------------------------------------------------------------------------------

    @property
    def hf(self) -> Any:
        raise Elsewhere(
            f"the weights of {self.name} are on another machine: lm.hf, lm.anatomy and your own hooks need a model "
            "here, from lk.load(). lm.run(..., read=..., write=...) reads and writes activations, and "
            "lm.weight(name, layer) is one matrix"
        )

    @property
    def anatomy(self) -> Any:
        return self.hf

    @cached_property
    def config(self) -> Any:
        held = dict(self.about["config"])
        try:
            return AutoConfig.for_model(held.pop("model_type"), **held)
        except (KeyError, ValueError):  # one that this version of transformers does not know
            return PretrainedConfig.from_dict(held)

    n_layers = property(lambda self: int(self.about["sizes"]["n_layers"]))
    n_heads = property(lambda self: int(self.about["sizes"]["n_heads"]))
    n_kv_heads = property(lambda self: int(self.about["sizes"]["n_kv_heads"]))
    d_model = property(lambda self: int(self.about["sizes"]["d_model"]))
    d_head = property(lambda self: int(self.about["sizes"]["d_head"]))
    n_vocab = property(lambda self: int(self.about["sizes"]["n_vocab"]))
    context = property(lambda self: self.about["sizes"]["context"])
    dtype = property(lambda self: getattr(torch, self.about["dtype"]))
    device = property(lambda self: torch.device("cpu"))
    devices = property(lambda self: (torch.device("cpu"),))

    @property
    def embedding(self) -> torch.Tensor:
        """The shape of the embedding's weight, (ids, d_model), without its numbers."""
        return torch.empty(self.about["embedding"], device="meta")

    def memory(self) -> MemoryReport:
        """Where the bytes are on the machine that has the model."""
        return MemoryReport(**self.about["memory"])

    # -- what it does ----------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        write: Mapping[Any, Any] | None = None,
        logits: Literal["all", "last", "none"] | Sequence[int] = "all",
        to: str | torch.device | None = None,
        **how: Any,
    ) -> Run:
        """One forward pass, as `LanguageModel.run`; what it keeps arrives on the CPU, whatever `to` says."""
        return super().run(prompt, write=write, logits=logits, **how)

    @contextmanager
    def within(self, name: str, args: tuple[Any, ...], how: dict[str, Any]) -> Iterator[None]:
        """Have something done to the model with every call of this thread while a block runs (`elsewhere.BLOCKS`)."""
        token = _WITHIN.set((*_WITHIN.get(), (self, (name, args, how))))
        try:
            yield
        finally:
            _WITHIN.reset(token)

    def steer(
        self,
        vector: SteeringVector | Mapping[int, SteeringVector] | torch.Tensor,
        strength: float = 1.0,
        *,
        layer: int | Sequence[int] | None = None,
        manner: Manner = "add",
        **how: Any,
    ) -> AbstractContextManager[None]:
        """Steer everything that this thread asks of the model while a `with` block runs; see `LanguageModel.steer`."""
        for one in [*vector.values()] if isinstance(vector, Mapping) else [vector]:
            at = None if isinstance(vector, Mapping) else layer
            _edits(self, one, strength, at, manner, {"to": None, "low": None, "high": None, "when": None} | how)
        return super().steer(vector, strength, layer=layer, manner=manner, **how)

    @contextmanager
    def busy(self, *, gradients: bool = False, plain: bool = False) -> Iterator[None]:
        """Nothing is in use here: the other machine sees to its model's turns."""
        yield

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteModel:
        return self  # a connection is shared

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, elsewhere)"


def _tokenizer(files: Mapping[str, bytes]) -> Any:
    """The tokenizer in files that came over the wire. No code that comes with it is run.

    Raises:
        ValueError: a name that leads out of its folder, or too much.
    """
    if sum(map(len, files.values())) > MOST_FILES:
        raise ValueError(f"the server sends a tokenizer of more than {MOST_FILES >> 20} MB")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise ValueError(
                    f"the server sends a tokenizer with a file {name!r:.80}, which leads out of its folder"
                )
            place = Path(folder, *path.parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
