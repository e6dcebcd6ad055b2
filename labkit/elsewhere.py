"""Functions that run where their model is, which may be another machine.

`@where_the_model_is` marks a public function of a model (or a method of something that has one as its `lm`). For a
model in this process it is the function itself. A model that is elsewhere (`labkit.remote`) has a method `ask`, which
gets the call by its name instead. `CALLS` has all that can be asked for, so what a server answers is a query over it,
and nothing else can be named.

What such a function tells while it works goes to a `Listener`: how far it is, and what it warns of.

Long work on a model that is elsewhere is asked for in pieces, so that others have their turn in between: a job here
(`labkit.results.job`) whose steps are such calls. What a block of code does to the model (`@while_it_runs`) goes with
each call inside it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn, Protocol, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])


class Elsewhere(RuntimeError):
    """What only works where the model's weights are."""


@dataclass(frozen=True)
class Call:
    """What can be asked of a model that is elsewhere.

    Attributes:
        name: module and name, such as `lens.logit_lens.logit_lens`.
        function: what runs where the model is.
        streams: the argument that is called with what comes while it works; "" for none.
        without: arguments that cannot be sent: paths and devices mean something else elsewhere.
        draws: the argument without which it draws at random; "" for none.
        busy: does it expect the model to be in use already (`lm.busy()`)?
        small: is it one pass over a prompt at most?
    """

    name: str
    function: Callable[..., Any]
    streams: str = ""
    without: tuple[str, ...] = ()
    draws: str = ""
    busy: bool = False
    small: bool = False


CALLS: dict[str, Call] = {}
"""By name, what can be asked of a model that is elsewhere."""


@overload
def where_the_model_is(function: F, /) -> F: ...
@overload
def where_the_model_is(
    *, streams: str = "", without: tuple[str, ...] = (), draws: str = "", busy: bool = False, small: bool = False
) -> Callable[[F], F]: ...
def where_the_model_is(function: Any = None, /, **how: Any) -> Any:
    """Let a function of a model, or a method of what has one, run where that model is; `Call` says what `how` is."""

    def marked(function: Any) -> Any:
        name = f"{function.__module__.removeprefix('labkit.')}.{function.__qualname__}"
        CALLS[name] = call = Call(name, function, **how)

        @wraps(function)
        def there(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else kwargs.get("lm")
            lm: Any = getattr(first, "lm", first)
            return lm.ask(call, args, kwargs) if is_elsewhere(lm) else function(*args, **kwargs)

        return there

    return marked if function is None else marked(function)


BLOCKS: dict[str, Callable[..., Any]] = {}
"""By name, what may be done to a model that is elsewhere while calls run."""


def while_it_runs(function: F) -> F:
    """Let a context manager of a model act where that model is: on all that this thread asks of it meanwhile."""
    name = f"{function.__module__.removeprefix('labkit.')}.{function.__qualname__}"
    BLOCKS[name] = function

    @wraps(function)
    def there(lm: Any, *args: Any, **kwargs: Any) -> Any:
        return lm.within(name, args, kwargs) if is_elsewhere(lm) else function(lm, *args, **kwargs)

    return there  # type: ignore[return-value]


def is_elsewhere(lm: Any) -> bool:
    """Is this a model whose weights are not in this process?"""
    return hasattr(type(lm), "ask")


def needs_weights(what: str, *models: Any, instead: str) -> None:
    """Refuse work that needs the weights in this process, before it begins.

    Raises:
        Elsewhere: one of the models is elsewhere; the message says what to do instead.
    """
    for lm in models:
        if is_elsewhere(lm):
            raise Elsewhere(f"{what}, and the weights of {lm.name} are on another machine: {instead}")


LOAD_BOTH = "load both precisions here, with lk.load(..., bits=4) and lk.load(..., bits=16)"


def names_only(*models: Any, **given: Any) -> None:
    """Refuse a user's own functions for a model that is elsewhere, before anything is asked of it.

    Raises:
        TypeError: one of the arguments is a function.
    """
    for value in given.values():
        if callable(value) and any(map(is_elsewhere, models)):
            refuse_function(value)


def refuse_function(function: Any) -> NoReturn:
    """
    Raises:
        TypeError: says what to do instead of sending a function.
    """
    name = getattr(function, "__name__", type(function).__name__)
    raise TypeError(
        f"{name} is a function, and a model that is elsewhere runs no code of yours: take a metric by its name "
        "(docs/reference.md has them), write tensors or steering vectors, or load a model with lk.load()"
    )


class Listener(Protocol):
    """Who is told of work that goes on."""

    def progress(self, done: int, total: int) -> None:
        """So much is done. An exception ends the work."""

    def warning(self, message: str) -> None:
        """What the user should know."""


class Nobody:
    """A listener who listens to nothing."""

    def progress(self, done: int, total: int) -> None: ...
    def warning(self, message: str) -> None: ...


LISTENER: ContextVar[Listener | None] = ContextVar("labkit_listener", default=None)
"""Who listens to what goes on in this context; None for the person at this machine."""


PIECES: ContextVar[threading.Event | None] = ContextVar("labkit_pieces", default=None)
"""Set where an interrupt ended a call that is a piece of this context's work; None where calls are no pieces."""


def interrupted() -> bool:
    """Was a call that is a piece of longer work ended by an interrupt, so that the work is to end as well?"""
    pieces = PIECES.get()
    return pieces is not None and pieces.is_set()


def tell_progress(done: int, total: int) -> None:
    """Say how far the work is, to whoever listens."""
    if (listener := LISTENER.get()) is not None:
        listener.progress(done, total)


def steps_of(work: Callable[[Callable[[Any], None]], Any], stop: threading.Event) -> Iterator[Any]:
    """What work passes to the function that it is given, one by one, and last what it returns.

    The work runs in a thread of its own, in this context. It is asked to stop where the iteration ends early.
    """
    coming: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            coming.put(("end", work(lambda part: coming.put(("part", part)))))
        except BaseException as error:
            coming.put(("error", error))

    thread = threading.Thread(target=copy_context().run, args=(run,), name="labkit elsewhere", daemon=True)
    thread.start()
    kind = "part"
    try:
        while kind == "part":
            kind, value = coming.get()
            if kind == "error":
                raise value
            yield value
    finally:
        if kind == "part":
            stop.set()
            thread.join()
