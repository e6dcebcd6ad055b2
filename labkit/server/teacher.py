"""The teacher's page: who waits, who runs, how much they used; stop a call, pause a student.

One page with its style and its twenty lines of JavaScript in it. Every name is escaped; without JavaScript the page
loads itself again.
"""

from __future__ import annotations

from html import escape

from labkit.server.jobs import Student, Work
from labkit.server.turns import Turns

STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #666; --accent: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aaa; --accent: #8ab4f8; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.quiet { color: var(--quiet); }
button, input { font: inherit; padding: .25rem .7rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
form { display: inline; } form.login { display: grid; gap: .6rem; max-width: 24rem; }
"""

SCRIPT = """
let held = false;
addEventListener("pointerdown", () => { held = true; });
addEventListener("pointerup", () => setTimeout(() => { held = false; }, 300));
setInterval(async () => {
  if (held || document.hidden) return;
  const answer = await fetch(location.href, { cache: "no-store" }).catch(() => null);
  const now = document.querySelector("#now");
  if (!answer || !answer.ok) { now.textContent = "The server does not answer."; return; }
  const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
  const focused = document.activeElement && document.activeElement.id;
  if (!next || held) return;
  document.querySelector("main").replaceWith(document.adoptNode(next));
  if (focused) document.getElementById(focused)?.focus();
}, 2000);
"""


def page(turns: Turns, *, model: str, base: str, nonce: str) -> str:
    """The page as it is now. `base` is the address that everything is under, `nonce` allows its style and script."""
    students = list(turns.everyone())
    running = turns.running()
    waiting = sum(len(student.waiting) for student in students)
    runs = "".join(_runs(turns, work, base) for work in running)
    rows = "".join(_row(turns, student, running, base) for student in students)
    body = f"""<main>
<h1>{escape(model)}</h1>
<p id="now" role="status">{len(running)} running, {waiting} waiting, {turns.done} done.</p>
<h2>Running</h2>
{
        f'<table><tr><th>Students<th class="n">Seconds<th>Progress<th></tr>{runs}</table>'
        if runs
        else '<p class="quiet">Nothing runs.</p>'
    }
<h2>Students</h2>
<table><tr><th>Student<th>Now<th class="n">Waiting<th class="n">Ahead of them<th class="n">Model seconds
<th class="n">Turns<th class="n">Longest wait, in turns<th></tr>{rows}</table>
{"" if rows else '<p class="quiet">Nobody has asked for anything yet.</p>'}
<form method="post" action="{base}/teacher/logout"><p><button id="out">Log out</button></p></form>
</main>"""
    script = f'<script nonce="{nonce}">{SCRIPT}</script><noscript><meta http-equiv="refresh" content="5"></noscript>'
    return _html("labkit: who waits", body + script, nonce)


def login(*, base: str, nonce: str, wrong: bool = False) -> str:
    said = '<p role="alert">That is not a teacher\'s token.</p>' if wrong else ""
    body = f"""<main><h1>labkit serve</h1>{said}
<form class="login" method="post" action="{base}/teacher/login">
<label for="token">The teacher's token, from the file of tokens</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button></form></main>"""
    return _html("labkit: log in", body, nonce)


def _html(title: str, body: str, nonce: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style nonce="{nonce}">{STYLE}</style></head><body>{body}</body></html>'
    )


def _runs(turns: Turns, work: Work, base: str) -> str:
    names = escape(", ".join(sorted({job.student for job in work.jobs}) or [work.charged]))
    progress = next((said for _, said in reversed(list(work.reports)) if "done" in said and "total" in said), None)
    told = escape(f"{progress['done']} of {progress['total']}") if progress else ""
    seconds = turns.clock() - (work.began or turns.clock())
    stop = _button(base, "stop", "work", work.name, "Stop", f"Stop what {names} runs")
    return f'<tr><td>{names}<td class="n">{seconds:.1f}<td>{told}<td>{stop}</tr>'


def _row(turns: Turns, student: Student, running: list[Work], base: str) -> str:
    name = escape(student.name)
    runs = any(job.student == student.name for work in running for job in work.jobs)
    now = "runs" if runs else "paused" if student.paused else "waits" if student.waiting else "–"
    ahead = str(turns.ahead(student.waiting[0])) if student.waiting else ""
    word = "Resume" if student.paused else "Pause"
    change = _button(base, "resume" if student.paused else "pause", "student", student.name, word, f"{word} {name}")
    return (
        f'<tr><td>{name}<td>{now}<td class="n">{len(student.waiting) or ""}<td class="n">{ahead}'
        f'<td class="n">{student.used:.1f}<td class="n">{student.turns}<td class="n">{student.longest}<td>{change}</tr>'
    )


def _button(base: str, action: str, field: str, value: str, word: str, label: str) -> str:
    value = escape(value)
    return (
        f'<form method="post" action="{base}/teacher/{action}"><input type="hidden" name="{field}" value="{value}">'
        f'<button id="{action}-{value}" aria-label="{label}">{word}</button></form>'
    )
