"""What a scan can find. To add something, add a `Rule` here and call `found` where it is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["danger", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("danger", "warning", "note")


@dataclass(frozen=True)
class Rule:
    """A kind of finding.

    Attributes:
        name: as it stands in `to_json()`.
        severity: `danger`: do not open it; `warning`: look at it first; `note`: good to know.
        why: why it matters.
        advice: what to do.
    """

    name: str
    severity: Severity
    why: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """One thing that a scan found.

    Attributes:
        rule, severity, why, advice: of its `Rule`.
        file: the file's path inside the checkpoint, as it is; `inert` makes it fit to show.
        what: what was seen there; fit to show.
    """

    rule: str
    severity: Severity
    file: str
    what: str
    why: str
    advice: str

    def __str__(self) -> str:
        return f"{inert(self.file)}: {self.what}"


def inert(text: object, *, limit: int = 160) -> str:
    """Text of a checkpoint, made fit to show: no control characters, no marks that turn the reading direction, and not
    endless."""
    shown = str(text)[: limit + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def listed(names: object, *, most: int = 5) -> str:
    """Names of a checkpoint in a sentence, the first few of them, fit to show."""
    every = list(names)  # type: ignore[call-overload]
    return ", ".join(inert(name, limit=80) for name in every[:most]) + (
        f" and {len(every) - most} others" if len(every) > most else ""
    )


def found(rule: str, file: str, what: str) -> Finding:
    """A finding of the rule with this name."""
    of = RULES[rule]
    return Finding(rule, of.severity, file, what, of.why, of.advice)


_PICKLE = "A pickle is a program; whatever opens it runs it"
_NEVER = "labkit never opens pickles. Do not open this one with anything else"
_CORRUPT = "Download it again from a source that you trust, and compare its SHA-256 with the one published there"
_READER = "False headers have been used to make readers run out of memory, hang or read past the end of the file"
_TEMPLATE = "A chat template is a small program that runs for every chat"

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("pickle-runs-code", "danger", _PICKLE, _NEVER),
        Rule("pickle-cannot-be-followed", "danger", f"{_PICKLE}, up to where it breaks off", _NEVER),
        Rule("pickle-imports", "warning", f"{_PICKLE}, and this one imports more than weights need",
             "labkit never opens pickles. Before anything else does, find out why it needs these"),
        Rule("pickle", "note", f"{_PICKLE}; nothing harmful was seen in this one",
             "Nothing: labkit never opens pickles. Prefer a copy in safetensors"),
        Rule("disguised", "danger", "Its name says one thing and its content another, a way to get a file past checks",
             "Do not open it"),
        Rule("safetensors-header", "danger", _READER, _CORRUPT),
        Rule("gguf-header", "danger", _READER, _CORRUPT),
        Rule("absurd-size", "danger", "Building a model of that size would exhaust memory or never finish", _CORRUPT),
        Rule("unknown-dtype", "warning", "The size of a tensor of a dtype that labkit does not know was not checked",
             "Update labkit, or look at the tensor yourself"),
        Rule("template-escape", "danger", f"{_TEMPLATE}; this one reaches for Python's internals, as attacks do",
             "Do not use the checkpoint, or replace the template with one that you have read"),
        Rule("template-endless", "danger", f"{_TEMPLATE}; this one would run for hours or fill memory",
             "Do not use the checkpoint, or replace the template with one that you have read"),
        Rule("template-unusual", "warning", f"{_TEMPLATE}; this one does something that templates rarely need",
             "Read the template at that line before you chat with the model"),
        Rule("template-broken", "warning", "It is not a valid template, so it was not looked through",
             "The model can be loaded and prompted with text, but not with a chat"),
        Rule("remote-code", "warning", "The model brings its own Python code, which can do whatever you can",
             "labkit runs none of it unless you pass trust_remote_code=True. Read the files before you do"),
        Rule("remote-code-elsewhere", "warning", "The code is fetched from another repository, which can change "
             "without this one changing", "Read the code there, and pin its commit with code_revision"),
        Rule("remote-code-missing", "warning", "The code that the configuration names is not in the checkpoint",
             "Do not pass trust_remote_code=True before you know where the code comes from"),
        Rule("remote-code-acts", "danger", "The model's own code has calls that start programs, run text as code, "
             "read pickles, delete files or open connections", "Do not pass trust_remote_code=True"),
        Rule("compiled-code", "danger", "The configuration asks for compiled code from the hub, which runs unchecked",
             "Remove that line of the file, or choose the implementation yourself"),
        Rule("python", "note", "Nothing imports it unless you do", "Read it before you run it"),
        Rule("shadows", "warning", "Python started in this folder would import it in place of the package of that name",
             "Do not start Python or Jupyter in this folder"),
        Rule("executable", "warning", "A checkpoint needs no program; nothing in labkit runs it", "Do not run it"),
        Rule("script", "note", "A checkpoint needs no script; nothing in labkit runs it", "Read it before you run it"),
        Rule("notebook", "note", "labkit does not open it", "Read its cells before you run them"),
        Rule("keras-lambda", "danger", "A Lambda layer holds compiled Python code, which Keras runs on loading",
             "Do not open it with Keras"),
        Rule("torchscript", "warning", "TorchScript is a program, which torch.jit.load makes ready to run",
             "labkit does not read it. Load the model from safetensors"),
        Rule("other-format", "note", "labkit does not read this format and did not look inside",
             "Nothing, unless you open it with something else"),
        Rule("archive", "note", "It was not unpacked, so what is inside was not looked at",
             "Unpack it into an empty folder and scan that"),
        Rule("archive-bomb", "danger", "Unpacked, it would fill the disk or memory", "Do not unpack it"),
        Rule("archive-path", "danger", "Unpacked, it would write outside the folder that it is unpacked into",
             "Do not unpack it"),
        Rule("archive-damaged", "danger", "Readers disagree about what a damaged archive holds, which can hide things",
             _CORRUPT),
        Rule("path-leaves", "danger", "Loading would read or write files outside the checkpoint's folder",
             "Do not load it; correct the file if you know how it came about"),
        Rule("link-leaves", "danger", "Loading would read, and saving would overwrite, a file elsewhere on the machine",
             "Remove the link, or copy the file in its place if you made the link yourself"),
        Rule("link-to-weights", "warning", "The weights lie outside the folder; saving here would overwrite them",
             "Nothing, if you made the link yourself"),
        Rule("link-broken", "warning", "The link leads to nothing", "Fetch the file again"),
        Rule("special-file", "danger", "It is a pipe, socket or device, which can hang whoever opens it", "Remove it"),
        Rule("name-hides", "warning", "Its name has characters that hide or reverse a part of it",
             "Read the name as it is written here"),
        Rule("index-missing", "warning", "The checkpoint is incomplete; loading refuses it", "Fetch the missing files"),
        Rule("index-differs", "warning", "Index and files are not from one checkpoint", _CORRUPT),
        Rule("index-unnamed", "note", "The index does not name it, so it is not a part of the model",
             "Nothing: labkit does not read it. It takes space"),
        Rule("pointer", "note", "It is a Git LFS pointer, a few lines of text in place of the file",
             "Fetch the file itself, then scan again"),
        Rule("licence-differs", "warning", "What is declared and the licence that comes with it are not the same",
             "Ask the makers which one holds; the licence's own text usually does"),
        Rule("licence-unclear", "note", "Without a licence nothing is allowed beyond what the law allows",
             "Look at the model's page"),
        Rule("not-looked-at", "warning", "What cannot be read cannot be judged", "Make it readable, then scan again"),
        Rule("cannot-be-read", "danger", "It makes readers fail, through damage or on purpose", _CORRUPT),
    )
}  # fmt: skip
