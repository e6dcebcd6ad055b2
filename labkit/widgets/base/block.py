"""The base of every building block.

A block is one anywidget: traits that are its public API, one ES module and one css file in `js/`. `js/theme.js` and
`js/theme.css` go in front of both, so that each block reaches the browser as one module without imports: no build step,
nothing fetched.

In a kernel, the module of a class of blocks is sent once, as the state of a small model that has no view. Each block
refers to that model as it does to its layout, so it is there wherever the block is: in a page that is loaded again, in
another one, in a saved or exported notebook.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets as t
from IPython import get_ipython

from labkit.widgets.base.colour_scales import SCALES
from labkit.widgets.base.front import css_of, script_of
from labkit.widgets.base.snapshot import HasSnapshot, card

_UNPACK = """// {name}.js of labkit with what it shares and its css, packed; the source is in labkit/widgets/js.
const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
const text = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
const url = URL.createObjectURL(new Blob([await text], {{ type: "text/javascript" }}));
const block = (await import(url)).default;
URL.revokeObjectURL(url);
"""
_SHARED = """const find = async ({ model, host }) => {
  const id = model.get("_shared").replace("IPY_MODEL_", "");
  const { widget_manager: manager } = model;
  const held = manager ? manager.get_model(id) : host.getModel(`anywidget:${id}`);
  const late = new Promise((_, fail) => setTimeout(fail, 3000));
  return (await Promise.race([held, late])).get("text");
};
const ask = (model) =>
  new Promise((come) => {
    model.on("msg:custom", ({ kind, text }) => kind === "source" && come(text));
    model.send({ kind: "source" });
  });
