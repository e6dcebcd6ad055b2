"""What an exported page holds: blocks with their traits, the layout around them, and what follows from a click.

In a notebook the kernel answers a click. In a file the answers are there beforehand: a `Switch` names the traits that
somebody can change, and for each of their values what the other parts then show. What is not in the file is said.

Everything travels as chunks, JSON or bytes, deflated and in base64: a text from a model or a tokenizer is never markup,
and whatever is the same (labels, scales, a matrix) is there once.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Hashable, Iterable, Mapping
from html import unescape
from typing import Any, TypeAlias

import ipywidgets as widgets
from anywidget import AnyWidget

from labkit.widgets.base.front import css_of, script_of

LIMIT = 2_000_000
"""Bytes of an exported page, at most."""
_MINE = {"selection", "hovered", "chosen", "arrow", "window", "detail", "detail_at", "opened", "pointed"}
"""Traits that belong to whoever looks: another state of a block leaves them as they are."""
_CHOSEN = {"selection", "value"}
"""What a rule sets is set, also where the page opened with it: somebody may have chosen something else since."""
_PLACED = ("flex", "width", "max_width")
Source: TypeAlias = AnyWidget | Mapping[str, Any]


def key_of(*values: Any) -> str:
    """The values of traits as the page looks them up: as JavaScript writes them."""
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


class Contents:
    """What goes into one page.

    Args:
        room: bytes that chunks and scripts together may take; what is optional is left out beyond it.
    """

    def __init__(self, room: int = LIMIT) -> None:
        self.room = room
        self.chunks: list[str] = []
        self.files: dict[tuple[str, ...], None] = {}  # of the blocks, in js/
        self.scripts: dict[str, None] = {}  # of the page itself, beside `export`
        self.rules: list[Any] = []
        self._models: dict[str, dict[str, Any]] = {}
        self._ids: dict[Any, str] = {}
        self._held: dict[bytes, int] = {}
        self._spent = 0  # bytes of what refers to chunks
        self._base = (0, 0)  # bytes of the page as it opens, for so many models

    # -- what there is ---------------------------------------------------------------------------------------------

    def show(self, widget: Any, *, live: Iterable[Any] = (), instead: Mapping[Any, Any] | None = None) -> str | None:
        """Put a widget and all that is in it into the page; its id there, or None where nothing can be shown.

        Args:
            live: controls that stay, as something follows from them: those of a `switch`. Others are left out.
            instead: what the page has in the place of some parts; None for nothing.
        """
        return self._node(widget, set(live), instead or {})

    def _node(self, widget: Any, live: set[Any], instead: Mapping[Any, Any]) -> str | None:
        if widget in instead:
            return None if instead[widget] is None else self._node(instead[widget], live, {})
        about: dict[str, Any] = {}
        traits: dict[str, Any] = {"hidden": _hidden(widget)}
        if isinstance(widget, AnyWidget):
            if not hasattr(widget, "files"):
                return None
            if widget.files()[-1] == "prompt_box":
                about, traits = {"kind": "quote"}, traits | {"label": widget.label, "text": widget.value}
            else:
                self.files[widget.files()] = None
                about, traits = {"kind": "block", "block": widget.files()[-1]}, traits | traits_of(widget)
        elif isinstance(widget, widgets.Box):
            children = [self._node(child, live, instead) for child in widget.children]
            about = {"kind": "box", "children": [child for child in children if child is not None]}
            about["row"] = isinstance(widget, widgets.HBox)
            if not about["children"]:
                return None
        elif widget in live:
            about, traits = {"kind": "control"}, traits | _control(widget)
        elif isinstance(widget, widgets.HTML | widgets.Label):
            about, traits = {"kind": "text"}, traits | {"text": _plain(widget)}
        else:
            return None
        about |= {"class": list(widget._dom_classes), "style": _style(widget)}
        number = self._ids.setdefault(widget, f"m{len(self._ids)}")
        self._models[number] = {**about, "traits": traits}
        return number

    def set(self, part: Any, **traits: Any) -> None:
        """A part has these traits as the page opens, whatever it has here."""
        self._models[self._ids[part]]["traits"].update(traits)

    # -- what follows from what --------------------------------------------------------------------------------------

    def switch(self, *on: tuple[Any, str], otherwise: Mapping[Any, Source] | None = None) -> Switch:
        """When one of these traits of (widget, trait) changes, others take the state that goes with it.

        Args:
            otherwise: where there is none; `%s` in a text stands for the values.
        """
        return Switch(self, on, otherwise)

    def link(self, trait: str, *parts: Any) -> None:
        """These parts of the page keep the same value of a trait."""
        self.rules.append(
            {"rule": "same", "trait": trait, "of": [self._ids[part] for part in parts if part in self._ids]}
        )

    def rule(self, name: str, *scripts: str, **parts: Any) -> None:
        """Something that scripts in `js/` work out in the page, from parts that are shown, by their role."""
        self.scripts |= dict.fromkeys(scripts)
        named = {role: self._ids.get(part) for role, part in parts.items()}
        self.rules.append({"rule": name, **{role: id for role, id in named.items() if id is not None}})

    def has(self, widget: Any) -> bool:
        return widget in self._ids

    # -- how it travels ----------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of all chunks and scripts, and of what refers to them; nearly so, and rather too many."""
        if self._base[0] != len(self._models):
            shown = json.dumps([self._packed(one["traits"]) for one in self._models.values()])
            packed = 1.4 * len(zlib.compress(shown.encode())) + 100 * len(self._models)
            self._base = len(self._models), int(packed) + len(self.script()) + len(self.css())
        return self._base[1] + self._spent + sum(len(chunk) + 3 for chunk in self.chunks)

    def chunk(self, data: bytes) -> int:
        """The number of a chunk of these bytes."""
        if data not in self._held:
            packer = zlib.compressobj(9, wbits=-15)
            self._held[data] = len(self.chunks)
            self.chunks.append(base64.b64encode(packer.compress(data) + packer.flush()).decode())
        return self._held[data]

    def forget(self, chunks: int) -> None:
        """Only the first so many chunks."""
        del self.chunks[chunks:]
        self._held = {data: n for data, n in self._held.items() if n < chunks}

    def spend(self, size: int) -> None:
        self._spent += size

    def json(self, value: Any) -> int:
        """The number of a chunk of JSON."""
        return self.chunk(json.dumps(self._packed(value), ensure_ascii=False, separators=(",", ":")).encode())

    def _packed(self, value: Any) -> Any:
        """For JSON: bytes become chunks of their own, and what is not a number becomes nothing."""
        if isinstance(value, bytes | bytearray | memoryview):
            return {"$": self.chunk(bytes(value))}
        if isinstance(value, Mapping):
            return {str(name): self._packed(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._packed(one) for one in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    def state(self, parts: Mapping[Any, Source]) -> dict[str, Any]:
        """What is other than in the page as it opens, by the id of each part."""
        found = {}
        for part, source in parts.items():
            if part not in self._ids:
                continue
            base = self._models[self._ids[part]]["traits"]
            if isinstance(source, AnyWidget):
                fresh = look_of(source)
            else:
                fresh = dict(source)
            found[self._ids[part]] = {
                name: value
                for name, value in fresh.items()
                if name in _CHOSEN or name not in base or not _same(base[name], value)
            }
        return found

    def data(self, roots: list[str | None]) -> str:
        """Everything, as JSON that is safe inside a script element."""
        main = self.json({"roots": roots, "models": self._models, "rules": self.rules})
        text = json.dumps({"main": main, "chunks": self.chunks}, separators=(",", ":"))
        return inert(text)

    def script(self) -> str:
        """The script of the page: the theme, the blocks, each with what it shares, and what stands in for a kernel."""
        blocks = "".join(
            f"blocks[{json.dumps(files[-1])}] = (() => {{\n{_returning(script_of(*files))}}})();\n"
            for files in self.files
        )
        front = script_of("theme", "export", *self.scripts)
        return f'(() => {{\n"use strict";\n{front}const blocks = {{}};\n{blocks}openPage(blocks);\n}})();\n'

    def css(self) -> str:
        names = dict.fromkeys(name for files in self.files for name in files)
        return css_of("theme", *names, "export")


class Switch:
    """What follows from the values of some traits: see `Contents.switch`."""

    def __init__(
        self, contents: Contents, on: tuple[tuple[Any, str], ...], otherwise: Mapping[Any, Source] | None
    ) -> None:
        self._contents = contents
        _ = contents.size  # what the page opens with has its chunks before any that may be left out again
        self.states: dict[str, int] = {}
        rest = None if otherwise is None else contents.json(contents.state(otherwise))
        self.told = {
            "rule": "switch", "on": [[contents._ids[part], name] for part, name in on], "states": self.states,
            "otherwise": rest,
        }  # fmt: skip
        contents.rules.append(self.told)

    def when(self, *values: Any, parts: Mapping[Any, Source], optional: bool = False) -> bool:
        """With these values the parts show this: each what a block like it shows, or the traits that are given.

        Returns False, and adds nothing, where it is optional and the page has no room for it.
        """
        contents = self._contents
        before = len(contents.chunks)
        number = contents.json(contents.state(parts))
        if optional and contents.size > contents.room:
            contents.forget(before)
            return False
        self.states[key_of(*values)] = number
        contents.spend(len(key_of(*values)) + 10)
        return True


def page_choice(label: str, options: Iterable[tuple[str, Hashable]], value: Hashable) -> widgets.Dropdown:
    """A drop-down that only a page has."""
    return silent(widgets.Dropdown(description=label, options=list(options), value=value))


def silent(widget: Any) -> Any:
    """A widget, made to be asked for its traits, that no front end hears of any more; and all that is in it."""
    for child in (*getattr(widget, "children", ()), getattr(widget, "style", None), widget.layout):
        if isinstance(child, widgets.Layout | widgets.Style):
            child.close()
        elif child is not None:
            silent(child)
    widget.close()
    return widget


def traits_of(block: Any) -> dict[str, Any]:
    """The traits of a block as they travel."""
    bare = {"layout", "tabbable", "tooltip", "style"}
    return block.get_state([name for name in block.keys if not name.startswith("_") and name not in bare])


def look_of(block: Any) -> dict[str, Any]:
    """What a block shows, without what belongs to whoever looks at it: its selection, its window."""
    return {name: value for name, value in traits_of(block).items() if name not in _MINE} | {"hidden": _hidden(block)}


def inert(text: str) -> str:
    """JSON that no HTML parser sees anything in, whatever is in its strings."""
    for one in "<>&\u2028\u2029":
        text = text.replace(one, f"\\u{ord(one):04x}")
    return text


def _returning(module: str) -> str:
    """A module of a block as the body of a function."""
    return re.sub(r"^export default ", "return ", module, flags=re.MULTILINE)


def _same(one: Any, other: Any) -> bool:
    return _comparable(one) == _comparable(other)


def _comparable(value: Any) -> Any:
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return {name: _comparable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(one) for one in value]
    return value


def _hidden(widget: Any) -> bool:
    return bool(widget.layout.display == "none")


def _style(widget: Any) -> dict[str, str]:
    return {name: str(value) for name in _PLACED if (value := getattr(widget.layout, name))}


def _plain(widget: Any) -> str:
    return unescape(re.sub(r"<[^>]*>", "", widget.value)) if isinstance(widget, widgets.HTML) else str(widget.value)


def _control(widget: Any) -> dict[str, Any]:
    """A control that stays: what it is called, what it offers, and what is chosen."""
    found = {"label": widget.description, "value": widget.value}
    if isinstance(widget, widgets.Checkbox):
        return {**found, "look": "checkbox"}
    options = [[str(words), value] for words, value in zip(widget._options_labels, widget._options_values, strict=True)]
    return {**found, "look": "buttons" if isinstance(widget, widgets.ToggleButtons) else "select", "options": options}
