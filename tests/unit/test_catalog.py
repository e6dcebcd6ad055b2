"""The catalog: its numbers are those of the configurations, and a real load agrees with them."""

import json
import re
from pathlib import Path

import pytest

import labkit as lk
from labkit.models import catalog as rooms
from labkit.models.sources.default_model import NAME

DATA = json.loads(rooms.DATA.read_text())
ENTRIES = list(rooms._entries(DATA))
ROOT = Path(__file__).parents[2]


def fits(model, parameters) -> bool:
    """Whether parameters are what is published. To three digits it is; where makers round more, some do it downwards
    (7B for 7.6); and what they count beside the text is missing here."""
    number = f"{model['published']:g}"
    unit = 10.0 ** -len(number.partition(".")[2])
    exact = len(number.replace(".", "").lstrip("0")) >= 3
    below, above = (0.006 * model["published"],) * 2 if exact else (unit / 2, unit)
    if model.get("text_part"):
        below = max(below, 0.03 * model["published"])
    return model["published"] - below <= parameters <= model["published"] + above


@pytest.mark.long
@pytest.mark.parametrize("model", [entry[0] for entry in ENTRIES], ids=lambda model: model["id"])
def test_parameters_and_memory_are_those_of_the_configuration_and_parameters_the_published_ones(model):
    parameters, sizes = rooms.computed(model["config"])
    assert (model["parameters"], model["bytes"]) == (parameters, sizes)
    assert fits(model, parameters)


def test_a_published_number_fits_as_exactly_as_it_is_said():
    assert fits({"published": 7.62}, 7.6156)
    assert not fits({"published": 7.62}, 7.67)
    assert fits({"published": 7}, 7.6156)
    assert not fits({"published": 8}, 6.17)  # Apertus 8B with the sizes that transformers takes by default
    assert fits({"published": 109, "text_part": True}, 107.8)


@pytest.mark.parametrize("model", [entry[0] for entry in ENTRIES], ids=lambda model: model["id"])
def test_stored_parameters_are_the_published_ones(model):
    assert fits(model, model["parameters"])
    assert 0 < model["bytes"][0] < model["bytes"][1] < model["bytes"][2]
    assert model["bytes"][2] == pytest.approx(2e9 * model["parameters"], rel=0.01)


def test_no_row_lacks_the_source_of_a_fact_or_its_date():
    for model in rooms.models():
        facts = {"config", "published", "context", "licence", "gated", "allows", "openness"}
        facts = facts - ({"gated"} if model.gated is None else set()) | ({"also_allows"} if model.also else set())
        assert set(model.sources) == facts, model.id
        for fact, source in model.sources.items():
            assert re.fullmatch(r"https://[^\s{}]+", source.url), (model.id, fact)
            assert re.fullmatch(r"20\d\d-\d\d-\d\d", source.read), (model.id, fact)
            assert source.how in ("read", "entered"), (model.id, fact)


def test_every_source_and_licence_is_used():
    used = {key for model, _, _ in ENTRIES for key in model["from"].values()}
    assert used | {family["from"] for family in DATA["families"]} == set(DATA["sources"])
    assert {model["licence"] for model, _, _ in ENTRIES} == set(DATA["licences"])


def test_a_model_is_found_with_and_without_its_maker():
    assert rooms.known("GPT2").id == "openai-community/gpt2"
    assert rooms.known("allenai/olmo-2-1124-7b").id == "allenai/OLMo-2-1124-7B"
    with pytest.raises(ValueError, match=r"'gpt-2' is not in the catalog\. Did you mean"):
        rooms.known("gpt-2")


def test_the_readme_and_the_changelog_say_how_many_there_are():
    count = len(rooms.models())
    assert f"lists {count}," in (ROOT / "README.md").read_text()
    assert f"has {count} models" in (ROOT / "CHANGELOG.md").read_text()


def test_it_has_the_open_families():
    found = lk.catalog()
    assert len(found) >= 100
    assert found.index.is_unique
    wanted = "Llama-2-7b Llama-2-13b Llama-2-70b-chat Llama-3 deepseek-llm-7b DeepSeek-V2-Lite DeepSeek-V3 DeepSeek-R1 "
    wanted += "Qwen2.5 Qwen3 gemma-2 gemma-3 Mistral-7B Mixtral OLMo-2 pythia SmolLM2 SmolLM3 phi-4 gpt-oss "
    wanted += "Llama-4 DeepSeek-V3.2 DeepSeek-V4 Qwen3.5 gemma-4 Olmo-3 granite-4.1 Apertus Ministral-3"
    for name in wanted.split():
        assert any(name in id for id in found.index), name
    assert sum("R1-Distill" in id for id in found.index) == 6
    assert found.drop(columns="gated").notna().all(axis=None)
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


def test_what_is_suggested_fits_and_needs_no_acceptance_first_as_far_as_that_is_known():
    found = rooms.that_fit(16e9, bits=4)
    assert all(model.bytes[4] <= 16e9 for model in found)
    gates = [model.gated for model in found]
    assert set(gates) == {False, None, True}
    assert gates == sorted(gates, key=(False, None, True).index)
    for gate in (False, None, True):
        sizes = [model.parameters for model in found if model.gated is gate]
        assert sizes == sorted(sizes, reverse=True)


def test_where_no_source_says_whether_a_model_is_gated_the_catalog_lacks_it():
    gated = lk.catalog().gated
    unknown = {model.id for model in rooms.models() if model.gated is None}
    assert unknown
    assert set(gated.index[gated.isna()]) == unknown
    assert gated["meta-llama/Llama-2-7b-hf"]
    assert gated["mistralai/Mistral-Large-Instruct-2411"]
    assert gated.sort_values().isna().iloc[-1]
    asked, free = gated.index[gated.fillna(False)], gated.index[~gated.fillna(True)]
    assert len(asked) + len(free) + len(unknown) == len(gated)


def test_a_distilled_model_has_the_licence_of_the_one_that_it_was_made_from_too():
    found = lk.catalog()
    for id, row in found[found.index.str.contains("R1-Distill")].iterrows():
        model = rooms.known(id)
        inherited = DATA["licences"][model.also]
        assert row["licence"] == f"MIT, {model.also}"
        assert inherited["allows"] in row["allows"]
        assert model.sources["also_allows"].url == inherited["url"]
        assert model.commercial == inherited["commercial"]
