"""PromptLab as people use it: streaming, branching, chat, models side by side, in JupyterLab with a real model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from driver import Lab, button, kernel_says, notebook_of, open_notebook, output_of, reload, saved
from playwright.sync_api import Browser, Locator, Page, expect

CLEAN = "When Mary and John went to the store, John gave a drink to"
EVIL = "<script>window.harmed=1</script><img src=x onerror='window.harmed=1'>"
STRANGE = "<b>שלום 你好 😀\tdef f():\n\treturn '<|im_end|>'"
THOUGHTS = "<think>a</think> b\n<think>a</think> b\n<think>a</think> b\n<think>"

CELLS = {
    "load": "import labkit as lk\nlm = lk.load(progress=False)",
    "prompt": "prompting = lk.PromptLab(lm, max_new_tokens=20)\nprompting",
    "two": (
        "lm16 = lk.load(bits=16, progress=False)\n"
        "two = lk.PromptLab([lm, lm16], 'Once upon a time, in a village by the sea,', max_new_tokens=24)\ntwo"
    ),
    "long": (
        "strip = lk.TokenStrip(title='Long', scale='surprise', legend=True, unit='probability')\n"
        "strip.add_class('labkit-long')\nstrip"
    ),
    "evil": (
        f"evil = lk.PromptLab(lm, {EVIL!r}, max_new_tokens=2)\nevil.run()\n"
        f"odd = lk.PromptLab(lm, {STRANGE!r}, max_new_tokens=3)\nodd.run()\n"
        "display(evil, odd)\n"
        "from IPython.display import HTML\n"
        "display(HTML(evil.snapshot().replace('labkit-snapshot', 'saved-picture')))"
    ),
}


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    """One notebook, run from top to bottom; all tests look at it in the order below."""
    with notebook_of(browser, lab, "prompt_lab.ipynb", list(CELLS.values())) as page:
        yield page


def cell(page: Page, name: str) -> Locator:
    """The output of one of the cells."""
    return output_of(page, list(CELLS).index(name))


def written(where: Locator) -> Locator:
    return where.locator(".labkit-strip:visible").first.locator(".labkit-token:not(.labkit-is-prompt)")


def status(where: Locator) -> Locator:
    return where.locator(".labkit-status").first


def most(where: Locator, tokens: int) -> None:
    box = where.get_by_label("max tokens")
    box.fill(str(tokens))
    box.press("Enter")


def ask(where: Locator, text: str) -> None:
    """Write into the box at the end of the prompt, and send it."""
    box = where.locator(".labkit-prompt:visible textarea").last
    box.fill(text)
    box.press("Control+Enter")


def test_a_typed_prompt_streams_as_tokens_with_their_alternatives(page: Page) -> None:
    lab = cell(page, "prompt")
    ask(lab, CLEAN)
    tokens = written(lab)
    expect(tokens.first).to_have_text("·Mary")
    expect(status(lab)).to_contain_text("tokens/s ·")
    expect(tokens).to_have_count(20)
    expect(lab.locator(".labkit-is-prompt")).to_have_count(14)
    tokens.first.hover()
    note = lab.locator(".labkit-note:visible")
    expect(note.locator("tr")).to_have_count(10)
    expect(note.locator("tr").first).to_contain_text("·Mary")
    expect(note).to_contain_text(re.compile(r"\d%.*surprisal \d.*bits.*entropy.*rank 1"))
    assert kernel_says(page, "print(prompting.text)").startswith("Mary")


def test_a_chosen_alternative_branches_the_text_and_the_tree_shows_both(page: Page) -> None:
    lab = cell(page, "prompt")
    written(lab).first.click()
    menu = lab.locator(".labkit-menu:visible")
    expect(menu).to_be_visible()
    john = menu.get_by_role("option").filter(has_text="·John")
    john.click()
    expect(written(lab).first).to_have_text("·John")
    expect(status(lab)).to_contain_text("tokens/s ·")
    tree = lab.locator(".labkit-branch")
    expect(tree).to_have_count(2)
    expect(tree.nth(1)).to_contain_text("at 0 ·John not ·Mary")
    assert (
        kernel_says(page, "print([b.name for b in prompting.columns[0].tree], prompting.text[:5])")
        == "['A', 'B']  John"
    )


def test_branches_are_chosen_named_compared_continued_and_pruned(page: Page) -> None:
    lab = cell(page, "prompt")
    tree = lab.locator(".labkit-branch")
    tree.first.click()
    expect(written(lab).first).to_have_text("·Mary")
    expect(tree.first).to_have_attribute("aria-selected", "true")
    tree.nth(1).hover()
    button(tree.nth(1), "Compare: branch B").click()
    expect(lab.locator(".labkit-strip:visible")).to_have_count(2)
    expect(lab.locator(".labkit-strip:visible").nth(1).locator(".labkit-is-differs").first).to_have_text("·John")
    tree.nth(1).focus()
    page.keyboard.press("F2")
    page.keyboard.type("to John")
    page.keyboard.press("Enter")
    expect(tree.nth(1)).to_contain_text("to John")
    page.keyboard.press("+")
    expect(written(lab)).to_have_count(40)
    expect(status(lab)).to_contain_text("40 tokens")
    tree.nth(1).focus()
    page.keyboard.press("Delete")
    expect(lab.locator(".labkit-branch:visible")).to_have_count(0)
    assert kernel_says(page, "print(prompting.columns[0].tree)") == "Tree(14 prompt tokens, branches A)"


def test_the_keyboard_alone_reaches_a_token_and_takes_another(page: Page) -> None:
    lab = cell(page, "prompt")
    written(lab).first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(lab.locator(".labkit-menu:visible [aria-selected=true]")).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    second = lab.locator(".labkit-menu:visible [role=option]").nth(1)
    expect(second).to_be_focused()
    word = second.locator(".labkit-mono").inner_text()
    page.keyboard.press("Escape")
    expect(written(lab).nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # lets go, and opens again
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(written(lab).nth(1)).to_have_text(word)
    expect(lab.locator(".labkit-branch")).to_have_count(2)


def test_text_comes_while_the_model_writes_and_stop_stops(page: Page) -> None:
    lab = cell(page, "prompt")
    most(lab, 1500)
    ask(lab, "A list of all numbers: 1, 2, 3, 4, 5,")
    tokens = written(lab)
    expect(tokens.nth(5)).to_be_visible()
    early = tokens.count()
    expect(tokens.nth(early + 5)).to_be_visible()  # it grows
    expect(button(lab, "Stop")).to_be_enabled()
    button(lab, "Stop").dblclick()  # twice is once
    expect(status(lab)).to_contain_text("· stopped")
    expect(button(lab, "Stop")).to_be_disabled()
    kept = tokens.count()
    assert early < kept < 1500
    assert kernel_says(page, "print(prompting.generation.finish, len(prompting.generation))") == f"stopped {kept}"


def test_a_second_run_takes_the_place_of_the_first_and_the_first_is_kept(page: Page) -> None:
    lab = cell(page, "prompt")
    ask(lab, "One potato, two potatoes,")
    expect(lab.locator(".labkit-is-prompt").first).to_have_text("One")  # no longer what the last run wrote
    expect(written(lab).nth(3)).to_be_visible()
    most(lab, 6)
    ask(lab, "Red, orange, yellow,")
    expect(status(lab)).to_contain_text("6 tokens ·")
    expect(lab.locator(".labkit-is-prompt").first).to_have_text("Red")
    runs = lab.get_by_label("runs")
    runs.select_option(label=runs.locator("option").filter(has_text="potato").inner_text())
    expect(lab.locator(".labkit-is-prompt").first).to_have_text("One")
    expect(written(lab).nth(3)).to_be_visible()
    assert kernel_says(page, "print(prompting.generation.finish)") == "stopped"


def test_an_empty_prompt_is_answered_in_plain_words_and_nothing_is_lost(page: Page) -> None:
    lab = cell(page, "prompt")
    before = lab.locator(".labkit-token").count()
    ask(lab, "")
    expect(lab.get_by_role("alert")).to_contain_text("The prompt is empty")
    assert lab.locator(".labkit-token").count() == before > 0


def test_a_prompt_that_is_too_long_can_be_shortened_with_a_click(page: Page) -> None:
    lab = cell(page, "prompt")
    most(lab, 8000)
    ask(lab, "one two three " * 100)
    expect(lab.get_by_role("alert")).to_contain_text("109 more than the 8192")
    button(lab, "Leave out the first 109 tokens, and run").click()
    expect(written(lab).first).to_be_visible()
    button(lab, "Stop").click()
    expect(status(lab)).to_contain_text("stopped")
    expect(lab.locator(".labkit-is-prompt")).to_have_count(192)


def test_thoughts_are_folded_with_their_length_and_unfold(page: Page) -> None:
    lab = cell(page, "prompt")
    most(lab, 8)
    ask(lab, THOUGHTS)
    expect(status(lab)).to_contain_text("8 tokens ·")
    folds = lab.locator(".labkit-fold")
    expect(folds.first).to_have_text(re.compile(r"▸ thought · \d+ tokens"))
    expect(folds).to_have_count(4)
    last = folds.last
    assert written(lab).evaluate_all("all => all.some(one => one.classList.contains('labkit-folded'))")
    last.click()
    expect(last).to_have_attribute("aria-expanded", "true")
    assert not written(lab).first.evaluate("one => one.classList.contains('labkit-folded')")


def test_another_measure_colours_anew(page: Page) -> None:
    lab = cell(page, "prompt")
    ask(lab, CLEAN)
    expect(status(lab)).to_contain_text("8 tokens ·")
    sure = written(lab).nth(3)
    before = sure.evaluate("one => one.style.background")
    lab.get_by_label("colour by").select_option("entropy")
    expect(lab.locator(".labkit-legend").first).to_contain_text("entropy in bits")
    expect(sure).not_to_have_attribute("style", re.compile(re.escape(before)))
    lab.get_by_label("colour by").select_option("probability")


@pytest.mark.parametrize("name", ["Attention", "Lens", "Patching"])
def test_from_a_token_one_looks_inside(page: Page, name: str) -> None:
    lab = cell(page, "prompt")
    written(lab).first.click()
    expect(lab.locator(".labkit-menu:visible")).to_have_count(1)
    page.keyboard.press("Escape")  # the menu goes, and the token stays selected
    expect(lab.locator(".labkit-menu:visible")).to_have_count(0)
    expect(lab.get_by_text("about to say ·Mary (14)")).to_be_visible()
    button(lab, name).click()
    inner = lab.locator(".labkit-tool .labkit-tool")
    expect(inner).to_have_count(1)
    if name == "Attention":
        expect(inner.locator(".labkit-token").nth(13)).to_have_text("·to")
    elif name == "Lens":
        expect(inner.locator(".labkit-heatmap").first).to_be_visible()
    else:
        expect(inner.get_by_label("Clean prompt")).to_have_value(CLEAN)
        expect(inner.get_by_label("Answer", exact=True)).to_have_value(" Mary")
        expect(inner.get_by_label("Foil", exact=True)).to_have_value(" the")
    button(lab, "Close").click()
    expect(inner).to_have_count(0)
    written(lab).first.press("Escape")
    expect(lab.get_by_text("about to say ·Mary (14)")).to_be_hidden()


def test_a_chat_shows_the_template_and_any_turn_is_edited_and_rerun(page: Page) -> None:
    lab = cell(page, "prompt")
    button(lab, "Chat").click()
    lab.get_by_label("System prompt").fill("You are terse.")
    ask(lab, "Name a colour.")
    expect(lab.get_by_label("Model")).to_be_visible()
    expect(lab.locator(".labkit-token.labkit-is-special").first).to_have_text("<|im_start|>")
    shown = lab.locator(".labkit-token.labkit-is-system").all_inner_texts()
    assert "".join(shown).replace("·", " ").strip() == "You are terse."
    assert lab.locator(".labkit-token.labkit-is-user").count() == 4
    assert lab.locator(".labkit-token.labkit-is-template").count() > 5
    ask(lab, "And another.")
    expect(lab.get_by_label("Model")).to_have_count(2)
    lab.get_by_label("You", exact=True).first.fill("Name an animal.")
    button(lab, "Rerun from here").first.click()
    expect(lab.get_by_label("Model")).to_have_count(1)
    expect(status(lab)).to_contain_text("tokens/s ·")
    assert kernel_says(page, "print([m['content'] for m in prompting.messages][0])") == "Name an animal."
    assert kernel_says(page, "print(prompting.code().splitlines()[0])").startswith("# chat template: sha256 ")


def test_a_pasted_text_is_scored_and_its_surprises_stand_out(page: Page) -> None:
    lab = cell(page, "prompt")
    button(lab, "Score a text").click()
    ask(lab, "Monday, Tuesday, Wednesday, Thursday, banana, Saturday, Sunday")
    expect(status(lab)).to_contain_text(re.compile(r"perplexity [\d.]+ · [\d.]+ bits per byte"))
    surprise = lab.locator(".labkit-is-surprise").filter(has_text="ban")
    expect(surprise).to_have_count(1)
    surprise.hover()
    expect(lab.locator(".labkit-note:visible tr").first).to_contain_text("·Friday")


def test_four_bits_and_sixteen_stand_side_by_side_with_what_differs_marked(page: Page) -> None:
    lab = cell(page, "two")
    button(lab, "Run").click()
    strips = lab.locator(".labkit-strip:visible")
    expect(status(lab)).to_contain_text("They diverge at token")
    expect(strips).to_have_count(2)
    first, second = (strips.nth(n).bounding_box() for n in range(2))
    assert first
    assert second
    assert abs(first["y"] - second["y"]) < 2
    assert first["x"] + first["width"] <= second["x"]
    for n, bits in enumerate((4, 16)):
        expect(strips.nth(n)).to_contain_text(f"{bits} bits")
        expect(strips.nth(n).locator(".labkit-is-differs").first).to_be_visible()
        expect(lab.locator(".labkit-status:visible").nth(n + 1)).to_contain_text(re.compile(r"\d+ tokens/s .* MB"))
    strips.first.locator(".labkit-token:not(.labkit-is-prompt)").first.hover()
    expect(strips.nth(1).locator(".labkit-pointed")).to_have_count(1)


def test_four_thousand_tokens_grow_as_easily_as_the_first(page: Page) -> None:
    """Each batch changes the page by its own tokens alone, however long the text is."""
    out = cell(page, "long")
    strip = out.locator(".labkit-strip")
    strip.evaluate("""strip => {
        window.changes = [];
        const size = one => (one.type === 'childList' ? one.addedNodes.length + one.removedNodes.length : 1);
        new MutationObserver(seen => window.changes.push(seen.reduce((sum, one) => sum + size(one), 0))).observe(
            strip.querySelector('.labkit-tokens'), { childList: true, subtree: true, attributes: true });
    }""")
    code = (
        "import numpy as np\n"
        "rows = [[(f'·word{i}', 0.5 / (i + 1)) for i in range(10)]] * 8\n"
        "for n in range(512): strip.append([f'·w{n}.{i}' for i in range(8)], np.linspace(0, 1, 8), alternatives=rows)\n"
        "print(len(strip.tokens))"
    )
    assert kernel_says(page, code) == "4096"
    expect(strip.locator(".labkit-token")).to_have_count(4096)
    changes = page.evaluate("window.changes")
    assert sum(changes[-20:]) / 20 <= 1.5 * sum(changes[:20]) / 20 + 8
    assert strip.evaluate("strip => { const t = strip.querySelector('.labkit-tokens'); return t.scrollTop > 0; }")
    strip.locator(".labkit-token").nth(4090).hover()
    expect(strip.locator(".labkit-note:visible tr")).to_have_count(10)


def test_markup_and_every_script_are_text_in_the_widget_and_its_picture(page: Page) -> None:
    output = cell(page, "evil")
    shown = "".join(output.locator(".labkit-tokens:visible").first.locator(".labkit-token").all_inner_texts())
    assert "<script>" in shown.replace("·", " ")
    odd = output.locator(".labkit-tool").nth(1).locator(".labkit-token:visible").all_inner_texts()
    assert not any("\ufffd" in text for text in odd)
    assert any("ש" in text for text in odd) or any(text.startswith("‹D7") for text in odd)
    assert any("⇥" in text for text in odd)
    assert any("⏎" in text for text in odd)
    assert "<|im_end|>" in odd
    assert any("‹F0 9F" in text for text in odd)
    expect(output.locator(".saved-picture img").first).to_have_attribute("alt", re.compile("onerror"))
    assert output.locator("script, img[onerror]").count() == 0
    assert page.evaluate("window.harmed") is None


def test_a_session_is_saved_and_opened(page: Page) -> None:
    lab = cell(page, "prompt")
    lab.get_by_label("session").fill("kept.json")
    button(lab, "Save").click()
    expect(status(lab)).to_contain_text(re.compile(r"Saved \d+ runs to kept.json"))
    count = int(kernel_says(page, "print(len(prompting.runs))"))
    button(lab, "Open").click()
    expect(status(lab)).to_contain_text(f"Opened {count} runs")
    lab.get_by_label("session").fill("nowhere.json")
    button(lab, "Open").click()
    expect(lab.get_by_role("alert")).to_contain_text("There is no file 'nowhere.json'")


def test_after_a_reload_with_the_kernel_alive_everything_is_there(page: Page, lab: Lab) -> None:
    two = cell(page, "two")
    before = two.locator(".labkit-token").all_inner_texts()
    shades = two.locator(".labkit-token").evaluate_all("all => all.map(one => one.style.background)")
    reload(page, lab, "prompt_lab.ipynb")
    two = cell(page, "two")
    expect(two.locator(".labkit-token").first).to_be_visible()
    expect(two.locator(".labkit-token")).to_have_count(len(before))
    assert two.locator(".labkit-token").all_inner_texts() == before
    assert two.locator(".labkit-token").evaluate_all("all => all.map(one => one.style.background)") == shades
    expect(cell(page, "long").locator(".labkit-token")).to_have_count(4096)
    cell(page, "long").locator(".labkit-token").nth(4000).hover()
    expect(cell(page, "long").locator(".labkit-note:visible tr")).to_have_count(10)
    button(two, "Run").click()  # and it works on
    expect(status(two)).to_contain_text("They diverge at token")


def test_a_saved_notebook_shows_the_pictures_without_a_kernel(page: Page, lab: Lab, browser: Browser) -> None:
    path = saved(page, lab, "prompt_lab.ipynb")
    assert path.stat().st_size < 1_000_000
    shutil.copy(path, lab.root / "prompt_lab_saved.ipynb")
    with open_notebook(browser, lab, "prompt_lab_saved.ipynb") as reader:
        picture = reader.locator(".labkit-snapshot").filter(has_text="16 bits").first
        expect(picture).to_be_visible(timeout=60_000)
        expect(picture.locator("img").first).to_have_attribute("alt", re.compile("Once"))


def test_no_widget_raised_an_error_in_the_browser(page: Page) -> None:
    assert page.problems == []  # type: ignore[attr-defined]
