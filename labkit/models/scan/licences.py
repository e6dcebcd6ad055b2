"""The licence that a checkpoint declares, and the one whose text comes with it.

A text is known by a few words that no other licence has; the texts themselves are not kept here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from labkit.models.scan.contents import Looked
from labkit.models.scan.rules import Finding, found, inert, listed

MARKS: dict[str, tuple[str, ...]] = {
    "apache-2.0": ("apache license", "version 2.0, january 2004"),
    "mit": ("permission is hereby granted, free of charge", "the software is provided"),
    "bsd-3-clause": ("redistribution and use in source and binary forms", "neither the name"),
    "bsd-2-clause": ("redistribution and use in source and binary forms", "this list of conditions"),
    "agpl-3.0": ("gnu affero general public license", "version 3"),
    "lgpl-3.0": ("gnu lesser general public license", "version 3"),
    "gpl-3.0": ("gnu general public license", "version 3"),
    "gpl-2.0": ("gnu general public license", "version 2"),
    "mpl-2.0": ("mozilla public license", "2.0"),
    "cc0-1.0": ("cc0 1.0 universal",),
    "cc-by-nc-sa-4.0": ("attribution-noncommercial-sharealike 4.0 international",),
    "cc-by-nc-nd-4.0": ("attribution-noncommercial-noderivatives 4.0 international",),
    "cc-by-nc-4.0": ("attribution-noncommercial 4.0 international",),
    "cc-by-sa-4.0": ("attribution-sharealike 4.0 international",),
    "cc-by-nd-4.0": ("attribution-noderivatives 4.0 international",),
    "cc-by-4.0": ("attribution 4.0 international",),
    "llama4": ("llama 4 community license agreement",),
    "llama3.3": ("llama 3.3 community license agreement",),
    "llama3.2": ("llama 3.2 community license agreement",),
    "llama3.1": ("llama 3.1 community license agreement",),
    "llama3": ("llama 3 community license agreement",),
    "llama2": ("llama 2 community license agreement",),
    "gemma": ("gemma terms of use",),
    "deepseek": ("deepseek license agreement",),
    "qwen-research": ("qwen research license agreement",),
    "qwen": ("qwen license agreement",),
    "tongyi-qianwen": ("tongyi qianwen license agreement",),
    "falcon-llm-license": ("falcon llm license",),
    "bigscience-bloom-rail-1.0": ("bigscience rail license",),
    "bigcode-openrail-m": ("bigcode openrail-m",),
    "mrl": ("mistral ai research license",),
    "health-ai-developer-foundations": ("health ai developer foundations terms of use",),
    "unlicense": ("free and unencumbered software released into the public domain",),
}
"""Licences by words that each text has, in small letters; of two that begin at one place the first counts."""
_OPEN_ENDED = {"other", "unknown", "cc", "creativeml-openrail-m", "openrail", "openrail++", "gpl", "lgpl", "bsd"}
_FILES = re.compile(r"(licen[cs]e|copying|terms|notice_of_licen[cs]e)([-_. ].*)?", re.I)


def licences_in(text: str) -> list[str]:
    """The licences whose words a text has, the one that it begins with first."""
    plain = " ".join(text[:200_000].lower().split())
    # a text may mention other licences further down, as the GPL does
    begins = {name: plain.index(marks[0]) for name, marks in MARKS.items() if all(mark in plain for mark in marks)}
    return sorted(begins, key=lambda name: begins[name])


def declared(readme: str) -> str | None:
    """The licence that the head of a model card declares; `license_name` where that is `other`."""
    begin, _, rest = readme[:100_000].lstrip("\ufeff \n").partition("\n")
    head, ends, _ = rest.partition("\n---")
    if begin.strip() != "---" or not ends:
        return None
    fields = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([^\s'\"#]+)", head, re.M | re.I))
    fields = {name.lower(): value.lower() for name, value in fields.items()}
    licence = fields.get("license")
    return fields.get("license_name", licence) if licence in (None, "other") else licence


def compare(looked: Sequence[Looked]) -> Iterator[Finding]:
    """Is the licence that is declared the one that comes along?"""
    said: dict[str, str] = {}  # by file
    for one in looked:
        if one.file.name.lower() == "readme.md" and one.kind == "text" and (licence := declared(one.holds)):
            said[one.file.name] = licence
        elif one.kind == "gguf" and one.holds is not None:
            licence = one.holds.values.get("general.license")
            if isinstance(licence, str) and licence:
                said[one.file.name] = licence.lower()
        elif one.kind == "json" and one.file.name == "config.json" and isinstance(one.holds, dict):
            licence = one.holds.get("license")
            if isinstance(licence, str) and licence:
                said[one.file.name] = licence.lower()
    texts = {one.file.name: licences_in(one.holds) for one in looked
             if one.kind == "text" and "/" not in one.file.name and _FILES.fullmatch(one.file.base)}  # fmt: skip
    for file, licence in said.items():
        others = [f"{text} is {names[0]}" for text, names in texts.items()
                  if names and not any(_same(name, licence) for name in names)]  # fmt: skip
        if others and len(others) == len(texts):  # one of several may be for the code
            what = f"it declares {inert(licence)}, but {listed(others)}"
            yield found("licence-differs", file, what)
    if len({_plain(licence) for licence in said.values()}) > 1:
        what = "; ".join(f"{inert(file)} declares {inert(licence)}" for file, licence in said.items())
        yield found("licence-differs", next(iter(said)), what)
    weights = [one.file.name for one in looked if one.kind in ("safetensors", "gguf", "pickle")]
    if weights and not said and not texts:
        yield found("licence-unclear", weights[0], "no licence is declared, and none comes along")
    elif texts and not any(texts.values()):
        yield found("licence-unclear", next(iter(texts)), "a licence that labkit does not know")


def _plain(licence: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", licence.lower().removesuffix("-license").replace("license", ""))


def _same(known: str, said: str) -> bool:
    """May what is declared be the licence that comes along? Names that say little fit every one."""
    if said in _OPEN_ENDED:
        return True
    one, other = _plain(known), _plain(said)
    return one == other or (said not in MARKS and (one.startswith(other) or other.startswith(one)))
