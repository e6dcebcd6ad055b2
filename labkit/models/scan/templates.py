"""Chat templates, looked through as Jinja's syntax tree; none is compiled or rendered.

transformers runs templates in Jinja's sandbox, which refuses attributes that begin with an underscore. A template that
asks for one nevertheless, or puts such a name together from pieces, counts on a hole in the sandbox: several have been
found (CVE-2024-56326 and CVE-2025-27516: `str.format` reached by a detour). The sandbox limits neither time nor memory,
so numbers and loops that only serve to use these up are looked for, too. What a template makes the model read is not
judged here.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from labkit.models.scan.rules import Finding, found, inert

MOST = 200_000
"""Characters of a template that is looked through; the longest in use have some 30,000."""
LOOPS = 10_000_000
"""Rounds of loops inside each other, and the largest number that a template may name."""
_RANGE = 100_000  # what the sandbox allows one range
_OF_PYTHON = """
    annotations base bases builtin builtins call class class_getitem closure code defaults delattr dict dir doc file
    format func getattr getattribute getitem globals import init init_subclass kwdefaults loader module mro name new
    path qualname reduce reduce_ex self setattr spec subclasses subclasshook weakref wrapped
"""
_DUNDERS = [f"__{name}__" for name in _OF_PYTHON.split()]
_DUNDER = re.compile("|".join(_DUNDERS))
_INTERNAL = {
    "mro", "gi_frame", "gi_code", "cr_frame", "cr_code", "ag_frame", "ag_code", "f_globals", "f_locals", "f_builtins",
    "f_back", "f_code", "tb_frame", "tb_next", "co_code", "co_consts", "func_globals", "func_code", "func_closure",
    "im_func", "im_self", "im_class",
}  # fmt: skip
_PYTHON = {
    "eval", "exec", "compile", "open", "getattr", "setattr", "delattr", "globals", "locals", "os", "sys", "subprocess",
    "importlib", "builtins", "socket", "pickle", "lipsum", "url_for", "get_flashed_messages", "popen", "system",
}  # fmt: skip
_FUNCTIONS = {"range", "raise_exception", "strftime_now", "namespace", "dict", "cycler", "joiner", "caller", "loop",
              "super"}  # fmt: skip
_METHODS = {
    "append", "capitalize", "count", "endswith", "extend", "find", "format", "get", "index", "isalnum", "isalpha",
    "isdigit", "islower", "isspace", "istitle", "isupper", "items", "join", "keys", "lower", "lstrip", "partition",
    "pop", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strftime", "strip", "title", "update", "upper", "values", "cycle", "changed",
    "swapcase", "copy", "isnumeric", "isdecimal", "casefold", "fromkeys", "zfill", "ljust", "rjust", "center",
}  # fmt: skip
_BUILDERS = {"join", "format", "replace", "reverse", "lower", "upper", "trim", "string", "first", "last", "list"}


class _Generation(jinja2.ext.Extension):
    """The tag by which transformers marks what the model wrote."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )


