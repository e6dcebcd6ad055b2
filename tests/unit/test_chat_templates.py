"""Chats in the styles of many templates: whose each part is, how the last message stays open, what a template is told.

Each style is written twice, as a template and as a function in Python that knows whose each piece is.
"""

import datetime
import itertools

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import labkit as lk
from labkit.text.chat import GEMMA, LLAMA_2
from labkit.text.regions import Region
from labkit.text.tokens import bytes_of

DEFAULT = "You are a helpful AI assistant named Bot"
MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
]

CHATML = f"""\
{{%- if messages[0].role != 'system' -%}}{{{{ '<|im_start|>system\\n{DEFAULT}<|im_end|>\\n' }}}}{{%- endif -%}}
{{%- for m in messages -%}}{{{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}}}{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{ '<|im_start|>assistant\\n' }}}}{{%- endif -%}}"""
LLAMA_3 = """\
{{- '<s>' -}}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""
MISTRAL = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}
{{- '<s>' -}}
{%- for m in turns -%}{%- if m.role == 'user' -%}
{{ '[INST] ' + (system + '\\n\\n' if loop.last and system else '') + m.content + '[/INST]' }}
{%- else -%}{{ ' ' + m.content | trim + '</s>' }}{%- endif -%}{%- endfor -%}"""
PHI_3 = """\
{%- for m in messages -%}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"""
QWEN_3 = """\
{%- set seen = namespace(user=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set seen.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' -%}
{%- set thought = '' -%}{%- set answer = m.content -%}
{%- if '</think>' in m.content -%}
{%- set thought = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set answer = m.content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > seen.user and (loop.last or thought) -%}
{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif -%}
{{ answer }}
{%- else -%}{{ m.content }}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}"""
DATED = """\
{%- macro header() -%}{{ '<|im_start|>system\\nToday is ' ~ strftime_now('%-d %B %Y, 100%%') ~ '<|im_end|>\\n' }}{%- endmacro -%}
{{ header() }}{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""  # noqa: E501


def turn(before, message, after, change=str):
    return [(None, before), (message["role"], change(message["content"])), (None, after)]


def chatml(chat):
    default = [] if chat[0]["role"] == "system" else [(None, f"<|im_start|>system\n{DEFAULT}<|im_end|>\n")]
    pieces = [turn(f"<|im_start|>{m['role']}\n", m, "<|im_end|>\n") for m in chat]
    return default + list(itertools.chain(*pieces)) + [(None, "<|im_start|>assistant\n")]


def llama_2(chat):
    system, turns = (chat[:1], chat[1:]) if chat[0]["role"] == "system" else ([], chat)
    found = []
    for n, m in enumerate(turns):
        if m["role"] == "user":
            found += [(None, "<s>[INST] ")]
            if n == 0:
                found += [piece for s in system for piece in turn("<<SYS>>\n", s, "\n<</SYS>>\n\n", str.strip)]
            found += turn("", m, " [/INST]", str.strip)
        else:
            found += turn(" ", m, " </s>", str.strip)
    return found


def llama_3(chat):
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    pieces = [turn(head.format(m["role"]), m, "<|eot_id|>", str.strip) for m in chat]
    return [(None, "<s>"), *itertools.chain(*pieces), (None, head.format("assistant"))]


def gemma(chat):
    system, turns = (chat[:1], chat[1:]) if chat[0]["role"] == "system" else ([], chat)
    found = [(None, "<s>")]
    for n, m in enumerate(turns):
        found += [(None, f"<start_of_turn>{'user' if m['role'] == 'user' else 'model'}\n")]
        if n == 0:
            found += [piece for s in system for piece in turn("", s, "\n\n", str.strip)]
        found += turn("", m, "<end_of_turn>\n", str.strip)
    return [*found, (None, "<start_of_turn>model\n")]


def mistral(chat):
    system, turns = (chat[:1], chat[1:]) if chat[0]["role"] == "system" else ([], chat)
    found = [(None, "<s>")]
    for n, m in enumerate(turns):
        if m["role"] == "user":
            found += [(None, "[INST] ")]
            if n == len(turns) - 1 and system and system[0]["content"]:
                found += turn("", system[0], "\n\n")
            found += turn("", m, "[/INST]")
        else:
            found += turn(" ", m, "</s>", str.strip)
    return found


def phi_3(chat):
    pieces = [turn(f"<|{m['role']}|>\n", m, "<|end|>\n") for m in chat]
    return [*itertools.chain(*pieces), (None, "<|assistant|>\n")]


def qwen_3(chat):  # ends with the user, so that no earlier thought is kept
    answer = lambda said: said.split("</think>")[-1].lstrip("\n") if "</think>" in said else said  # noqa: E731
    change = lambda m: answer if m["role"] == "assistant" else str  # noqa: E731
    pieces = [turn(f"<|im_start|>{m['role']}\n", m, "<|im_end|>\n", change(m)) for m in chat]
    return [*itertools.chain(*pieces), (None, "<|im_start|>assistant\n")]


STYLES = {
    "chatml": (CHATML, chatml), "llama 2": (LLAMA_2, llama_2), "llama 3": (LLAMA_3, llama_3), "gemma": (GEMMA, gemma),
    "mistral": (MISTRAL, mistral), "phi 3": (PHI_3, phi_3), "qwen 3": (QWEN_3, qwen_3),
}  # fmt: skip
SAID = [  # what the system says, the user, the assistant, and the user again
    ("Be terse.", "Who was the Tsar?", "Alexander", "And then?"),
    ("a", "a", "a", "a"),  # four times the same
    ("system", "assistant", "user", "model"),  # what headers say
    (DEFAULT, DEFAULT[:5], "AI", "AI assistant"),  # what the template says by itself
    ("", "x", "", "y"),
    ("  \n", "  two  words ", "\n\nthree\n", " "),
    ("[INST]", "<<SYS>>\n", "[/INST] ", "\n<</SYS>>\n\n"),
    ("Дай ответ", "naïve 😀 ﬁn", "日本語。", "\u200d👩\u200d🚀"),
    ("s", "Which tag ends <think>?", "<think>\nHm, </think> ends it.\n</think>\n\nThe tag </think>\n", "</think>"),
    ("x" * 300, "y\n" * 100, "z" * 300, "y\n" * 100),
]


@pytest.fixture(scope="module")
def lm():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in MARKS])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return lk.LanguageModel(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, name="toy")


@pytest.fixture
def use(lm, monkeypatch):
    """The model with another chat template."""

    def use(template):
        monkeypatch.setattr(lm.tokenizer, "chat_template", template)
        return lm

    return use


def shown(lm, prompt):
    return lm.tokenizer.decode(lm.encode(prompt)[0])


def talk(*said):
    return [{"role": r, "content": c} for r, c in zip(("system", "user", "assistant", "user"), said, strict=False)]


def placed(lm, prompt):
    """Each message's region, in bytes of the text, with what it says."""
    ids = lm.encode(prompt)[0].tolist()
    parts = bytes_of(lm.tokenizer, ids)
    return [
        (r.kind, len(b"".join(parts[: r.start])), b"".join(parts[r.start : r.stop]))
        for r in lm.regions(prompt)
        if r.kind != "thinking"
    ]


