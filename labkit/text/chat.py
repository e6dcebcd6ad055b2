"""Chat formats: from messages to the text that a model was trained on.

A tokenizer's own template decides. Three families whose files often lack one are built in: Llama 2 chat (Touvron et al.
2023), DeepSeek V2, V3 and R1 (DeepSeek-AI 2024, 2025) and Gemma (Gemma Team 2024). `Chat` is a prompt that also has
settings: how its last message ends, and arguments of the template.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from inspect import signature
from typing import Any, overload

from labkit.text.types import TextModel
from labkit.text.warn import first_time

ANSWERS = ("assistant", "model")
"""The roles of the model's own messages."""

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

# Gemma has no system turn: its text opens the user's first turn. The model's turns are those of `model`.
GEMMA = """\
{{- bos_token -}}
{%- set system = messages[0].content.strip() if messages[0].role == 'system' else none -%}
{%- for turn in (messages[1:] if system is not none else messages) -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('user and assistant take turns, the user first') }}
{%- endif -%}
{{ '<start_of_turn>' ~ ('user' if turn.role == 'user' else 'model') ~ '\\n' -}}
{%- if loop.first and system is not none -%}{{ system ~ '\\n\\n' }}{%- endif -%}
{{ turn.content.strip() ~ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# Precedes a template that writes the date, replacing the function that reads the clock.
_DATED = (
    "{% macro strftime_now(format) %}{% set at = namespace(code='') %}{% for c in format %}"
    "{% if not at.code %}{% if c == '%' %}{% set at.code = c %}{% else %}{{ c }}{% endif %}"
    "{% elif c in '-_^#EO' %}{% set at.code = at.code ~ c %}"
    "{% else %}{{ labkit_date[at.code ~ c] }}{% set at.code = '' %}{% endif %}{% endfor %}{% endmacro %}\n"
)
_NOT_TOLD = {
    "messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token", "raise_exception",
    "strftime_now", "loop", "thinks",
}  # fmt: skip


class Chat(Sequence[Mapping[str, Any]]):
    """A prompt of chat messages, with how the last of them ends and arguments of the template.

    A plain list of messages is a prompt too. There a last message of the assistant stays open, so that the model
    continues it, and after any other a new turn of the assistant is opened.

    Args:
        messages: `{"role": ..., "content": ...}` each; another `Chat` passes on its settings too.
        continue_final_message: leave the last message open (True) or close it (False).
        add_generation_prompt: open a new turn of the assistant at the end (True) or not (False).
        date: the date for a template that writes today's: a date, or text such as "2025-07-26".
        template_arguments: other arguments of the model's template, such as `enable_thinking=False`; JSON values.

    Raises:
        ValueError: no messages, one without role or content, contradictory settings, or a bad date.
    """

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        continue_final_message: bool | None = None,
        add_generation_prompt: bool | None = None,
        date: str | datetime.date | None = None,
        **template_arguments: Any,
    ) -> None:
        from transformers import PreTrainedTokenizerBase

        wrong: list[Any] = [m for m in messages if not isinstance(m, Mapping) or not {"role", "content"} <= set(m)]
        if wrong or not messages:
            raise ValueError(f"a message is {{'role': ..., 'content': ...}}; got {(wrong or [messages])[0]!r:.80}")
        taken = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"tools", "documents"}
        if not_for_templates := sorted({*template_arguments} & {*taken, "messages"}):
            raise ValueError(f"{not_for_templates[0]} is not an argument of a chat template")
        given = {
            "continue_final_message": continue_final_message,
            "add_generation_prompt": add_generation_prompt,
            "date": None if date is None else _as_text(date),
            **copy.deepcopy(template_arguments),
        }
        given = {name: value for name, value in given.items() if value is not None}
        try:
            json.dumps([given, list(map(dict, messages))])
        except TypeError as error:
            raise ValueError(f"messages and template arguments must be valid JSON: {error}") from None
        self.messages = tuple(copy.deepcopy(dict(message)) for message in messages)
        self.options: dict[str, Any] = {**(messages.options if isinstance(messages, Chat) else {}), **given}
        if self.options.get("continue_final_message") and self.options.get("add_generation_prompt"):
            raise ValueError("the last message is continued or a new turn is opened, not both; choose one")

    @property
    def is_open(self) -> bool:
        """Is the last message continued?"""
        usual = self.messages[-1]["role"] in ANSWERS and not self.options.get("add_generation_prompt")
        return bool(self.options.get("continue_final_message", usual))

    @property
    def opens_turn(self) -> bool:
        """Is a new turn of the assistant opened at the end?"""
        usual = not self.is_open and self.messages[-1]["role"] not in ANSWERS
        return bool(self.options.get("add_generation_prompt", usual))

    def to_dict(self) -> dict[str, Any]:
        """Messages and settings, for JSON."""
        return {"chat": copy.deepcopy(list(self.messages)), **copy.deepcopy(self.options)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Chat:
        """The chat that `to_dict` gave."""
        return cls(saved["chat"], **{name: value for name, value in saved.items() if name != "chat"})

    @overload
    def __getitem__(self, at: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, at: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        return self.messages[at]

    def __len__(self) -> int:
        return len(self.messages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chat) and (self.messages, self.options) == (other.messages, other.options)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"lk.Chat({list(self.messages)!r}{options})"


def is_chat(prompt: Any) -> bool:
    """Is this a chat: a `Chat`, or a list of messages?"""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(m, Mapping) for m in prompt)


def template_of(lm: TextModel) -> str | None:
    """The chat template of a model: its tokenizer's own, or its family's; None for a base model."""
    if own := lm.tokenizer.chat_template:
        return own if isinstance(own, str) else own.get("default")
    if re.search(r"llama-?2.*chat", str(lm.name), re.IGNORECASE):
        return LLAMA_2
    for template, marks in (
        (DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>")),
        (GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    ):
        if all(_knows(lm, mark) for mark in marks):
            return template
    return None


def render(lm: TextModel, prompt: Sequence[Mapping[str, Any]]) -> str:
    """The text that a model sees for a chat, up to where it answers or continues.

    Raises:
        ValueError: the model has no chat template, or its template rejects these messages or settings.
    """
    return Writer(lm, prompt).text


def dated(lm: TextModel, prompt: Sequence[Mapping[str, Any]]) -> Chat:
    """A chat whose tokens are the same tomorrow: with today's date pinned if the template writes it."""
    chat = prompt if isinstance(prompt, Chat) else Chat(prompt)
    if "date" in chat.options or "strftime_now" not in (template_of(lm) or ""):
        return chat
    # according to the template's own clock
    today = lm.tokenizer.apply_chat_template(
        list(chat), chat_template="{{ strftime_now('%Y-%m-%d') }}", tokenize=False, add_generation_prompt=False
    )
    first_time(
        lm.tokenizer,
        f"the chat template of {lm.name} writes today's date, so the same messages give other tokens tomorrow; pin it "
        f"with lk.Chat(messages, date={str(today)!r})",
        about="today",
    )
    return Chat(chat, date=str(today))


