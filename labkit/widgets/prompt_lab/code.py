"""The Python that does what a PromptLab shows, without it."""

from __future__ import annotations

from labkit.text.as_code import as_python
from labkit.widgets.prompt_lab.parts import Lab
from labkit.widgets.prompt_lab.session_file import template_mark


def written_code(lab: Lab) -> str:
    """For one model the calls one by one; for several a loop over them."""
    first = lab.columns[0]
    if first.tree is not None and first.branch is not None and first.branch.parent is not None and first.alone:
        return f"{_template(lab)}{first.tree.code(first.branch)}print(tree[{first.branch.name!r}].text)\n"
    if lab.mode == "score":
        call, show = f"score = lk.score(lm, {lab.prompt!r})", "print(score, score.surprises())"
    else:
        prompt = _prompt(lab)
        settings = "".join(f"    {name}={value!r},\n" for name, value in lab.sampling().given().items())
        call, show = f"generation = lm.generate(\n    {prompt},\n{settings})", "print(generation.text)"
    if first.alone:
        return f"{_template(lab)}{lab.lm.code()}{call}\n{show}\n"
    loads = "".join(f"    {lm.code().split('lm = ')[1].strip()},\n" for lm in lab.lms)
    body = f"{call}\n{show}".replace("\n", "\n    ")
    return f"{_template(lab)}import labkit as lk\n\nmodels = [\n{loads}]\nfor lm in models:\n    {body}\n"


def _prompt(lab: Lab) -> str:
    tree = lab.columns[0].tree
    if lab.mode != "chat":
        return repr(lab.prompt)
    if tree is not None:
        return as_python(tree.prompt)
    try:
        return repr(lab.asked(0, lab.turns_to_answer()))
    except ValueError:
        return repr(lab.asked())


def _template(lab: Lab) -> str:
    """Which chat template is meant: a tokenizer's files may change."""
    marks = [template_mark(lm) for lm in lab.lms]
    if lab.mode != "chat" or not any(marks):
        return ""
    return f"# chat template: {', '.join(f'sha256 {mark}…' if mark else 'none' for mark in marks)}\n"