# -- whose is which part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_each_message_is_found_in_its_own_turn_whatever_it_says(use, style):
    template, by_hand = STYLES[style]
    lm = use(template)
    for said, first in itertools.product(SAID, (0, 1)):
        chat = talk(*said)[first:]
        pieces = by_hand(chat)
        assert shown(lm, chat) == "".join(text for _, text in pieces)
        begins = itertools.accumulate((len(text.encode()) for _, text in pieces), initial=0)
        expected = [(k, at, text.encode()) for (k, text), at in zip(pieces, begins, strict=False) if k and text]
        assert placed(lm, chat) == expected, said


def test_a_message_that_the_template_writes_twice_has_two_places(use):
    lm = use("{% for m in messages %}[{{ m.content }}|{{ m.role }}|{{ m.content }}]{% endfor %}")
    assert placed(lm, talk("s", "a user")) == [
        ("system", 1, b"s"), ("system", 10, b"s"), ("user", 13, b"a user"), ("user", 25, b"a user"),
    ]  # fmt: skip


def test_a_message_that_the_template_changes_is_found_all_the_same(use):
    lm = use("{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}")
    assert placed(lm, talk("terse", "who?")) == [("system", 8, b"TERSE"), ("user", 20, b"WHO?")]


def test_where_the_place_cannot_be_told_there_is_no_region(use):
    lm = use(
        "{% for m in messages %}{% if m.role == 'user' and 'rain' in m.content %}(about the weather){% endif %}"
        "{{ m.role }}:{{ m.content | reverse }};{% endfor %}"
    )
    assert [kind for kind, _, _ in placed(lm, talk("s", "rain or sun"))] == ["system"]
    dropped = use("{% for m in messages %}{% if m.role != 'system' %}<{{ m.content }}>{% endif %}{% endfor %}")
    assert placed(dropped, talk("a", "a")) == [("user", 1, b"a")]