async function render(context) {
  let text = await find(context).catch(() => null);
  if (!text) {
    context.el.textContent = "Waiting for the kernel, which draws this. If there is none, run the cell again.";
    text = await ask(context.model);
    context.el.textContent = "";
  }
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  const block = (await import(url)).default;
  URL.revokeObjectURL(url);
  return block.render(context);
}
"""
_STYLED = """const dressRoot = (root) => {{
  if (root.getElementById({id})) return;
  const style = Object.assign(document.createElement("style"), {{ id: {id}, textContent: {css} }});
  (root.head ?? root).append(style);
}};
dressRoot(document);
"""


def source(*names: str) -> str:
    """A block as its browser runs it: css, the theme and what else it shares with others, and its own file last.

    The last name is the block's own. Comments, which have the types, stay at home; lines keep their numbers.
    """
    css = css_of("theme", *names)
    name = f"labkit-{names[-1]}-{hashlib.sha256(css.encode()).hexdigest()[:8]}"
    style = _STYLED.format(id=json.dumps(name), css=json.dumps(css))
    return style + script_of("theme", *names) + f"//# sourceURL=labkit/{names[-1]}.js\n"


def _packed(name: str, script: str) -> str:
    data = base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
    return _UNPACK.format(name=name, data=data)


def module(*names: str) -> str:
    """The ES module of a block, as it travels: packed to a third."""
    packed = _packed(names[-1], source(*names)) + "export default block;\n"
    _FILES[packed] = names
    return packed


def listener(name: str) -> str:
    """What a block has to have before its first message comes: the `initialize` in a file."""
    return _packed(name, script_of("theme", name) + "export default { initialize };\n")


_FILES: dict[str, tuple[str, ...]] = {}  # the files in js/ that a module is made of, its own last


class _Shared(widgets.Widget):
    """The module of a class of blocks, which all of them in a front end draw with."""

    text = t.Unicode().tag(sync=True)

    def close(self) -> None:
        """Stay: `Widget.close_all()` is about what is shown, and blocks refer to this as long as the kernel lives."""


_held: dict[str, _Shared] = {}  # by module


def _share(text: str) -> _Shared | None:
    """The model that holds a module; None where a block had better bring its own.

    That is without a kernel, where nobody could answer a block that does not find the model; in Colab, whose outputs
    are pages of their own; and in VS Code.
    """
    if getattr(get_ipython(), "kernel", None) is None or "google.colab" in sys.modules or "VSCODE_PID" in os.environ:
        return None
    if text not in _held:
        _held[text] = _Shared(text=text)
    return _held[text]


class Array(t.TraitType):
    """A numpy array that travels as bytes: uint8 stays uint8, the rest becomes float32, or the type to `keep`."""

    info_text = "an array of numbers"

    def __init__(self, ndim: int, *, keep: Any = np.float32, grows: bool = False) -> None:
        super().__init__(default_value=None, allow_none=True)
        self.ndim = ndim
        self.dtype = np.dtype(keep)
        self.tag(sync=True, to_json=_to_growing_wire if grows else to_wire)

    def validate(self, obj: Any, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.ndim != self.ndim:
            raise t.TraitError(f"{self.name} has {self.ndim} axes; got an array of shape {array.shape}")
        # A copy: the array may still be filling and must not change before it is sent.
        return np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else self.dtype, order="C")

    def set(self, obj: Any, value: Any) -> None:
        # traitlets asks `old == new`, which numpy does not answer with one truth value; a new array is a change.
        new = None if value is None else self.validate(obj, value)
        old = obj._trait_values.get(self.name)
        obj._trait_values[self.name] = new
        if old is not None or new is not None:
            obj._notify_trait(self.name, old, new)


def to_wire(value: np.ndarray | None, _widget: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"shape": list(value.shape), "dtype": str(value.dtype), "data": memoryview(value.tobytes())}


def _to_growing_wire(value: np.ndarray | None, widget: Any) -> dict[str, Any]:
    """Where there is nothing yet, there is still an object for the browser to put it into."""
    return to_wire(value, widget) or {"shape": [0], "dtype": "float32", "data": None}


def cell(numbers: int = 2) -> Any:
    """A trait for a place in a grid: (row, column), or None; or for a part of one, as four numbers."""
    return t.Tuple(*(t.Int() for _ in range(numbers)), default_value=None, allow_none=True)


class Block(HasSnapshot, anywidget.AnyWidget):
    """A building block: its colour scale, and how it shows without a browser."""

    scale = t.Unicode("amount").tag(sync=True)
    stops = t.Dict(help="the scale's colours, by theme").tag(sync=True)
    _shared = t.Instance(_Shared, allow_none=True).tag(sync=True, **widgets.widget_serialization)
    _listener = ""

    @classmethod
    def files(cls) -> tuple[str, ...]:
        """The names of its files in `js/`, with what it shares and without the theme; its own is the last."""
        modules = (vars(base).get("_esm") for base in cls.__mro__)  # anywidget puts a trait in front of the text
        return next(_FILES[one] for one in modules if isinstance(one, str) and one in _FILES)

    def __init__(self, **traits: Any) -> None:
        if shared := _share(self._esm):
            first = "...block, " if self._listener else ""
            short = f"{self._listener}{_SHARED}export default {{ {first}render }};\n"
            traits |= {"_shared": shared, "_esm": short}
        super().__init__(**traits)
        self.on_msg(self._answer)

    def _answer(self, _widget: Any, message: Any, _buffers: Any) -> None:
        if message.get("kind") == "source" and self._shared:
            self.send({"kind": "source", "text": self._shared.text})

    @t.default("stops")
    def _stops(self) -> dict[str, list[str]]:
        return SCALES[self.scale]

    @t.validate("scale")
    def _known_scale(self, proposal: Any) -> str:
        if proposal["value"] not in SCALES:
            raise t.TraitError(f"scale is one of {', '.join(SCALES)}; got {proposal['value']!r}")
        return str(proposal["value"])

    @t.observe("scale")
    def _new_scale(self, change: Any) -> None:
        self.stops = SCALES[change["new"]]

    def picture(self) -> str:
        """What the block shows, as HTML without a frame, for the snapshot of a tool."""
        raise NotImplementedError

    def snapshot(self) -> str:
        return card(self.picture(), title=getattr(self, "title", ""))


def texts(tokens: Sequence[Any]) -> list[str]:
    """What to show of tokens: strings as they are, `labkit.text.tokens.Token` by its display text."""
    return [token if isinstance(token, str) else str(getattr(token, "display", token)) for token in tokens]


def literal(values: np.ndarray | None, *, at_most: int = 600) -> str:
    """An array as Python text; a large one as a name with its shape."""
    if values is None:
        return "None"
    if values.size > at_most:
        return f"values  # {values.dtype} {values.shape}"
    if values.dtype == np.uint8:
        return f"np.array({values.tolist()}, np.uint8)"
    return repr(np.round(values.astype(float), 4).tolist()).replace("nan", "float('nan')")
