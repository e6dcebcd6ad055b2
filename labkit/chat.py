"""Chat formats: from messages to the text that a model was trained on.

A tokenizer's own template decides. Two families are known besides, as their files often come without one: Llama 2 chat
(Touvron et al. 2023) and DeepSeek V2, V3 and R1 (DeepSeek-AI 2024, 2025).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel

# The system prompt is a part of the first user turn; every turn but the first has a BOS of its own.
LLAMA_2 = """\
{%- set system = messages[0].content.strip() if messages[0].role == 'system' else none -%}
{%- set turns = messages[1:] if system is not none else messages -%}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('user and assistant take turns, the user first') }}
{%- endif -%}
{%- if turn.role == 'user' -%}
{{ bos_token ~ '[INST] ' -}}
{%- if loop.first and system is not none -%}{{ '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' }}{%- endif -%}
{{ turn.content.strip() ~ ' [/INST]' }}
{%- else -%}
{{ ' ' ~ turn.content.strip() ~ ' ' ~ eos_token }}
{%- endif -%}
{%- endfor -%}
"""

# What an earlier turn thought is left out, as its makers advise; a model that thinks begins its turn with <think>.
DEEPSEEK = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ messages[0].content }}{%- endif -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{{ '<｜User｜>' ~ turn.content }}{%- endif -%}
{%- if turn.role == 'assistant' -%}
{{ '<｜Assistant｜>' ~ turn.content.split('</think>')[-1] ~ '<｜end▁of▁sentence｜>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜>' ~ ('<think>\\n' if thinks else '') }}{%- endif -%}
"""


def template_of(lm: LanguageModel) -> str | None:
    """The chat template of a model: its tokenizer's own, or its family's; None for a base model."""
    if lm.tokenizer.chat_template:
        own = lm.tokenizer.chat_template
        return own if isinstance(own, str) else own.get("default")
    if re.search(r"llama-?2.*chat", str(lm.name), re.IGNORECASE):
        return LLAMA_2
    vocabulary = lm.tokenizer.get_vocab()
    return DEEPSEEK if {"<｜User｜>", "<｜Assistant｜>"} <= set(vocabulary) else None


def render(lm: LanguageModel, messages: Sequence[Mapping[str, str]]) -> str:
    """The text that a model sees for a list of messages, up to where it answers.

    Raises:
        ValueError: the model has no chat template, or its template does not take these messages; says which.
    """
    template = template_of(lm)
    if template is None:
        raise ValueError(f"{lm.name} has no chat template; give plain text instead of messages")
    if wrong := [m for m in messages if not {"role", "content"} <= set(m)]:
        raise ValueError(f"a message is {{'role': ..., 'content': ...}}; got {wrong[0]!r:.80}")
    from jinja2 import TemplateError

    try:
        text = lm.tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            thinks="<think>" in lm.tokenizer.get_vocab(),
        )
    except TemplateError as error:
        raise ValueError(f"the chat template of {lm.name} does not take these messages: {error}") from error
    return str(text)