def test_only_the_model_thinks_in_a_chat(use):
    lm = use(QWEN_3)
    asks = talk("Think in <think> </think>.", "What is <think>?")
    assert [r.kind for r in lm.regions(asks)] == ["system", "user"]
    kept = lk.Chat([*asks, {"role": "assistant", "content": "<think>\nA tag.\n</think>\n\nA tag."}])
    ids = lm.encode(kept)[0].tolist()
    said = [(r.kind, lm.tokenizer.decode(ids[r.start : r.stop])) for r in lm.regions(kept)][2:]
    assert said[0] == ("assistant", "<think>\nA tag.\n</think>\n\nA tag.")
    assert said[1][0] == "thinking"
    assert said[1][1] == "<think>\nA tag.\n</think>"
    off = lk.Chat(asks, enable_thinking=False)
    assert [r.kind for r in lm.regions(off)] == ["system", "user", "thinking"]


def test_a_thought_that_is_not_closed_ends_with_its_message(use):
    lm = use(CHATML)
    chat = [*talk("s", "q", "<think> well"), {"role": "user", "content": "more"}]
    kinds = {r.kind: r for r in lm.regions(chat)}
    assert kinds["thinking"] == Region("thinking", kinds["assistant"].start, kinds["assistant"].stop)


def test_messages_in_parts_are_found(use):
    lm = use("{% for m in messages %}<|im_start|>{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}")
    chat = [{"role": "user", "content": [{"type": "text", "text": "im"}]}]
    assert placed(lm, chat) == [("user", 12, b"im")]


# -- a last message that stays open ------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("answer", ["Sure, the", " Sure, ", "user", "a\n\n", "Sure, the first"])
def test_a_last_answer_stays_open_as_transformers_leaves_it(use, style, answer):
    lm = use(STYLES[style][0])
    chat = talk("Be kind.", "Name a fruit.", answer)
    expected = lm.tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    if style == "llama 2":  # what this template strips, transformers keeps, misled by the space that follows
        expected = expected.rstrip()
    assert shown(lm, chat) == expected
    kind, at, text = placed(lm, chat)[-1]
    assert kind == "assistant"
    assert text.decode().strip() == answer.strip()
    assert at + len(text) == len(expected.encode())


def test_an_open_answer_keeps_thoughts_that_the_template_would_drop(use):
    lm = use("{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] ~ '</s>' }}"
             "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}")  # fmt: skip
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nGreet.\n</think>\n\nHel"}]
    assert shown(lm, chat) == "<s><|user|>Hi</s><|assistant|><think>\nGreet.\n</think>\n\nHel"
    assert [r.kind for r in lm.regions(chat)] == ["user", "assistant", "thinking"]


def test_a_thought_that_is_begun_takes_the_place_of_an_empty_one(use):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nGre"}]
    assert shown(use(QWEN_3), chat).endswith("<|im_start|>assistant\n<think>\nGre")


def test_how_a_chat_ends_can_be_said(use):
    lm = use(CHATML)
    answer, closed = talk("s", "q", "answer"), "<|im_start|>assistant\nanswer<|im_end|>\n"
    assert shown(lm, lk.Chat(answer)) == shown(lm, answer)
    assert shown(lm, lk.Chat(answer, continue_final_message=False)).endswith(closed)
    again = lk.Chat(answer, add_generation_prompt=True)
    assert shown(lm, again).endswith(closed + "<|im_start|>assistant\n")
    assert shown(lm, lk.Chat(answer[:2], continue_final_message=True)).endswith("user\nq")
    assert shown(lm, lk.Chat(answer[:2], add_generation_prompt=False)).endswith("user\nq<|im_end|>\n")
    for chat in (lk.Chat(answer, continue_final_message=False), again):
        assert [kind for kind, _, _ in placed(lm, chat)] == ["system", "user", "assistant"]
    with pytest.raises(ValueError, match="choose one"):
        lk.Chat(answer, continue_final_message=True, add_generation_prompt=True)


