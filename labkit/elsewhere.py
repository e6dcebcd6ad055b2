"""Functions that run where their model is, which may be another machine.

`@where_the_model_is` marks a public function of a model (or a method of something that has one as its `lm`). For a
model in this process it is the function itself. A model that is elsewhere (`labkit.remote`) has a method `ask`, which
gets the call by its name instead. `CALLS` has all that can be asked for, so what a server answers is a query over it,
and nothing else can be named.

What such a function tells while it works goes to a `Listener`: how far it is, and what it warns of.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, TypeVar, overload

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


def is_elsewhere(lm: Any) -> bool:
    """Is this a model whose weights are not in this process?"""
    return hasattr(type(lm), "ask")


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
