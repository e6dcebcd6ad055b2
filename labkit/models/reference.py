"""Results that refer to a model are copied and pickled without it.

A copy refers to the same model, and so does an unpickled result while that model is still in memory. Elsewhere the
result has its computed values and an `AbsentModel`, which says how to load the model again.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

if TYPE_CHECKING:
    from labkit.models.handle import Model

_keys: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_alive: WeakValueDictionary[str, Any] = WeakValueDictionary()


class AbsentModel:
    """Stands in for the model of an unpickled result; any use raises an error that says what to do."""

    def __init__(self, load: str) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself looks up on every object
            raise AttributeError(name)
        raise AttributeError(
            "this result was unpickled without its model, and this call needs the model; load it, then set result.lm = "
            f"lm:\n\n{self._load}"
        )

    def __repr__(self) -> str:
        return "AbsentModel()"


class _Reference:
    """Stands for a model in what is copied or pickled."""

    def __init__(self, lm: Model | AbsentModel) -> None:
        self.lm = lm

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        # the copied model, where model and result are copied together
        return _Reference(memo.get(id(self.lm), self.lm))

    def __reduce__(self) -> Any:
        if isinstance(self.lm, AbsentModel):
            return _found, ("", self.lm._load)
        key = _keys.setdefault(self.lm, uuid.uuid4().hex)
        _alive[key] = self.lm
        return _found, (key, self.lm.code())


def _found(key: str, load: str) -> _Reference:
    lm = _alive.get(key)
    return _Reference(AbsentModel(load) if lm is None else lm)


class RefersToModel:
    """A result with a model as its `lm`."""

    def __getstate__(self) -> dict[str, Any]:
        lm = self.__dict__.get("lm")
        return {**self.__dict__, "lm": None if lm is None else _Reference(lm)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(reference := state.get("lm"), _Reference):
            self.__dict__["lm"] = reference.lm
