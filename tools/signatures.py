"""For the site's reference: functions made by `asks(Spec)` are shown with the arguments that they take.

`lk.patch` and its like are written as `(lm, spec)`; `labkit.patching.spec.asks` gives them the fields of the spec as
arguments, each of which the spec's docstring describes.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ARGUMENTS = re.compile(r"( *)Args:\n(?:\1 +.*\n|\n)+")
ATTRIBUTES = re.compile(r"Attributes:\n((?: +.*\n|\n)+)")


class Asks(griffe.Extension):
    """Replaces `spec` by the fields of the spec, once all of labkit is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        griffe.DataclassesExtension().on_package(pkg=pkg)  # the specs' fields, which it would find only later
        for module in modules(pkg):
            for function in module.functions.values():
                if not function.is_alias and (spec := asked(function)) is not None:
                    take(function, spec)


def modules(package: griffe.Module) -> list[griffe.Module]:
    inside = [module for module in package.modules.values() if not module.is_alias]
    return inside + [found for module in inside for found in modules(module)]


def asked(function: griffe.Function) -> griffe.Class | None:
    for decorator in function.decorators:
        call = decorator.value
        if isinstance(call, griffe.ExprCall) and str(call.function) == "asks":
            found = function.parent.modules_collection[call.arguments[0].canonical_path]  # type: ignore[union-attr]
            return found.final_target if found.is_alias else found  # type: ignore[return-value]
    return None


def take(function: griffe.Function, spec: griffe.Class) -> None:
    """Give a function the fields of its spec, in the order of the class that has them first, with their docs."""
    fields: dict[str, griffe.Parameter] = {}
    said: dict[str, str] = {}
    for one in (*reversed(spec.mro()), spec):
        for field in one.members["__init__"].parameters:  # type: ignore[union-attr]
            if field.name in fields:
                fields[field.name].default = field.default
            elif field.name not in ("self", "_"):
                fields[field.name] = field
        found = ATTRIBUTES.search((one.docstring.value if one.docstring else "") + "\n")
        for entry in re.split(r"\n(?=    \w)", found[1].rstrip() if found else ""):
            said[entry.strip().partition(":")[0]] = entry.strip("\n")
    function.parameters = griffe.Parameters(function.parameters[0], *fields.values())
    if function.docstring is not None:
        entries = "\n".join(said.values())
        function.docstring.value = ARGUMENTS.sub(lambda _: f"Args:\n{entries}\n\n", function.docstring.value)