def in_json(held: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(where, template) for every chat template in what a JSON file holds."""
    if isinstance(held, dict):
        for key, value in held.items():
            here = f"{where}.{key}" if where else str(key)
            if not isinstance(value, str):
                yield from in_json(value, here)
            elif "chat_template" in here and key != "name":
                yield here, value
    elif isinstance(held, list):
        for number, value in enumerate(held):
            yield from in_json(value, f"{where}[{number}]")


def look(template: str, file: str, where: str = "") -> list[Finding]:
    """What there is to say of a template, at most once per kind and line.

    Args:
        template: its text.
        file: the file that it is in.
        where: in that file.
    """
    label = f"{inert(where)}, " if where else ""
    if len(template) > MOST:
        return [found("template-endless", file, f"{label}a template of {len(template):,} characters")]
    try:
        tree = _environment().parse(template)
    except RecursionError:
        return [found("template-endless", file, f"{label}expressions inside each other without end")]
    except Exception as error:  # besides its own errors Jinja lets out those of Python, of numbers and escapes
        where = f"{label}line {getattr(error, 'lineno', 0) or '?'}"
        return [found("template-broken", file, f"{where}: {inert(error) or type(error).__name__}")]
    seen: dict[tuple[str, int], str] = {}
    try:
        for rule, line, what in _Walk(tree).all():
            seen.setdefault((rule, line), what)
    except RecursionError:
        return [found("template-endless", file, f"{label}expressions inside each other without end")]
    return [found(rule, file, f"{label}line {line}: {what}") for (rule, line), what in seen.items()]


Seen = Iterator[tuple[str, int, str]]


class _Walk:
    """One pass over a template's tree."""

    def __init__(self, tree: nodes.Template) -> None:
        self.tree = tree
        self.own = {node.name for node in tree.find_all(nodes.Macro)} | {
            node.name for node in tree.find_all(nodes.Name) if node.ctx in ("store", "param")
        }

    def all(self) -> Seen:
        yield from self.below(self.tree, (), 1.0)

    def below(self, node: nodes.Node, above: tuple[nodes.Node, ...], rounds: float) -> Seen:
        """What a node and all below it show; `rounds`: how often the loops around it run, as far as that is known."""
        yield from self.one(node, above, rounds)
        inner = rounds
        if isinstance(node, nodes.For):
            inner *= _rounds(node.iter)
        for child in node.iter_child_nodes():
            yield from self.below(child, (*above, node), rounds if child is getattr(node, "iter", None) else inner)

    def one(self, node: nodes.Node, above: tuple[nodes.Node, ...], rounds: float) -> Seen:
        parent = above[-1] if above else None
        if isinstance(node, nodes.Getattr | nodes.NSRef):
            yield from self.attribute(node, parent)
        elif isinstance(node, nodes.Getitem):
            yield from self.item(node)
        elif isinstance(node, nodes.Const):
            yield from self.constant(node, above)
        elif isinstance(node, nodes.Filter):
            yield from self.filter(node)
        elif isinstance(node, nodes.Call):
            yield from self.call(node)
        elif isinstance(node, nodes.For):
            if rounds * _rounds(node.iter) > LOOPS:
                yield "template-endless", node.lineno, f"loops of {rounds * _rounds(node.iter):.0e} rounds"
        elif isinstance(node, nodes.Mul | nodes.Pow):
            if _size(node) > LOOPS:
                yield "template-endless", node.lineno, "a product or power as large as no template needs"
        elif isinstance(node, nodes.Assign):
            if _doubles(node) and any(isinstance(one, nodes.For) for one in above):
                yield "template-endless", node.lineno, "a text that grows to twice its length in every round of a loop"
        elif isinstance(node, nodes.Include | nodes.Import | nodes.FromImport | nodes.Extends):
            yield "template-unusual", node.lineno, "it reads another template"

    def attribute(self, node: Any, parent: nodes.Node | None) -> Seen:
        name = node.attr
        if _inner(name):
            yield "template-escape", node.lineno, f"the attribute {inert(name)}"
        elif name.startswith("_"):
            yield "template-unusual", node.lineno, f"the attribute {inert(name)}, which the sandbox refuses"
        elif (
            name in ("format", "format_map")
            and isinstance(node, nodes.Getattr)
            and not (isinstance(parent, nodes.Call) and parent.node is node)
        ):
            yield "template-escape", node.lineno, f"{name} as a value, to call it past the sandbox"

    def item(self, node: nodes.Getitem) -> Seen:
        key = node.arg
        if (text := _text(key)) is not None and text in _INTERNAL:
            yield "template-escape", node.lineno, f"the attribute {inert(text)}"
        if _built(key):
            text = _folded(key)
            if text is not None and _inner(text):
                yield "template-escape", node.lineno, f"the attribute {inert(text)}, put together from pieces"
            elif text is None:
                yield "template-unusual", node.lineno, "a key put together from pieces"

    def constant(self, node: nodes.Const, above: tuple[nodes.Node, ...]) -> Seen:
        value = node.value
        if isinstance(value, bool):
            return
        if isinstance(value, int | float) and abs(value) >= LOOPS:
            yield "template-endless", node.lineno, f"the number {value:.0e}" if value < 1e300 else "an endless number"
        if not isinstance(value, str):
            return
        if name := _DUNDER.search(value) or _DUNDER.search(value[::-1]):
            yield "template-escape", node.lineno, f"the name {name[0]} in a text"
        elif _piece(value) and any(isinstance(one, _JOINING) for one in above[-3:]):
            yield "template-escape", node.lineno, f"{inert(value)!r}, a piece of such a name as __class__"
        elif value in ("_", "__") and any(
            (isinstance(one, nodes.Getitem) and one.node is not node)
            or (isinstance(one, nodes.Filter) and one.name == "attr")
            for one in above[:-1]
        ):
            yield "template-escape", node.lineno, f"{inert(value)!r} as a piece of an attribute's name"

    def filter(self, node: nodes.Filter) -> Seen:
        arguments = [*node.args, *(pair.value for pair in node.kwargs)]
        names_attr = node.name in ("map", "select", "reject") and any(_text(one) == "attr" for one in arguments[:1])
        if node.name == "attr" or names_attr:
            of = arguments[0] if node.name == "attr" and arguments else arguments[1] if len(arguments) > 1 else None
            name = _folded(of) if of is not None else None
            if name is None or _inner(name) or name in ("format", "format_map"):
                what = f"attr({inert(name)!r})" if name else "attr() with a name that is put together as it runs"
                yield "template-escape", node.lineno, f"the filter {what}"
            else:
                yield "template-unusual", node.lineno, f"the filter attr({inert(name)!r})"
        elif node.name not in _environment().filters and node.name != "tojson":
            yield "template-unusual", node.lineno, f"the filter {inert(node.name)}, which transformers does not have"
        for argument in arguments:
            if _text(argument) in ("format", "format_map") and node.name == "map":
                yield "template-escape", node.lineno, "format by way of map, to call it past the sandbox"
        if node.name in ("center", "indent", "wordwrap", "truncate") and any(_size(a) > _RANGE for a in arguments):
            yield "template-endless", node.lineno, f"{node.name} to a width as large as no template needs"
        if node.name == "format" and (text := _text(node.node)) and re.search(r"%[^a-zA-Z%]*\d{6,}", text):
            yield "template-endless", node.lineno, "a format with a width as large as no template needs"

    def call(self, node: nodes.Call) -> Seen:
        called = node.node
        if isinstance(called, nodes.Name) and called.name not in self.own | _FUNCTIONS:
            dangerous = called.name in _PYTHON or called.name.startswith("__")
            rule = "template-escape" if dangerous else "template-unusual"
            yield rule, node.lineno, f"a call of {inert(called.name)}()"
        elif isinstance(called, nodes.Getattr):
            yield from self.method(node, called)
        elif isinstance(called, nodes.Getitem) and not isinstance(called.arg, nodes.Slice):
            yield "template-unusual", node.lineno, "a call of what a subscript gives"
        if isinstance(called, nodes.Name) and called.name == "range" and _rounds(node) > _RANGE:
            yield "template-endless", node.lineno, "a range of more than 100,000 numbers"

    def method(self, node: nodes.Call, called: nodes.Getattr) -> Seen:
        root: nodes.Node = called
        while isinstance(root, nodes.Getattr | nodes.Getitem | nodes.Call):
            root = root.node
        if isinstance(root, nodes.Name) and root.name in _PYTHON - self.own:
            yield "template-escape", node.lineno, f"a call of {inert(root.name)}…{inert(called.attr)}()"
        elif called.attr in ("format", "format_map"):
            text = _folded(called.node)
            if text is None:
                yield "template-unusual", node.lineno, "format() of a text that is only known as it runs"
            elif trick := _format_trick(text):
                rule = "template-endless" if trick == "width" else "template-escape"
                yield rule, node.lineno, f"a format that asks for {trick} ({inert(text, limit=60)!r})"
        elif called.attr not in _METHODS and called.attr not in self.own and not called.attr.startswith("_"):
            yield "template-unusual", node.lineno, f"a call of .{inert(called.attr)}()"
        if called.attr in ("ljust", "rjust", "center", "zfill") and any(_size(a) > _RANGE for a in node.args):
            yield "template-endless", node.lineno, f"{called.attr} to a width as large as no template needs"


# -- what is known of an expression without computing it ---------------------------------------------------------------


_JOINING = (nodes.Concat, nodes.Add, nodes.Getitem, nodes.Filter, nodes.List, nodes.Tuple)


def _inner(name: str) -> bool:
    """Is it a name of Python's own inside?"""
    return "__" in name or name in _INTERNAL


def _piece(text: str) -> bool:
    """Is it the beginning or the end of such a name, or that turned around?"""
    return (
        len(text) >= 4
        and "__" in text
        and any(name.startswith(one) or name.endswith(one) for name in _DUNDERS for one in (text, text[::-1]))
    )


def _text(node: nodes.Node | None) -> str | None:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


def _built(node: nodes.Node) -> bool:
    """Is this a text that is put together from pieces?"""
    if isinstance(node, nodes.Concat):
        return True
    if isinstance(node, nodes.Add):
        return any(_text(one) is not None or _built(one) for one in (node.left, node.right))
    if isinstance(node, nodes.Filter):
        return node.name in _BUILDERS - {"first", "last", "lower", "upper", "trim", "string"} or (
            node.node is not None and _built(node.node)
        )
    return (
        isinstance(node, nodes.Call)
        and isinstance(node.node, nodes.Getattr)
        and node.node.attr in ("format", "join", "replace")
    )


def _folded(node: nodes.Node | None) -> str | None:
    """The text that an expression of constants gives; None where that is not plain to see."""
    if (text := _text(node)) is not None:
        return text
    parts: Iterable[nodes.Node | None] = ()
    between = ""
    if isinstance(node, nodes.Concat):
        parts = node.nodes
    elif isinstance(node, nodes.Add):
        parts = (node.left, node.right)
    elif isinstance(node, nodes.Filter) and node.name == "join" and isinstance(node.node, nodes.List | nodes.Tuple):
        parts, between = node.node.items, (_text(node.args[0]) or "") if node.args else ""
    elif isinstance(node, nodes.Filter) and node.name in ("lower", "upper", "reverse", "trim", "string"):
        inner = _folded(node.node)
        change: dict[str, Callable[[str], str]] = {
            "lower": str.lower, "upper": str.upper, "reverse": lambda s: s[::-1], "trim": str.strip, "string": str,
        }  # fmt: skip
        return None if inner is None else change[node.name](inner)
    else:
        return None
    texts = [_folded(part) for part in parts]
    return None if None in texts else between.join(text or "" for text in texts)


def _size(node: nodes.Node | None) -> float:
    """How large a number of constants is; 0 where that is not plain to see. Nothing is computed exactly."""
    if isinstance(node, nodes.Const) and isinstance(node.value, int | float):
        return abs(float(min(node.value, 10**300)))
    if isinstance(node, nodes.Neg):
        return _size(node.node)
    if isinstance(node, nodes.Add):
        return _size(node.left) + _size(node.right)
    if isinstance(node, nodes.Mul):
        return max(_size(node.left), 1) * max(_size(node.right), 1) * bool(_size(node.left) or _size(node.right))
    if isinstance(node, nodes.Pow):
        base, power = _size(node.left), _size(node.right)
        return math.inf if power * math.log10(max(base, 1.1)) > 300 else base**power
    return 0.0


def _rounds(node: nodes.Node) -> float:
    """How many rounds a loop over this makes, where constants say it; else 1."""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == "range":
        return max([1.0, *map(_size, node.args[:2])])
    return 1.0


def _doubles(node: nodes.Assign) -> bool:
    """Does an assignment put a text together from itself, twice?"""
    if not isinstance(node.node, nodes.Concat | nodes.Add | nodes.Mul):
        return False
    target = node.target
    if isinstance(target, nodes.NSRef):
        same = [one for one in node.node.find_all(nodes.Getattr) if one.attr == target.attr]
        return len([one for one in same if isinstance(one.node, nodes.Name) and one.node.name == target.name]) > 1
    return False


def _format_trick(text: str) -> str | None:
    """What a format string asks for beyond its arguments: an attribute, an item or an endless width."""
    try:
        fields = [(name or "", spec or "") for _, name, spec, _ in string.Formatter().parse(text)]
    except ValueError:
        return None
    if any("." in name or "[" in name for name, _ in fields):
        return "an attribute of its argument"
    return "width" if any(re.search(r"\d{6,}", spec) for _, spec in fields) else None
