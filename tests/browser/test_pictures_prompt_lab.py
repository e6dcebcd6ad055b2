"""Pictures of PromptLab: LABKIT_PICTURES=docs/images pytest tests/browser/test_pictures_prompt_lab.py"""

from __future__ import annotations

from driver import Lab
from playwright.sync_api import Browser, expect
from test_pictures import drawn, in_both_themes, picture, to_top

CELLS = [
    "import labkit as lk\nlm, lm16 = lk.load(progress=False), lk.load(bits=16, progress=False)",
    "a = lk.PromptLab(lm, 'Once upon a time, in a small village by the sea,', temperature=0.6, seed=4)\n"
    "a.max_new_tokens = 56\na.run()\na.branch(9, ' young'); a.wait()\na.branch(14, ' old'); a.wait()\na",
    "b = lk.PromptLab(lm, 'What is the capital of France?', mode='chat', max_new_tokens=40)\nb.run()\nb",
    "c = lk.PromptLab([lm, lm16], 'Once upon a time, in a village by the sea,', max_new_tokens=48)\nc.run()\nc",
    "d = lk.PromptLab(lm, 'Monday, Tuesday, Wednesday, Thursday, banana, Saturday, Sunday.', mode='score')\nd.run()\nd",
    "e = lk.PromptLab(lm, '<think>a</think> b\\n<think>a</think> b\\n<think>', max_new_tokens=24)\ne.run()\ne",
]


@in_both_themes
def test_pictures_of_prompt_lab(lab: Lab, browser: Browser, theme: str) -> None:
    with drawn(lab, browser, f"pictures_prompt_{theme}", CELLS, dark=theme == "dark") as page:
        tools = page.locator(".labkit-tool")
        first = to_top(tools.nth(0))
        first.locator(".labkit-token").nth(27).hover()
        expect(first.locator(".labkit-note:visible")).to_be_visible()
        picture(page, 0, f"prompt_lab_{theme}")
        first.locator(".labkit-token").nth(27).click()
        expect(first.locator(".labkit-menu:visible")).to_be_visible()
        picture(page, 0, f"prompt_lab_branch_{theme}")
        page.keyboard.press("Escape")
        for number, name in enumerate(("chat", "side_by_side", "score", "thinking"), 1):
            tool = to_top(tools.nth(number))
            expect(tool).to_be_visible()
            page.mouse.move(5, 5)
            picture(page, number, f"prompt_lab_{name}_{theme}")