class Writer:
    """A model's chat template with the settings of a chat.

    Attributes:
        chat: the chat, with its date.
        text: what the model sees.
        begins: where the last message begins in the text, if it is open; None where it is not.
    """

    def __init__(self, lm: TextModel, prompt: Sequence[Mapping[str, Any]]) -> None:
        template = template_of(lm)
        if template is None:
            raise ValueError(
                f"{lm.name} has no chat template; give plain text instead of messages, or set the one it was trained "
                "with: lm.tokenizer.chat_template = '...'"
            )
        self.lm, self.chat = lm, dated(lm, prompt)
        settings = ("continue_final_message", "add_generation_prompt", "date")
        told = {name: value for name, value in self.chat.options.items() if name not in settings}
        for name in told:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                known = ", ".join(sorted(_variables(template))) or "none"
                raise ValueError(
                    f"the chat template of {lm.name} has no argument {name!r}, so it would have no effect; it has: "
                    f"{known}"
                )
        if template is DEEPSEEK:
            told["thinks"] = _knows(lm, "<think>")
        if "date" in self.chat.options and "strftime_now" in template:
            template, told = _DATED + template, {**told, "labkit_date": _codes(self.chat.options["date"])}
        self._template, self._told = template, told
        everything = json.dumps([template, self.chat.to_dict()], ensure_ascii=False)
        self._edge = next(chr(n) for n in range(0xE000, 0xF8FF) if chr(n) not in everything)
        self.text, self.begins = self._written(self.chat.messages)

    def mark(self, number: int = 0) -> str:
        """Text that stands nowhere in the template and the messages, another one for each number."""
        return f"{self._edge}{number}{self._edge}"

    def write(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """What the model would see if these were the messages. Raises what `render` raises."""
        return self._written(messages)[0]

    def _written(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, int | None]:
        return self._open(messages) if self.chat.is_open else (self._whole(messages, self.chat.opens_turn), None)

    def _whole(self, messages: Sequence[Mapping[str, Any]], opens_turn: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            text = self.lm.tokenizer.apply_chat_template(
                list(map(dict, messages)),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=opens_turn,
                **self._told,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template of {self.lm.name} rejects these messages: {error}") from error
        return str(text)

    def _open(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
        """The text up to where the last message continues, and where that message begins in it.

        A mark at the message's end shows where the template would write on. Text that the template strips from a
        finished message must not be stripped from one that continues: then the message stands as given, after what the
        template writes before it.
        """
        *before, last = messages
        said = text_in(last)

        def with_last(content: str) -> str:
            return self._whole([*before, with_text(last, content)])

        def until_the_end_of(content: str) -> str:
            whole = with_last(content + self.mark())
            if self.mark() not in whole:
                raise ValueError(
                    f"the chat template of {self.lm.name} does not write the last message, so it cannot be continued; "
                    "lk.Chat(messages, continue_final_message=False) closes it"
                )
            return whole[: whole.rindex(self.mark())]

        if said is None:
            raise ValueError("the last message has no text to continue")
        bare = said.rstrip()
        stripped = bare != said and with_last(bare + self.mark()) == with_last(bare + self.mark() + said[len(bare) :])
        text = until_the_end_of(bare if stripped else said)
        for kept in (said, said.rstrip(), said.lstrip(), said.strip()):
            if text.endswith(kept):
                break
        else:
            kept = said
            text = until_the_end_of("") + said
        begins = len(text) - len(kept)
        if kept.lstrip().startswith("<think>"):  # its own thoughts take the place of empty ones
            head = re.sub(r"<think>\s*</think>\s*\Z", "", text[:begins])
            text, begins = head + kept, len(head)
        return text, begins


def text_in(message: Mapping[str, Any]) -> str | None:
    """The text of a message, whose content is text or a list of parts with one text; None if it has several or none."""
    content = message["content"]
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content or () if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return texts[0] if len(texts) == 1 else None


def with_text(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A message that says something else."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": text}
    return {**message, "content": [{**part, "text": text} if "text" in part else part for part in content]}


def _knows(lm: TextModel, mark: str) -> bool:
    """Is this a token of the model's?"""
    id = lm.tokenizer.convert_tokens_to_ids(mark)
    return isinstance(id, int) and lm.tokenizer.convert_ids_to_tokens(id) == mark


@lru_cache(maxsize=64)
def _variables(template: str) -> frozenset[str]:
    """The arguments of a template, as far as they can be read."""
    import jinja2
    from jinja2.meta import find_undeclared_variables

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template))
    except jinja2.TemplateError:
        return frozenset()
    return frozenset(find_undeclared_variables(parsed) - _NOT_TOLD - set(environment.globals))


def _as_text(date: str | datetime.date) -> str:
    if isinstance(date, datetime.date):
        return date.isoformat()
    try:
        datetime.datetime.fromisoformat(date)
    except (TypeError, ValueError):
        raise ValueError(f"date must be a datetime.date or text such as '2025-07-26'; got {date!r}") from None
    return date


@lru_cache(maxsize=8)
def _codes(date: str) -> dict[str, str]:
    """What each code of `strftime`, with and without a flag, is on this date."""
    when = datetime.datetime.fromisoformat(date)
    found = {}
    for letter in "aAbBcdDeFGgHIjmMnprRSstTuUVwWxXyYzZfhCk%l":
        for flag in ("", "-", "_", "^", "#", "E", "O"):
            try:
                found[f"%{flag}{letter}"] = when.strftime(f"%{flag}{letter}")
            except ValueError:  # not on this system
                found[f"%{flag}{letter}"] = when.strftime(f"%{letter}") if flag else ""
    return found