def test_an_answer_that_the_template_does_not_write_cannot_be_continued(use):
    lm = use("{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="continue_final_message=False"):
        lm.encode(talk("s", "q", "answer"))


# -- what a template is told -------------------------------------------------------------------------------------------


def runs_again(lm, code, monkeypatch):
    """What the last line of some code gives, with this model in the place of a loaded one."""
    monkeypatch.setattr(lk, "load", lambda *_, **__: lm, raising=False)
    names = {}
    exec(code, names)
    return names


def test_arguments_of_the_template_reach_it_everywhere_and_code_repeats_them(use, monkeypatch):
    lm = use(QWEN_3)
    chat = lk.Chat(talk("s", "q"), enable_thinking=False)
    ids = lm.encode(chat)[0].tolist()
    assert lm.tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n")
    assert ids != lm.encode(list(chat))[0].tolist()
    assert [t.id for t in lm.tokens(chat)] == lm.run(chat).ids[0].tolist() == ids
    generation, score = lm.generate(chat, max_new_tokens=1), lk.score(lm, chat)
    assert [t.id for t in generation.prompt] == [t.id for t in score.prompt] == lm.tree(chat).ids[0].tolist() == ids
    again = runs_again(lm, generation.code(), monkeypatch)["generation"]
    assert [t.id for t in again.prompt] == ids
    assert [t.id for t in runs_again(lm, score.code(), monkeypatch)["score"].prompt] == ids
    lens = lk.logit_lens(lm, chat)
    assert [t.id for t in runs_again(lm, lens.code(), monkeypatch)["lens"].tokens] == ids
    tree = lm.tree(chat, max_new_tokens=1)
    back = lk.Tree.from_dict(lm, tree.to_dict())
    assert back.prompt == chat
    assert back.code() == tree.code()


def test_a_grid_on_chats_repeats_their_arguments_from_its_file(use, monkeypatch, tmp_path):
    lm = use(QWEN_3)
    clean, corrupt = (lk.Chat(talk("s", q), enable_thinking=False) for q in ("p", "q"))
    grid = lk.patch(lm, clean, corrupt, "a", "b", progress=False)
    grid.save(tmp_path / "grid.npz")
    again = runs_again(lm, lk.open_grid(tmp_path / "grid.npz").code(), monkeypatch)["grid"]
    assert again.recipe["clean_ids"] == grid.recipe["clean_ids"]
    assert again.clean == pytest.approx(grid.clean)
    swept = lk.sweep(lm, [(clean, corrupt, "a", "b")], store=tmp_path / "store", progress=False)
    assert lk.open_sweep(tmp_path / "store").pairs[0][0] == clean == swept.pairs[0][0]


def test_an_argument_that_the_template_does_not_know_is_refused(use):
    with pytest.raises(ValueError, match=r"no argument 'enable_thinkin'.*enable_thinking"):
        use(QWEN_3).encode(lk.Chat(talk("s", "q"), enable_thinkin=False))
    with pytest.raises(ValueError, match="not an argument of a chat template"):
        lk.Chat(talk("s"), tokenize=True)
    with pytest.raises(ValueError, match="JSON"):
        lk.Chat(talk("s"), tools=[print])


def on_day(monkeypatch, year, month, day):
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(year, month, day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def test_a_date_is_pinned_by_hand_and_by_what_repeats_a_result(use, monkeypatch):
    lm, chat = use(DATED), talk("s", "q")
    on_day(monkeypatch, 2026, 8, 1)
    with pytest.warns(UserWarning, match=r"today's date.*date='2026-08-01'"):
        first = shown(lm, chat)
    assert "Today is 1 August 2026, 100%<" in first
    pinned = lk.Chat(chat, date=datetime.date(2026, 8, 1))
    generation = lm.generate(chat, max_new_tokens=1)
    grid = lk.patch(lm, chat, talk("s", "r"), "a", "b", progress=False)
    on_day(monkeypatch, 2026, 8, 12)
    assert "12 August" in shown(lm, chat)
    assert shown(lm, pinned) == first
    for result, name in ((generation, "generation"), (grid, "grid")):
        again = runs_again(lm, result.code(), monkeypatch)[name]
        ids = again.recipe["clean_ids"] if name == "grid" else [t.id for t in again.prompt]
        assert lm.tokenizer.decode(ids) == first
    for view in (lk.SteerLab, lk.LensView, lk.AttentionView):
        on_day(monkeypatch, 2026, 8, 1)
        made = view(lm, chat, background=False)
        on_day(monkeypatch, 2026, 8, 12)
        assert shown(lm, made.prompt) == first
        assert "date='2026-08-01'" in made.code()
    with pytest.raises(ValueError, match="2025-07-26"):
        lk.Chat(chat, date="yesterday")


# -- several chats -----------------------------------------------------------------------------------------------------


def test_a_batch_of_chats_gives_what_each_gives_alone(use):
    lm = use(QWEN_3)
    chats = [talk("s", "q"), talk("system", "a longer one", "Sure"), lk.Chat(talk("s", "q"), enable_thinking=False)]
    both = lm.run([*chats, "plain text"], read=["resid_pre"])
    for row, chat in enumerate([*chats, "plain text"]):
        alone = lm.run(chat)
        assert both.mask[row].sum() == alone.ids.shape[1]
        assert torch.allclose(both.logits[row, both.mask[row]], alone.logits[0], atol=1e-5)
    for vector in (lk.steering_vector(lm, chats[:2], chats[1:], 0), lk.steering_vector(lm, chats[0], chats[1], 0)):
        assert vector.norm > 0
