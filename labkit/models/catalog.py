"""The catalog of open models: size, licence, openness, and where they run.

The facts, each model's configuration among them, are in catalog.json, each with its source and the date on which that
was read; those entered before dates were kept say so. Parameters and memory are computed from the configuration on the
meta device, as `load` does before it reads weights, and kept there too: `python -m labkit.models.catalog` computes them
again. `lk.card` puts a model on one page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

DATA = Path(__file__).with_suffix(".json")
BITS = (4, 8, 16)
GPUS = {"T4 16 GB": 16e9, "L4 24 GB": 24e9, "A100 40 GB": 40e9, "H100 80 GB": 80e9}
ROOM = 1.5e9  # bytes besides the weights: activations and caches of a prompt of some hundred tokens, CUDA itself


@dataclass(frozen=True)
class Source:
    """Where a fact is from, and since when (year-month-day).

    `how`: `read` there on that day; `entered` on that day with this source, and not read again.
    """

    url: str
    read: str
    how: str = "read"

    def __str__(self) -> str:
        return f"{self.how} {self.read}"


@dataclass(frozen=True)
class OpenModel:
    """One open model.

    Attributes:
        id: on the Hugging Face hub.
        family: its family's name.
        parameters: in billions, experts included.
        published: the same as its makers state, with as many digits.
        text_part: whether it also takes images, and `parameters` and `bytes` are of its text part only.
        context: the longest prompt its makers recommend or trained for, in tokens.
        licence: its name; `also` a second one, of the model that it was made from.
        commercial: `yes`, `with conditions` or `no`.
        allows: what the licence allows, in one sentence; the licence itself decides.
        also_allows: the same of the second licence.
        gated: whether conditions have to be accepted on the hub first; None where no source says so.
        code, data, recipe: what else is open. `yes`; `part` (code to run it, not to train it; a report, not all that is
            needed to do it again); `no`.
        bytes: of weights, by bits (4, 8, 16).
        licence_url, paper: links.
        config: the part of its configuration that sizes follow from, as `transformers.AutoConfig.for_model` takes it.
        sources: of `config`, `published`, `context`, `licence`, `gated` (unless None), `allows`, `also_allows` (where
            there is a second licence) and `openness` (code, data, recipe).
    """

    id: str
    family: str
    parameters: float
    published: float
    context: int
    licence: str
    also: str | None
    commercial: str
    allows: str
    also_allows: str | None
    gated: bool | None
    code: str
    data: str
    recipe: str
    bytes: dict[int, int]
    licence_url: str
    paper: str
    text_part: bool
    config: dict[str, Any]
    sources: dict[str, Source]

    @property
    def card(self) -> str:
        return f"https://huggingface.co/{self.id}"

    @property
    def gpu(self) -> str:
        """The smallest common GPU, or how many of the largest, that holds it in 4 bits with working memory."""
        return smallest_gpu(self.bytes[4])


def smallest_gpu(size: float) -> str:
    """The smallest common GPU that holds this many bytes of weights with working memory; or how many of the largest."""
    for name, has in GPUS.items():
        if size + ROOM <= 0.95 * has:
            return name
    return f"{-int(-size // (0.95 * has - ROOM))} x {name}"


def catalog() -> pd.DataFrame:
    """The catalog of open models, one row each, by hub id.

    Memory counts the weights, in gigabytes (1e9 bytes); in 8 bits a mixture's experts stay in 16, as in bitsandbytes.
    `gated` is True, False or, where no source says so, missing (`pd.NA`).
    Licences are summarised, not advised on: the last columns link to them and to the other sources, and say since when
    every fact of a row is known. `lk.card(id)` has each with its source.
    """
    import pandas as pd

    rows = [
        {
            "id": model.id,
            "family": model.family,
            "parameters (B)": model.parameters,
            "context": model.context,
            "licence": model.licence + (f", {model.also}" if model.also else ""),
            "commercial use": model.commercial,
            "allows": model.allows + (f"; {model.also}: {model.also_allows}" if model.also else ""),
            "gated": model.gated,
            "weights": "open",
            "code": model.code,
            "data": model.data,
            "recipe": model.recipe,
            **{f"{bits} bits (GB)": round(model.bytes[bits] / 1e9, 2) for bits in BITS},
            "smallest GPU, 4 bits": model.gpu,
            "card": model.card,
            "licence text": model.licence_url,
            "paper": model.paper,
            "read": min(source.read for source in model.sources.values()),
        }
        for model in models()
    ]
    return pd.DataFrame(rows).set_index("id").astype({"gated": "boolean"})


@lru_cache(maxsize=1)
def models() -> tuple[OpenModel, ...]:
    """All of them, in the order of catalog.json."""
    data = json.loads(DATA.read_text())
    return tuple(_model(*entry, data) for entry in _entries(data))


def known(name: str) -> OpenModel:
    """The model of a hub id, with or without the maker's part, in upper or lower case.

    Raises:
        ValueError: it is not in the catalog; with the ids that look like it.
    """
    for model in models():
        if name.lower() in (model.id.lower(), model.id.split("/")[1].lower()):
            return model
    close = nearest(name)
    offer = f"Did you mean {' or '.join(close)}?" if close else "`lk.catalog()` lists those that are."
    raise ValueError(f"{name!r} is not in the catalog. {offer}")


def _entries(data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each model with its family and its licence."""
    for family in data["families"]:
        for model in family["models"]:
            yield model, family, data["licences"][model["licence"]]


