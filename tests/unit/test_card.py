"""The openness card: every sentence has its source, the class follows its rule, and a page is safe to look at."""

import json
import re
from dataclasses import replace

import pytest

import labkit as lk
from labkit.cli import main
from labkit.models import card as page
from labkit.models import openness as facts
from labkit.models.catalog import models
from labkit.models.sources.default_model import NAME

DATA = json.loads(facts.DATA.read_text())
IDS = [model.id for model in models()]
CLASS_III = [name for name, level in facts.COMPONENTS.items() if level == 3]
CLASS_II = CLASS_III + [name for name, level in facts.COMPONENTS.items() if level == 2]
CLASS_I = CLASS_II + [name for name, level in facts.COMPONENTS.items() if level == 1]


def opened(names):
    return dict.fromkeys(names, "open")


def test_no_source_lacks_an_address_or_a_date():
    for key, source in DATA["sources"].items():
        assert re.fullmatch(r"https://\S+", source["url"]), key
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", source["read"]), key
        assert source.get("how", "read") in ("read", "entered"), key


def test_no_sentence_lacks_its_source_and_no_term_its_section():
    for licence, told in DATA["licences"].items():
        for term in told:
            assert term["source"] in DATA["sources"], licence
            assert term["section"], term["says"]
            assert re.fullmatch(r"[A-Z].*\.", term["says"]), term["says"]
    for name, group in DATA["groups"].items():
        for part in (group["osi"], group["index"], group["data"], *group["terms"]):
            assert part is None or part["source"] in DATA["sources"], name
        for component, (state, licence, key) in group["components"].items():
            assert component in facts.COMPONENTS
            assert state in facts.STATES
            assert key in DATA["sources"], (name, component)
            assert bool(licence) == (state in ("open", "restricted")), (name, component)


def test_every_licence_of_the_catalog_has_plain_words():
    for model in models():
        for licence in filter(None, (model.licence, model.also)):
            assert facts.terms(licence), licence


def test_every_model_has_a_group_and_every_group_a_model():
    found = {facts.openness(id).group for id in IDS}
    assert None not in found
    assert found == set(DATA["groups"])


def test_a_group_begins_where_the_id_does_and_the_longest_beginning_counts():
    assert facts.openness("deepseek-ai/DeepSeek-R1").group == "DeepSeek R1"
    assert facts.openness("deepseek-ai/DeepSeek-R1-Distill-Llama-8B").group == "DeepSeek R1, distilled into Llama"
    assert facts.openness("Qwen/Qwen2.5-3B-Instruct").group == "Qwen 2.5 3B"
    unknown = facts.openness("nobody/nothing")
    assert unknown.group is None
    assert {one.state for one in unknown.components} == {"not known"}
    assert str(unknown.mof) == "not known"


def test_there_are_17_components_and_three_classes():
    assert len(facts.COMPONENTS) == 17
    assert [len(names) for names in (CLASS_III, CLASS_II, CLASS_I)] == [6, 10, 14]


@pytest.mark.parametrize(
    ("states", "says"),
    [
        (opened(CLASS_I), "Class I, Open Science Model"),
        (opened(CLASS_II), "Class II, Open Tooling Model"),
        (opened(CLASS_III), "Class III, Open Model"),
        (opened(CLASS_III) | {"Training code": "closed"}, "Class III, Open Model"),
        (opened(set(CLASS_III) - {"Technical report"}) | {"Research paper": "open"}, "Class III, Open Model"),
        (opened(CLASS_I) | {"Technical report": "closed"}, "Class I, Open Science Model"),
        (opened(CLASS_I) | {"Datasets": "restricted"}, "Class II, Open Tooling Model"),
        (opened(CLASS_III) | {"Model parameters (final)": "restricted"}, "none of the three"),
        (opened(CLASS_III) | {"Data card": "closed"}, "none of the three"),
        (opened(CLASS_III) | {"Data card": "released"}, "not known"),
        (opened(set(CLASS_III) - {"Data card"}), "not known"),
        (opened(CLASS_III) | {"Technical report": "restricted"}, "not known"),  # a paper may replace it
        (opened(CLASS_III) | {"Technical report": "restricted", "Research paper": "restricted"}, "none of the three"),
        ({}, "not known"),
    ],
)
def test_the_class_follows_from_the_components(states, says):
    assert str(facts.mof_class(states)) == says


def test_what_keeps_a_model_from_the_next_class_is_named():
    assert facts.mof_class(opened(set(CLASS_I) - {"Datasets"})).lacking == ("Datasets",)
    assert facts.mof_class(opened(CLASS_I)).lacking == ()


def test_a_component_or_state_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no component 'Weights'; the 17 are Model architecture"):
        facts.mof_class({"Weights": "open"})
    with pytest.raises(ValueError, match="Datasets is 'yes'; a component is open, restricted"):
        facts.mof_class({"Datasets": "yes"})


