"""The kit on a device that is not the CPU: the CPU's numbers, and no tensor of the host among those of the device."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from elsewhere import DEVICE, There, elsewhere, moved, put_on
from loud import ANSWER, CORRUPT_IDS, FOIL, IDS, loud, model

import labkit as lk
from labkit.activations.site_kinds import KINDS
from labkit.activations.sites import layers_with
from labkit.attention_maps.weighting import contribution, rollout, value_weighted

# Llama's way, GPT-2's with its biases, a mixture of experts, latent attention, and a hybrid of Mamba and attention.
TYPES = ("llama", "gpt2", "mixtral", "deepseek_v2", "jamba")
P = (IDS, CORRUPT_IDS, ANSWER, FOIL)
NO = {"progress": False}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@lru_cache
def both(name: str) -> tuple[lk.LanguageModel, lk.LanguageModel]:
    """A model on the CPU, and its copy on the device."""
    here = loud(name)
    here.tokenizer.pad_token = here.tokenizer.convert_ids_to_tokens(0)
    return here, lk.wrap(moved(here.hf), here.tokenizer)


def numbers(x: Any) -> Iterator[np.ndarray]:
    """All numbers in a result."""
    if isinstance(x, There):
        x = x.detach().held
    if isinstance(x, torch.Tensor):
        yield x.detach().double().numpy()
    elif isinstance(x, pd.DataFrame):
        yield from (x[name].to_numpy(float) for name in x if x[name].dtype.kind in "fiu")
    elif isinstance(x, bool | int | float | np.generic):
        yield np.asarray(x, float)
    elif isinstance(x, np.ndarray):
        if x.dtype.kind in "fiub":
            yield x.astype(float)
    elif isinstance(x, Mapping):
        for one in x.values():
            yield from numbers(one)
    elif isinstance(x, Sequence) and not isinstance(x, str):
        for one in x:
            yield from numbers(one)
    elif hasattr(x, "to_frame"):
        yield from numbers(x.to_frame())
    elif is_dataclass(x):
        for field in fields(x):
            yield from numbers(getattr(x, field.name)) if field.name != "lm" else ()


def same(a: Any, b: Any, tolerance: float = 1e-4) -> None:
    mine, theirs = list(numbers(a)), list(numbers(b))
    assert mine, f"no numbers in {a!r:.80}"
    assert len(mine) == len(theirs)
    for x, y in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(y, x, rtol=tolerance, atol=tolerance)


def writing(lm: lk.LanguageModel) -> list[str]:
    """Every site that can be written, by name."""
    kinds = [name for name, kind in KINDS.items() if kind.writable and layers_with(lm, name)]
    return [f"{k}.{n}" if KINDS[k].by_layer else k for k in kinds for n in (layers_with(lm, k) or [0])]


def read_everything(lm: lk.LanguageModel) -> Any:
    kinds = [name for name in KINDS if layers_with(lm, name)]
    run = lm.run(IDS, read=kinds)
    sites = [f"{k}.{n}" if KINDS[k].by_layer else k for k in kinds for n in layers_with(lm, k)]
    return [run.logits, *(run[site] for site in sites)]


def write_everything(lm: lk.LanguageModel) -> Any:
    return [lm.run(IDS, write={site: lambda x: x * 0.5}).logits for site in writing(lm)]


def tree(lm: lk.LanguageModel) -> Any:
    grown = lm.tree("ab", max_new_tokens=4)
    (trunk,) = grown
    branch = grown.branch(trunk, at=1, token=5)
    return [one.record.rows["logprob"].copy() for one in (trunk, branch)]


def written(lm: lk.LanguageModel, **settings: Any) -> Any:
    made = lm.generate(IDS, max_new_tokens=4, **settings)
    made = made if isinstance(made, list) else [made]
    read = [one[site] for one in made for site in settings.get("read", ())]
    return [[one.record.ids, one.record.rows["logprob"].copy()] for one in made] + read


def steered(lm: lk.LanguageModel) -> Any:
    vector = lk.steering_vector(lm, [IDS, IDS.flip(1)], [CORRUPT_IDS, CORRUPT_IDS.flip(1)], 0)
    many = lk.steering_vector(lm, [IDS], [CORRUPT_IDS], [0, 1])
    found = [vector.values, many[1].values]
    with lm.steer(vector, 2.0):
        found += [lm.run(IDS).logits, lm.generate(IDS, max_new_tokens=3).record.rows["logprob"].copy()]
    for manner in (
        {"manner": "project_out"},
        {"manner": "set", "to": 0.5},
        {"manner": "clamp", "low": -0.1, "high": 0.1},
    ):
        with lm.steer(vector, **manner):
            found.append(lm.run(IDS).logits)
    with lm.steer(torch.ones(lm.d_model), 0.1, layer=1):
        found.append(lm.run(IDS).logits)
    return found


def looked_at(lm: lk.LanguageModel) -> Any:
    maps = lk.attention(lm, IDS)
    layer = layers_with(lm, "pattern")[-1]
    found = [maps.pattern(layer), maps.scores(), maps.thumbnails(), rollout(maps), maps.looks(3, 1)]
    return [*found, value_weighted(maps, layer), contribution(maps, ANSWER, FOIL).heads]


def circuit(lm: lk.LanguageModel) -> Any:
    edges = lk.edge_attribution(lm, *P, steps=2, **NO)
    kept = edges.circuit(20)
    return [edges.values, kept.faithfulness(lm, [P]), kept.completeness(lm, [P])]


def probed(lm: lk.LanguageModel) -> Any:
    texts = ["".join(pair) for pair in itertools.product("abcdef", "xyzuvw")]
    collected = lk.collect(lm, texts, read=["resid_post"], positions="last", **NO)
    return lk.probe(collected, [text[0] < "d" for text in texts], folds=2, controls=1, **NO)


def collected(lm: lk.LanguageModel) -> Any:
    made = lk.collect(lm, ["abc", "de", "fghi"], read=["resid_post", "mlp_out"], **NO)
    return [made.to_numpy(site) if hasattr(made, "to_numpy") else made[site] for site in made.sites]


ASKED = {
    "read": read_everything,
    "write": write_everything,
    "several prompts": lambda lm: lm.run([IDS[0], IDS[0, :5]], read=["z"] if layers_with(lm, "z") else []).logits,
    "attribution": lambda lm: lk.attribution_patch(lm, *P, **NO),
    "paths": lambda lm: lk.path_patch(lm, *P, **NO).values,
    "circuit": circuit,
    "lens": lambda lm: lk.logit_lens(lm, IDS),
    "direct": lambda lm: lk.direct_logit_attribution(lm, IDS, ANSWER, FOIL),
    "patchscope": lambda lm: lk.patchscope(
        lm, IDS, site="resid_post.0@-1", into=CORRUPT_IDS, at=-1, max_new_tokens=2, **NO
    ),
    "steering": steered,
    "greedy": written,
    "sampled": lambda lm: written(lm, temperature=1.0, seed=3, top_p=0.9, top_k=50, repetition_penalty=1.2),
    "reading and writing": lambda lm: written(
        lm, read=["resid_post.0", "mlp_out.1"], read_at="all", write={"resid_post.0": lambda x: x * 0.9}
    ),
    "samples": lambda lm: written(lm, samples=2, batch=2, temperature=1.0, seed=1),
    "tree": tree,
    "score": lambda lm: lk.score(lm, IDS),
    "attention": looked_at,
    "knock-out": lambda lm: [
        lk.knock_out(lm, IDS, heads=[(layers_with(lm, "z")[0], 1)], how=how).logits_after for how in ("zero", "mean")
    ],
    "sweep": lambda lm: lk.sweep(lm, [P, (CORRUPT_IDS, IDS, FOIL, ANSWER)], **NO),
    "continued": lambda lm: lk.continue_under(lm, lk.patch(lm, *P, **NO), layer=1, position=5, max_new_tokens=3),
    "inputs": lambda lm: [
        lk.input_attribution(lm, "abcd", written="ef", method=method, **NO)
        for method in ("occlusion", "integrated_gradients")
    ],
    "head circuit": lambda lm: lk.head_circuit(lm, (layers_with(lm, "z")[-1], 0), tokens=["a", "b", "c"], sample=64),
    "head circuits": lambda lm: lk.head_circuits(lm, layers=layers_with(lm, "z")[-1:], sample=64, **NO),
    "collected": collected,
    "probe": probed,
    "zeros": lambda lm: lk.patch(lm, IDS, None, ANSWER, FOIL, by="zero", window=2, **NO).values,
    "means": lambda lm: lk.patch(lm, IDS, None, ANSWER, FOIL, by=lk.Mean([CORRUPT_IDS]), **NO).values,
    "noise": lambda lm: lk.patch(lm, IDS, None, ANSWER, FOIL, by=lk.Noise((2, 3), samples=1), **NO).values,
    "texts": lambda lm: lk.patch(lm, IDS, CORRUPT_IDS, ["ab", "ac"], ["d", "aef"], **NO).values,
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("asked", ASKED)
def test_what_the_kit_computes_there_is_what_it_computes_on_the_cpu(asked, name):
    here, there = both(name)
    assert there.device == DEVICE
    expected, refused = asked_of(here, asked)
    with elsewhere():
        found, refused_there = asked_of(there, asked)
    assert refused_there == refused
    if refused:
        assert (asked, name) in REFUSED
    else:
        same(expected, found)


REFUSED = {  # no edges through a recurrent layer, and no circuits of heads with compressed values
    ("paths", "jamba"),
    ("circuit", "jamba"),
    ("head circuits", "deepseek_v2"),
}


def asked_of(lm: lk.LanguageModel, asked: str) -> tuple[Any, str]:
    """What was found, or why it is refused for such a model."""
    try:
        return ASKED[asked](lm), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("name", TYPES)
def test_every_site_is_patched_there_as_on_the_cpu(name):
    here, there = both(name)
    kinds = [kind for kind in KINDS if KINDS[kind].over and layers_with(here, kind)]
    assert len(kinds) >= 12
    for kind in kinds:
        expected = lk.patch(here, *P, site=kind, **NO)
        with elsewhere():
            found = lk.patch(there, *P, site=kind, **NO)
        same(expected.values, found.values)


def test_a_model_of_the_cpu_is_the_source_of_one_there_and_the_other_way_round():
    here, there = both("llama")
    other = loud("llama")
    with torch.no_grad():
        for parameter in other.hf.parameters():
            parameter *= 1.05
    expected = lk.patch(here, IDS, None, ANSWER, FOIL, source=other, **NO).values
    with elsewhere():
        elsewhere_too = lk.wrap(moved(other.hf), other.tokenizer)
        for source in (elsewhere_too, other):
            same(expected, lk.patch(there, IDS, None, ANSWER, FOIL, source=source, **NO).values)
        same(expected, lk.patch(here, IDS, None, ANSWER, FOIL, source=elsewhere_too, **NO).values)
    with elsewhere():
        found = lk.compare_findings(there, elsewhere_too, [P], **NO)
    expected = lk.compare_findings(here, other, [P], **NO)
    same([expected.own, expected.source], [found.own, found.source])  # ranks of what is nearly equal are by chance


@pytest.mark.parametrize("name", ["llama", "mixtral"])  # the second has packed experts, too
def test_four_bits_there_compute_as_on_the_cpu(name, tmp_path):
    here = model(name, 4, tmp_path)
    there = lk.wrap(moved(here.hf), here.tokenizer)
    assert there.bits == 4
    for asked in ("read", "write", "direct", "attribution", "greedy", "head circuit", "zeros"):
        expected = ASKED[asked](here)
        with elsewhere():
            same(expected, ASKED[asked](there))


@pytest.fixture(scope="module")
def halves():
    """The layers of a model on two devices. Without gradients: PyTorch has one queue of them for a device in Python."""
    here = both("llama")[0]
    hf = moved(here.hf)
    with elsewhere():
        put_on(hf.model.layers[1], torch.device(DEVICE.type, 1))
        for part in (hf.model.norm, hf.lm_head):
            put_on(part, DEVICE)
        lm = lk.wrap(hf, here.tokenizer)
        assert lm.devices == (DEVICE, torch.device(DEVICE.type, 1))
    return here, lm


@pytest.mark.parametrize(
    "asked",
    ["read", "write", "zeros", "texts", "greedy", "sampled", "paths", "lens", "steering", "knock-out"],
)
def test_a_model_on_two_devices_gives_the_numbers_of_one(asked, halves):
    here, split = halves
    expected = ASKED[asked](here)
    with elsewhere():
        same(expected, ASKED[asked](split))
