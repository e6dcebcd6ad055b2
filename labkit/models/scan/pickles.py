"""Pickles, followed opcode by opcode without being run: what they import, and what they call.

`pickletools.genops` of the standard library gives the opcodes; a stack of what is known of each value (a text, an
import, or nothing) shows what `STACK_GLOBAL` and `REDUCE` are about, through the memo and whatever lies between. Which
imports are known to run code is picklescan's list. Beyond that list what is not known to be harmless is not trusted:
a function is a danger, a class of an installed package a warning.
"""

from __future__ import annotations

import io
import logging
import pickletools
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from labkit.models.scan.places import Bounded
from labkit.models.scan.rules import Finding, found, inert, listed

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".p")
MOST = 500_000
"""Opcodes that are followed in one file, a second or two; the pickle of a large model has some ten thousand."""
_LEGACY = 0x1950A86A20F9469CFC6C  # the number that files of torch before 1.6 begin with; four more pickles follow
_MARK = object()
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PROTOCOL = re.compile(rb"\x80[\x00-\x05]|\(?c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
_HARMLESS = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict float frozenset int list object set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "dtype ndarray bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.numeric": "_frombuffer",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "Size Tensor device dtype bfloat16 bool float16 float32 float64 half int8 int16 int32 int64 uint8 "
    "float8_e4m3fn float8_e5m2 complex64 complex128",
    "torch._tensor": "_rebuild_from_type_v2",
    "torch._utils": "_rebuild_parameter _rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor "
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_meta_tensor_no_storage",
    "torch.nn.parameter": "Buffer Parameter",
    "torch.serialization": "_get_layout",
    "torch.storage": "TypedStorage UntypedStorage",
}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as Python 2 wrote them

logging.getLogger("picklescan").addHandler(logging.NullHandler())  # it would print each import that it lists


@dataclass
class Budget:
    """How many opcodes may still be followed in a file, however many pickles it has."""

    left: int = MOST


@dataclass
class Trace:
    """What following one pickle showed.

    Attributes:
        imports: (module, name) in order; None stands for what is only known when it runs.
        called: those of them that it calls.
        opcodes: how often each occurs.
        broken: why it could not be followed to its end, if so.
        first: the first value pushed.
    """

    imports: dict[tuple[str | None, str | None], None] = field(default_factory=dict)
    called: dict[tuple[str | None, str | None], None] = field(default_factory=dict)
    opcodes: Counter[str] = field(default_factory=Counter)
    broken: str | None = None
    first: Any = None


def is_pickle(head: bytes) -> bool:
    """Do these first bytes of a file look like a pickle's?"""
    return _PROTOCOL.match(head) is not None


def look(
    stream: Bounded, file: str, inside: str = "", *, sure: bool = True, budget: Budget | None = None
) -> list[Finding]:
    """What there is to say of the pickles that follow one another in a stream.

    Args:
        stream: open where the first one begins.
        file: the file's name.
        inside: the part of it that the pickle is, such as a member of an archive.
        sure: it is a pickle, whether or not it can be followed.
        budget: of the file, where it has other pickles, too.
    """
    label = f"{inert(inside)} in it" if inside else "the file"
    traces = _all(stream, budget or Budget())
    if not sure and traces[0].broken and not any(_plausible(one) for one in traces[0].imports):
        return []
    if findings := [finding for trace in traces if (finding := _judged(trace, file, label))]:
        return findings
    number = sum(sum(trace.opcodes.values()) for trace in traces)
    names = [_written(one) for trace in traces for one in trace.imports]
    return [
        found("pickle", file, f"{label} is a pickle of {number:,} opcodes; it imports {listed(names) or 'nothing'}")
    ]


def _all(stream: Bounded, budget: Budget) -> list[Trace]:
    """The pickles in a stream: five in a file of old torch, where numbers follow, otherwise all there are."""
    traces = [follow(stream, budget)]
    legacy = traces[0].first == _LEGACY
    while traces[-1].broken is None and (not legacy or len(traces) < 5):
        if not stream.read(1):
            break
        stream.seek(-1, 1)
        trace = follow(stream, budget)
        if trace.broken and budget.left and not any(_plausible(one) for one in trace.imports):
            break  # not a pickle any more
        traces.append(trace)
    return traces


def follow(stream: Bounded, budget: Budget) -> Trace:
    """Follow one pickle to its STOP, or to where it breaks off; nothing is imported or called."""
    trace = Trace()
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        opcodes = pickletools.genops(stream)  # type: ignore[arg-type]
        for number, (opcode, argument, _) in enumerate(opcodes):
            if not budget.left:
                trace.broken = f"more than {MOST:,} opcodes in one file"
                break
            budget.left -= 1
            trace.opcodes[opcode.name] += 1
            _step(opcode, argument, stack, memo, trace)
            if number < 4 and trace.first is None and isinstance(argument, int) and opcode.name != "PROTO":
                trace.first = argument
    except Exception as error:  # whatever it is, it ends what can be seen
        trace.broken = inert(error, limit=80) or type(error).__name__
    return trace