@pytest.mark.parametrize(
    ("id", "says"),
    [
        ("EleutherAI/pythia-1b", "Class I, Open Science Model"),
        ("ibm-granite/granite-4.1-8b", "Class III, Open Model"),
        ("meta-llama/Llama-2-7b-hf", "none of the three"),
    ],
)
def test_classes_are_those_of_the_model_openness_tool(id, says):
    assert str(lk.card(id).openness.mof) == says


@pytest.mark.parametrize("id", IDS)
def test_every_model_has_a_page_with_the_same_words_in_every_form(id):
    card = lk.card(id)
    text, markdown, html = repr(card), card.to_markdown(), card._repr_html_()
    plain = lambda written: re.sub(r"[\W_]+", "", re.sub(r"<[^>]*>|&\w+;|\\\|", " ", written))  # noqa: E731
    for section in card.sections():
        assert section.title in text
        for line in section.lines:
            assert plain(line.says) in plain(text)
            assert plain(line.says) in plain(markdown)
            assert line.source is None or f"{line.source}]({line.source.url})" in markdown
            assert line.source is None or line.source.url in text
    assert all(title in html for title in ("Licence terms in plain words", "How to cite"))
    assert "None" not in text
    assert "@" in card.sections()[-1].verbatim


def test_what_the_licences_are_known_for_is_on_the_card():
    llama, deepseek, r1 = (repr(lk.card(id)) for id in ("Llama-2-7b-hf", "deepseek-llm-7b-chat", "DeepSeek-R1"))
    assert "700 million monthly users" in llama
    assert "improve other large language models" in llama
    assert "military use" in llama
    assert "military use" in deepseek
    assert "training other models on its output are allowed" in " ".join(r1.split())
    assert "European Union" in repr(lk.card("Llama-4-Scout-17B-16E"))
    assert "prohibited use policy" in repr(lk.card("gemma-2-2b"))
    both = repr(lk.card("DeepSeek-R1-Distill-Llama-8B"))
    assert "MIT: You may use" in both
    assert "Llama 3.1 Community: You may use" in both


def test_without_a_name_it_is_the_default_models():
    assert lk.card().model.id == f"HuggingFaceTB/{NAME}"
    assert lk.card(NAME.lower()) == lk.card()


def test_a_name_that_is_not_in_the_catalog_gives_the_nearest():
    with pytest.raises(ValueError, match=r"'Lama-2-7b-hf' is not in the catalog. Did you mean .*Llama-2-7b-hf"):
        lk.card("Lama-2-7b-hf")
    with pytest.raises(ValueError, match=r"`lk.catalog\(\)` lists those that are"):
        lk.card("zzzzzzzz")


def test_hostile_text_is_shown_and_not_run():
    class Result:
        recipe = {"model": NAME}  # noqa: RUF012

        def __repr__(self):
            return "<script>alert('x')</script> | </td> **bold**\nsecond line"

    card = lk.card(measured=[Result()])
    card = replace(card, model=replace(card.model, id="a/<img src=x onerror=alert(1)>", licence="<b>|"))
    assert "<script>" not in card._repr_html_()
    assert "<img" not in card._repr_html_()
    assert "&lt;script&gt;" in card._repr_html_()
    assert "<script>" not in card.to_markdown()
    assert "<img" not in card.to_markdown()
    assert "second line" not in card.to_markdown()


def test_results_are_listed_with_their_model_where_it_is_another():
    class Result:
        def __init__(self, model):
            self.recipe = {"model": model}

        def __repr__(self):
            return "Score: 3 of 4"

    assert lk.card(measured=Result(NAME)).measured == ("Score: 3 of 4",)
    assert lk.card(measured=[Result("gpt2")]).measured == ("Score: 3 of 4 (measured on gpt2)",)
    with pytest.raises(TypeError, match=r"int has neither \.recipe nor \.model"):
        lk.card(measured=[3])


@pytest.mark.parametrize("ending", [".html", ".md"])
def test_a_saved_page_is_whole(tmp_path, ending):
    card = lk.card()
    path = card.save(tmp_path / f"card{ending}")
    text = path.read_text(encoding="utf-8")
    assert "Licence terms in plain words" in text
    assert ("<!doctype html>" in text) == (ending == ".html")
    assert "@media print" in text or ending == ".md"


def test_another_ending_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"saved as .html or .md, not .pdf"):
        lk.card().save(tmp_path / "card.pdf")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_markdown(capsys):
    assert main(["card", "gpt2"]) == 0
    assert capsys.readouterr().out == lk.card("openai-community/gpt2").to_markdown()
    assert main(["card", "gtp3"]) == 1
    assert "is not in the catalog" in capsys.readouterr().err


def test_the_page_names_its_sections_in_order():
    titles = [section.title for section in lk.card().sections()]
    assert titles[0] == "In short"
    assert page.DEFAULT.endswith(NAME)
    assert len(titles) == 7
