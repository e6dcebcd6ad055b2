"""The openness card: every sentence has its source, the class follows its rule, and a page is safe to look at."""

import json
import re
from dataclasses import replace
from html import unescape

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
        ("EleutherAI/pythia-14m", "not known"),  # the tool lists three components of it
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
            assert plain(line.says) in plain(unescape(re.sub(r"<[^>]*>", " ", html)))
            assert plain(line.section) in plain(text)
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


@pytest.mark.parametrize("id", IDS)
def test_the_numbers_in_the_text_are_those_of_the_listed_sources(id):
    card = lk.card(id)
    listed = dict(enumerate(card.sources(), 1))
    assert len({source.url for source in listed.values()}) == len(listed)  # no address twice
    page, _, end = repr(card).rpartition("\nSources\n")
    assert dict(re.findall(r"^\[(\d+)\] (\S+), (?:read|entered) 20\d\d-\d\d-\d\d$", end, re.MULTILINE)) == {
        str(n): source.url for n, source in listed.items()
    }
    assert sorted({int(n) for n in re.findall(r"\[(\d+)\]", page)}) == list(listed)
    page, _, end = card.to_markdown().rpartition("\n## Sources\n")
    assert dict(re.findall(r"^(\d+)\. <(\S+)>, ", end, re.MULTILINE)) == {str(n): one.url for n, one in listed.items()}
    assert {(int(n), url) for n, url in re.findall(r"\[\\\[(\d+)\\\]\]\((\S+?)\)", page)} == {
        (n, source.url) for n, source in listed.items()
    }
    page, _, end = card._repr_html_().rpartition("<h2>Sources</h2>")
    assert re.findall(r'<li><a href="([^"]+)">', end) == [source.url for source in listed.values()]
    assert {(int(n), url) for url, n in re.findall(r'<a href="([^"]+)" title="[^"]+">\[(\d+)\]</a>', page)} == {
        (n, source.url) for n, source in listed.items()
    }


def test_the_sentences_of_a_section_carry_the_numbers_of_their_own_sources():
    card = lk.card("Llama-2-7b-hf")
    number = {source: n for n, source in enumerate(card.sources(), 1)}
    text = " ".join(repr(card).split())
    for term in card.terms:
        assert f"{term.says} ({term.section}) [{number[term.source]}]" in text


@pytest.mark.parametrize(
    ("id", "licence", "asks"),
    [
        ("DeepSeek-R1-Distill-Llama-8B", "Llama 3.1 Community", "700 million monthly users"),
        ("DeepSeek-R1-Distill-Llama-70B", "Llama 3.3 Community", 'begins with "Llama"'),
        ("DeepSeek-R1-Distill-Qwen-1.5B", "Apache-2.0", "say which files were changed"),
    ],
)
def test_a_distilled_model_shows_both_licences_with_what_each_asks_for(id, licence, asks):
    card = lk.card(id)
    short, own, inherited = card.sections()[:3]
    assert own.title.endswith(": MIT")
    assert inherited.title.endswith(f": {licence}, inherited")
    assert any("notice and the licence have to stay" in line.says for line in own.lines)
    assert any("derived from" in line.says for line in own.lines)
    assert [line.says for line in inherited.lines] == [term.says for term in facts.terms(licence)]
    assert any(asks in line.says for line in inherited.lines)
    said = {line.label: line for line in short.lines}
    assert said["Licence"].says == "MIT."
    assert said["Inherited licence"].says.startswith(f"{licence}, ")
    assert said["The inherited licence allows"].source == inherited.lines[0].source
    for written in (repr(card), card.to_markdown(), card._repr_html_()):
        assert licence in written
        assert "Inherited licence" in written


def test_a_model_with_one_licence_shows_no_other():
    assert "nherited" not in repr(lk.card("Qwen2.5-7B"))


def test_what_no_source_says_about_the_hub_is_not_known():
    names = ("Qwen2.5-7B", "gpt2", "gemma-2-2b")
    gates = {name: repr(lk.card(name)).split("- On the hub: ")[1].splitlines()[0] for name in names}
    assert gates["Qwen2.5-7B"] == "not known whether conditions have to be accepted first."
    assert re.fullmatch(r"nothing has to be accepted first\. \[\d+\]", gates["gpt2"])
    assert re.fullmatch(r"conditions have to be accepted first\. \[\d+\]", gates["gemma-2-2b"])


def test_the_rules_of_each_llama_are_its_own():
    for name in ("2", "3", "3.1", "3.2", "3.3", "4"):
        text = " ".join(term.says for term in facts.terms(f"Llama {name} Community"))
        assert ("improve other large language models" in text) == (name in ("2", "3"))
        assert ("with its output, that is made available" in text) == (name not in ("2", "3"))
        assert ("European Union" in text) == (name in ("3.2", "3.3", "4"))
        assert ("Built with" in text) == (name != "2")
        assert ('begins with "Llama 3"' in text) == (name == "3")
        for known in ("700 million", "loses the licence", "delete the model", "courts of California", "trademarks"):
            assert known in text


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