def _step(opcode: Any, argument: Any, stack: list[Any], memo: dict[int, Any], trace: Trace) -> None:
    """What an opcode does to the stack, as far as it is known without running it."""
    name, before, after = opcode.name, opcode.stack_before, opcode.stack_after
    top = stack[-1] if stack else None
    if name == "MARK":
        stack.append(_MARK)
        return
    if "PUT" in name or name == "MEMOIZE":
        memo[len(memo) if name == "MEMOIZE" else argument] = top
        return
    value: Any = argument if ("UNICODE" in name or "STRING" in name) and isinstance(argument, str) else None
    if name in ("GLOBAL", "INST"):
        value = tuple(argument.split(" ", 1))
    elif name == "STACK_GLOBAL":
        last = [one if isinstance(one, str) else None for one in stack[-2:]]
        value = (last[0], last[1]) if len(last) == 2 else (None, None)
    elif name.startswith("EXT"):
        value = ("copyreg", f"extension {argument}")
    elif name.endswith("GET"):
        value = memo.get(argument)
    elif name == "DUP":
        value = top
    if name in ("GLOBAL", "INST", "STACK_GLOBAL") or name.startswith("EXT"):
        trace.imports[value] = None
        if name == "INST":
            trace.called[value] = None
    taken = _take(stack, before)
    if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "BUILD"):
        trace.called.update((one, None) for one in taken[:2] if isinstance(one, tuple))
    stack += [value] * len(after)


def _take(stack: list[Any], before: list[Any]) -> list[Any]:
    """Take from the stack what an opcode takes."""
    if pickletools.markobject not in before:
        size = len(before)
        taken = stack[len(stack) - size :] if size else []
        del stack[len(stack) - len(taken) :]
        return taken
    taken = []
    while stack and (one := stack.pop()) is not _MARK:
        taken.insert(0, one)
    for _ in range(before.index(pickletools.markobject)):
        taken.insert(0, stack.pop() if stack else None)
    return taken


# -- what it means ---------------------------------------------------------------------------------------------------


def _judged(trace: Trace, file: str, label: str) -> Finding | None:
    """What to say of a pickle; None if nothing."""
    graded = {one: grade(*one) for one in trace.imports}
    if bad := [one for one, grade in graded.items() if grade == "danger"]:
        calls = [one for one in bad if one in trace.called]
        does = f" and calls {listed(map(_written, calls))}" if calls else ""
        ops = ", ".join(op for op in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "REDUCE", "BUILD")
                        if trace.opcodes[op])  # fmt: skip
        return found("pickle-runs-code", file, f"{label} imports {listed(map(_written, bad))}{does} (opcodes {ops})")
    if trace.broken:
        return found("pickle-cannot-be-followed", file, f"{label} cannot be followed to its end: {trace.broken}")
    if odd := [one for one, grade in graded.items() if grade == "odd"]:
        return found("pickle-imports", file, f"{label} imports {listed(map(_written, odd))}")
    return None


def grade(module: str | None, name: str | None) -> str:
    """How far an import is to be trusted: `harmless`, `odd` or `danger`."""
    if module is None or name is None:
        return "danger"  # its name is put together while it runs
    module = _OLD_NAMES.get(module, module)
    if name in _HARMLESS.get(module, "").split() or (module in ("torch", "torch.cuda") and name.endswith("Storage")):
        return "harmless"
    of_python = module.partition(".")[0] in sys.stdlib_module_names
    names_a_class = all(re.fullmatch(r"_?[A-Z]\w*", part) for part in name.split("."))
    if of_python or not names_a_class or not _plausible((module, name)) or _known_to_run_code(module, name):
        return "danger"
    return "odd"


@cache
def _known_to_run_code(module: str, name: str) -> bool:
    """Is this import on picklescan's list? It is asked about a pickle that has nothing else."""
    one = io.BytesIO(f"c{module}\n{name}\n.".encode())
    return any(known.safety is SafetyLevel.Dangerous for known in scan_pickle_bytes(one, "").globals)


def _plausible(one: tuple[str | None, str | None]) -> bool:
    return all(part is not None and _IDENTIFIER.fullmatch(part) is not None for part in one)


def _written(one: tuple[str | None, str | None]) -> str:
    module, name = one
    whole = module is not None and name is not None
    return f"{module}.{name}" if whole else "what it names only while it runs"
