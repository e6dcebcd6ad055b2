"""The catalog: its numbers are those of the configurations, and a real load agrees with them."""

import json

import pytest

import labkit as lk
from labkit.models import catalog as rooms
from labkit.models.sources.default_model import NAME

ENTRIES = list(rooms._entries(json.loads(rooms.DATA.read_text())))


@pytest.mark.long
@pytest.mark.parametrize("model", [entry[0] for entry in ENTRIES], ids=lambda model: model["id"])
def test_parameters_and_memory_are_those_of_the_configuration_and_parameters_the_published_ones(model):
    parameters, sizes = rooms.computed(model["config"])
    assert (model["parameters"], model["bytes"]) == (parameters, sizes)
    assert parameters == pytest.approx(model["published"], rel=0.006)


def test_it_has_the_open_families():
    found = lk.catalog()
    assert len(found) >= 40
    assert found.index.is_unique
    wanted = "Llama-2-7b Llama-2-13b Llama-2-70b-chat Llama-3 deepseek-llm-7b DeepSeek-V2-Lite DeepSeek-V3 DeepSeek-R1 "
    wanted += "Qwen2.5 Qwen3 gemma-2 gemma-3 Mistral-7B Mixtral OLMo-2 pythia SmolLM2 SmolLM3 phi-4 gpt-oss"
    for name in wanted.split():
        assert any(name in id for id in found.index), name
    assert sum("R1-Distill" in id for id in found.index) == 6
    assert found.notna().all(axis=None)
    for column in ("card", "licence text", "paper"):
        assert found[column].str.match(r"https://\S+$").all()


@pytest.mark.parametrize("bits", [4, 16])
def test_a_real_load_takes_what_it_says(bits):
    said = lk.catalog().loc[f"HuggingFaceTB/{NAME}", f"{bits} bits (GB)"]
    assert lk.load(bits=bits, progress=False).memory().total / 1e9 == pytest.approx(said, rel=0.05)


def test_the_smallest_gpu_has_room_to_work():
    assert rooms.smallest_gpu(13e9) == "T4 16 GB"
    assert rooms.smallest_gpu(16e9) == "L4 24 GB"
    assert rooms.smallest_gpu(39e9) == "H100 80 GB"
    assert rooms.smallest_gpu(350e9) == "5 x H100 80 GB"


def test_what_is_suggested_fits_and_needs_no_acceptance_first():
    found = rooms.that_fit(4e9, bits=4)
    assert all(model.bytes[4] <= 4e9 for model in found)
    assert not found[0].gated
    assert found[0].parameters == max(model.parameters for model in found if not model.gated)