def _model(model: dict[str, Any], family: dict[str, Any], licence: dict[str, Any], data: dict[str, Any]) -> OpenModel:
    own = {"also": None, "also_allows": None, "licence_url": licence["url"], "text_part": False}
    own |= licence | family | model
    own["bytes"] = dict(zip(BITS, model["bytes"], strict=True))
    sources = {fact: data["sources"][key] for fact, key in {**model["from"], "openness": family["from"]}.items()}
    read = {fact: Source(**told | {"url": told["url"].format(id=model["id"])}) for fact, told in sources.items()}
    read["allows"] = _text_of(licence)
    if own["also"]:
        second = data["licences"][own["also"]]
        own["also_allows"], read["also_allows"] = second["allows"], _text_of(second)
    own["sources"] = read
    return OpenModel(**{field.name: own[field.name] for field in fields(OpenModel)})


def _text_of(licence: dict[str, Any]) -> Source:
    return Source(licence.get("source", licence["url"]), licence["read"])


def nearest(name: str) -> list[str]:
    """Up to three known ids that look like a name, with or without the maker's part."""
    by_key = {key: model.id for model in models() for key in (model.id.lower(), model.id.split("/")[1].lower())}
    keys = [key for part in (name, name.split("/")[-1]) for key in get_close_matches(part.lower(), by_key, 3, 0.6)]
    return list(dict.fromkeys(by_key[key] for key in keys))[:3]


def that_fit(size: float, *, bits: int) -> list[OpenModel]:
    """Known models whose weights fit into so many bytes, largest first.

    Those for which nothing has to be accepted on the hub come before those of which that is not known, and these before
    the others.
    """
    found = [model for model in models() if model.bytes[bits] <= size]
    return sorted(found, key=lambda model: ((False, None, True).index(model.gated), -model.parameters))


# -- computed from configurations -------------------------------------------------------------------------------------


def computed(config: dict[str, Any]) -> tuple[float, list[int]]:
    """Parameters in billions, and bytes of weights in 4, 8 and 16 bits, of a configuration."""
    import torch
    from transformers import AutoConfig

    from labkit.models.memory import empty_model, predict

    skeleton = empty_model(AutoConfig.for_model(**config))
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    return round(count / 1e9, 4), [predict(skeleton, bits=bits, dtype=torch.bfloat16) for bits in BITS]


def main() -> None:
    """Compute parameters and memory again and write them to catalog.json, one line per model."""
    data = json.loads(DATA.read_text())
    for model, _, _ in _entries(data):
        model["parameters"], model["bytes"] = computed(model["config"])
        model["config"] = model.pop("config")  # last, as it is long
        print(f"{model['id']:<48} {model['parameters']:9.3f} B, published {model['published']:g} B")
    lines = lambda items, by: f",\n{by}".join(items)  # noqa: E731
    named = lambda part: lines((f"{json.dumps(name)}: {json.dumps(of)}" for name, of in data[part].items()), "  ")  # noqa: E731
    families = []
    for family in data["families"]:
        head = json.dumps({name: value for name, value in family.items() if name != "models"})
        families.append(f'{head[:-1]}, "models": [\n   {lines(map(json.dumps, family["models"]), "   ")}\n  ]}}')
    top = "".join(f' "{part}": {{\n  {named(part)}\n }},\n' for part in ("sources", "licences"))
    DATA.write_text(f'{{\n{top} "families": [\n  {lines(families, "  ")}\n ]\n}}\n')


if __name__ == "__main__":
    main()
