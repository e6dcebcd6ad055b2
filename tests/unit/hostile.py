"""Hostile checkpoints: each is made in an empty folder, and a scan has to flag it by the rule named beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hostile_files import HOSTILE, NORM, NOT_ON_WINDOWS, add, ggufs, one
from suspects import (
    TOUCHED,
    WEIGHTS,
    Make,
    header,
    hub_cache,
    plain,
    reindex,
    safetensors,
    sharded,
)

__all__ = ["ENDLESS", "ESCAPES", "HOSTILE", "NOT_ON_WINDOWS"]

# -- code ------------------------------------------------------------------------------------------------------------


def coded(code: str | None, names: str = "modeling_x.X", file: str = "config.json") -> Make:
    """A checkpoint whose configuration names code of its own, which is `code`."""

    def make(folder: Path) -> None:
        plain(folder)
        held = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(held | {"auto_map": {"AutoModelForCausalLM": names}}))
        if code is not None:
            (folder / "modeling_x.py").write_text(code.replace("TOUCHED", str(folder / TOUCHED)))

    return make


one(
    "code of its own",
    "remote-code",
    r"it names modeling_x\.py",
    coded("from torch import nn\nclass X(nn.Module): ...\n"),
)
one(
    "code that starts programs",
    "remote-code-acts",
    r"os\.system\(\) in line 2",
    coded("import os\nos.system('touch TOUCHED')\nclass X: ...\n"),
)
one(
    "code that runs text", "remote-code-acts", r"exec\(\) in line 2", coded("import zlib\nexec(zlib.decompress(b''))\n")
)
one(
    "code of another repository",
    "remote-code-elsewhere",
    r"modeling_x\.py of evil/repository",
    coded(None, "evil/repository--modeling_x.X"),
)
one("code that is not there", "remote-code-missing", r"modeling_x\.py", coded(None))
one("code of the tokenizer", "remote-code", r"modeling_x\.py", coded("class X: ...\n", file="tokenizer_config.json"))
one(
    "code that its configuration hides among others",
    "remote-code-acts",
    r"subprocess\.run\(\)",
    lambda folder: (
        coded("from .inner import X\n")(folder),
        (folder / "inner.py").write_text("import subprocess as s\ns.run(['id'])\n"),
    ),
)
one(
    "kernels of the hub",
    "compiled-code",
    "evil/kernels",
    lambda folder: plain(folder, _attn_implementation="evil/kernels"),
)
one(
    "a file that hides a package",
    "shadows",
    r"torch",
    lambda folder: (plain(folder) / "torch.py").write_text("x = 1\n"),
)
one("a program", "executable", "ELF", lambda folder: (plain(folder) / "helper").write_bytes(b"\x7fELF" + bytes(60)))
one(
    "a program in the place of a template",
    "disguised",
    "a program",
    lambda folder: (plain(folder) / "chat_template.jinja").write_bytes(b"\x7fELF" + bytes(60)),
)
one("a shell script", "script", "script", lambda folder: (plain(folder) / "setup").write_text("#!/bin/sh\n"))

# -- paths -----------------------------------------------------------------------------------------------------------

one(
    "an index that leaves the folder",
    "path-leaves",
    r"\.\./\.\./secret\.safetensors",
    lambda folder: reindex(folder, lambda places: places.update({NORM: "../../secret.safetensors"})),
)
one(
    "an index with an absolute path",
    "path-leaves",
    "/etc/passwd",
    lambda folder: reindex(folder, lambda places: places.update({NORM: "/etc/passwd"})),
)
one(
    "an index that names a pickle",
    "disguised",
    r"names pytorch_model\.bin",
    lambda folder: reindex(folder, lambda places: places.update({NORM: "pytorch_model.bin"})),
)
one(
    "an index that names what is not there",
    "index-missing",
    r"1 of the 3 files",
    lambda folder: reindex(folder, lambda places: places.update({"lm_head.weight": "gone.safetensors"})),
)
one(
    "an index of another model",
    "index-differs",
    r"lm_head\.weight",
    lambda folder: reindex(folder, lambda places: places.update({"lm_head.weight": places[NORM]})),
)
one(
    "weights that the index does not name",
    "index-unnamed",
    "does not name it",
    lambda folder: safetensors(sharded(folder) / "hidden.safetensors", header(WEIGHTS)),
)
one(
    "a link out of the folder",
    "link-leaves",
    "/etc/hostname",
    lambda folder: (plain(folder) / "generation_config.json").symlink_to("/etc/hostname"),
)
one(
    "a folder that is a link",
    "link-leaves",
    "a link out of the folder, to /etc",
    lambda folder: (plain(folder) / "custom").symlink_to("/etc"),
)
one("a pipe", "special-file", "not an ordinary file", lambda folder: os.mkfifo(plain(folder) / "merges.txt"))


@add("a snapshot that links elsewhere than to its blobs", "link-leaves", "secret")
def _(folder: Path) -> Path:
    snapshot = hub_cache(folder)
    (folder / "secret").write_text("x")
    (snapshot / "merges.txt").symlink_to("../../../secret")
    return snapshot


one(
    "a name that is turned around",
    "name-hides",
    r"model\\u202egnp\.exe",
    lambda folder: (plain(folder) / "model\u202egnp.exe").write_text("x"),
)
one(
    "another licence than declared",
    "licence-differs",
    r"declares mit, but LICENSE is apache-2\.0",
    lambda folder: (plain(folder) / "README.md").write_text("---\nlicense: mit\n---\n"),
)

# -- chat templates --------------------------------------------------------------------------------------------------

ESCAPES = {
    "__class__": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a subscript": "{{ messages['__class__'] }}",
    "the filter attr": "{{ messages | attr('__init__') }}",
    "attr with a name from the chat": "{{ messages | attr(messages[0].content) }}",
    "attr by way of map": "{{ [messages] | map('attr', '__len__') | list }}",
    "map by attribute": "{{ messages | map(attribute='__class__') | list }}",
    "pieces": "{{ messages['__cl' ~ 'ass__'] }}",
    "a piece in a list": "{{ messages[['__cl', 'ass__'] | join] }}",
    "backwards": "{{ messages['__ssalc__' | reverse] }}",
    "escapes": "{{ messages['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "format as a value": "{% set f = '{0.a}'.format %}{{ f(messages) }}",
    "format by way of attr": "{{ ('{0.a}' | attr('format'))(messages) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "lipsum": "{{ lipsum() }}",
    "os": "{{ os.system('touch TOUCHED') }}",
    "open": "{{ open('/etc/passwd').read() }}",
    "a generator's frame": "{{ messages.gi_frame.f_back }}",
    "inside a test": "{% if messages.__class__ is defined %}x{% endif %}",
    "inside a macro": "{% macro f(x) %}{{ x.__dict__ }}{% endmacro %}{{ f(messages) }}",
    "inside generation": "{% generation %}{{ messages.__class__ }}{% endgeneration %}",
}
ENDLESS = {
    "range(10**9)": "{% for i in range(10**9) %}x{% endfor %}",
    "loops inside each other": "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 99999 * 99999 }}",
    "a tower": "{{ 9 ** 9 ** 9 }}",
    "a width": "{{ '{:>999999999}'.format(1) }}",
    "a width by %": "{{ '%999999999d' | format(1) }}",
    "doubling": "{% set ns = namespace(x='y') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "centred": "{{ 'x' | center(9999999) }}",
    "nested without end": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


def templated(template: str) -> Make:
    return lambda folder: plain(folder, template=template.replace("TOUCHED", str(folder / TOUCHED)))


for _name, _template in ESCAPES.items():
    one(f"template: {_name}", "template-escape", r"chat_template, line 1", templated(_template))
for _name, _template in ENDLESS.items():
    one(f"template: {_name}", "template-endless", r"chat_template, ", templated(_template))
one("template: a function nobody knows", "template-unusual", r"fetch\(\)", templated("{{ fetch(messages) }}"))
one("template: it reads another one", "template-unusual", "another template", templated("{% include 'x' %}"))
one("template: broken", "template-broken", "line 1", templated("{% for %}"))
one(
    "template: in GGUF",
    "template-escape",
    r"tokenizer\.chat_template, line 1: the attribute __class__",
    ggufs(values={"general.architecture": "llama", "tokenizer.chat_template": "{{ messages.__class__ }}"}),
)
one(
    "template: a file of its own",
    "template-escape",
    "__class__",
    lambda folder: (plain(folder) / "chat_template.jinja").write_text("{{ ''.__class__ }}"),
)
one(
    "template: the second in a list",
    "template-escape",
    r"chat_template\[1\]\.template, line 1",
    lambda folder: (plain(folder) / "processor_config.json").write_text(
        json.dumps({"chat_template": [{"name": "a", "template": "x"}, {"name": "b", "template": "{{ x.__class__ }}"}]})
    ),
)
