"""Checkpoints to scan, written byte by byte: clean ones of several makes, and hostile ones of many kinds.

None needs torch. What a hostile one would do if it were run is to create a file named by `TOUCHED`, which no test may
ever find.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOUCHED = "it-was-run"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1}
TEMPLATE = "{% for message in messages %}{{ message.role ~ ': ' ~ message['content'] | trim }}\n{% endfor %}"
APACHE = "Apache License\nVersion 2.0, January 2004\nhttp://www.apache.org/licenses/\n"
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}

Make = Callable[[Path], Any]


def header(tensors: dict[str, tuple[str, list[int]]], begin: int = 0) -> dict[str, Any]:
    """A true header for tensors of these dtypes and shapes."""
    entries = {}
    for name, (dtype, shape) in tensors.items():
        end = begin + SIZES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return entries


def safetensors(
    file: Path, entries: dict[str, Any] | bytes, room: int | None = None, length: int | None = None
) -> None:
    """A safetensors file with this header, true or not, and `room` bytes behind it."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    if room is None and isinstance(entries, dict):
        room = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(room or 0))


def made(make: Make, folder: Path) -> Path:
    """The checkpoint that `make` makes in a folder: the folder, or one in it."""
    found = make(folder)
    return found if isinstance(found, Path) and found.is_dir() else folder


WEIGHTS = {"model.embed_tokens.weight": ("BF16", [16, 8]), "model.norm.weight": ("F32", [8])}


def plain(folder: Path, *, template: str | None = TEMPLATE, weights: bool = True, **config: Any) -> Path:
    """A small clean checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}}}))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | ({"chat_template": template} if template else {}))
    )
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "LICENSE").write_text(APACHE)
    if weights:
        safetensors(folder / "model.safetensors", {"__metadata__": {"format": "pt"}, **header(WEIGHTS)})
    return folder


def sharded(folder: Path) -> Path:
    """The same in two files with an index."""
    plain(folder, weights=False)
    places = {}
    for number, (name, tensor) in enumerate(WEIGHTS.items(), 1):
        places[name] = f"model-{number:05d}-of-{len(WEIGHTS):05d}.safetensors"
        safetensors(folder / places[name], header({name: tensor}))
    index = {"metadata": {"total_size": 288}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def reindex(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    """Change the weight_map of an index."""
    file = sharded(folder) / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def hub_cache(folder: Path) -> Path:
    """A snapshot as huggingface_hub keeps it: every file a link to a blob two folders up."""
    clean, snapshot = plain(folder / "made"), folder / "models--a--b" / "snapshots" / "c0ffee"
    (blobs := folder / "models--a--b" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(clean.iterdir())):
        file.rename(blobs / f"{number:040d}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:040d}"))
    return snapshot


# -- pickles ---------------------------------------------------------------------------------------------------------


class Runs:
    """Pickled, a call of this function with these arguments."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def touching(folder: Path) -> Runs:
    return Runs(os.system, f"touch '{folder / TOUCHED}'")


def storage() -> bytes:
    """What torch pickles for one tensor, protocol 2; written out, so that torch is not needed."""
    return (
        b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01X\x01\x00\x00\x00wq\x02ctorch._utils\n_rebuild_tensor_v2\nq\x03"
        b"((X\x07\x00\x00\x00storageq\x04ctorch\nFloatStorage\nq\x05X\x01\x00\x00\x000q\x06X\x03\x00\x00\x00cpuq\x07K\x02"
        b"tq\x08QK\x00K\x02\x85q\x09K\x01\x85q\x0a\x89ccollections\nOrderedDict\nq\x0b)Rq\x0ctq\x0dRq\x0es."
    )


def torch_zip(file: Path, data: bytes, **more: bytes) -> None:
    """A file as `torch.save` writes it, around a pickle."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(8))
        archive.writestr("archive/version", "3\n")
        for name, held in more.items():
            archive.writestr(name, held)


def torch_legacy(file: Path, data: bytes) -> None:
    """A file of torch before 1.6: five pickles in a row, then numbers."""
    pickles = [pickle.dumps(held, 2) for held in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    file.write_bytes(b"".join([*pickles, data, pickle.dumps(["0"], 2)]) + struct.pack("<Q2f", 2, 1.5, -2.5))


# -- GGUF ------------------------------------------------------------------------------------------------------------


def text(held: str) -> bytes:
    return struct.pack("<Q", len(held.encode())) + held.encode()


def gguf(
    file: Path,
    values: dict[str, Any] | None = None,
    tensors: dict[str, tuple[list[int], int, int]] | None = None,
    *,
    counts: tuple[int, int] | None = None,
    room: int = 128,
    after: bytes = b"",
) -> None:
    """A GGUF file of version 3 with these values, tensors (shape, type, place) and `room` bytes behind the header."""
    values = {"general.architecture": "llama", "llama.block_count": 1} if values is None else values
    tensors = {"token_embd.weight": ([4, 8], 0, 0)} if tensors is None else tensors
    body = b""
    for key, value in values.items():
        body += text(key)
        if isinstance(value, bytes):
            body += value
        elif isinstance(value, str):
            body += struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            body += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        else:
            body += struct.pack("<IQ", 10, value)
    for name, (shape, kind, place) in tensors.items():
        body += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)
    counts = counts or (len(tensors), len(values))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + body + after
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(head + bytes(-len(head) % 32) + bytes(room))


# -- clean -----------------------------------------------------------------------------------------------------------

LLAMA_3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val + '"' }}{%- if not loop.last %}{{- ", " }}{%- endif %}
        {%- endfor %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' + tool_call.arguments | tojson + "}<|eot_id|>" }}
    {%- elif message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
    {%- else %}{{- message.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
QWEN_3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nFunction signatures are within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n\\n<tool_call>\\n{\\"name\\": <function-name>}\\n</tool_call><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not
        (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- macro shown(value, depth=0) %}
    {%- if value is mapping %}
        {%- for key in value | dictsort %}{{ shown(key[1], depth + 1) }}{%- endfor %}
    {%- else %}{{- '%s' | format(value) ~ ('  ' * depth) }}{%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- generation %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endgeneration %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
            {%- for key, value in tool_call.arguments.items() %}
                {{- ('\\n<parameter=' ~ key ~ '>\\n') ~ shown(value) ~ '\\n</parameter>' }}
                {%- if loop.index > 50 %}{%- break %}{%- endif %}
            {%- endfor %}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- content | replace('\\r', '') }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- set joined = messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('\\n\\n') %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""


def _adapter(folder: Path) -> None:
    safetensors(folder / "adapter_model.safetensors", header({"base_model.model.q.lora_A.weight": ("F32", [4, 8])}))
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/name", "auto_mapping": None, "r": 4})
    )
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: owner/name\n---\n")


def _sentencepiece(folder: Path) -> None:
    plain(folder, template=None)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02" * 20)


def _slow_tokenizer(folder: Path) -> None:
    plain(folder, template=QWEN_3)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"__class__": 0, "a": 1, "__globals__": 2}')
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 3}')


def _many_templates(folder: Path) -> None:
    plain(folder, template=None)
    (folder / "chat_template.jinja").write_text(LLAMA_3)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(QWEN_3)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def _training_leftovers(folder: Path) -> None:
    sharded(folder)
    torch_zip(folder / "pytorch_model.bin", storage())
    np.savez(folder / "history.npz", loss=np.arange(4.0))
    (folder / "trainer_state.json").write_text('{"best_metric": NaN, "log_history": []}')
    (folder / "figure.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))


CLEAN: dict[str, Make] = {
    "one file": plain,
    "sharded": sharded,
    "hub cache": hub_cache,
    "an adapter": _adapter,
    "sentencepiece": _sentencepiece,
    "a slow tokenizer": _slow_tokenizer,
    "several templates": _many_templates,
    "Llama 3's way to chat": lambda folder: plain(folder, template=LLAMA_3),
    "Qwen 3's way to chat": lambda folder: plain(folder, template=QWEN_3),
    "GGUF": lambda folder: gguf(
        folder / "model.gguf",
        {
            "general.architecture": "llama",
            "general.license": "apache-2.0",
            "tokenizer.chat_template": LLAMA_3,
            "tokenizer.ggml.tokens": ["a", "__class__", "b"] * 50,
            "llama.block_count": 1,
        },
    ),
    "tensors of plain pickles beside safetensors": _training_leftovers,
    "an old file of torch beside safetensors": lambda folder: torch_legacy(
        plain(folder) / "pytorch_model.bin", storage()
    ),
    "no tensors with numbers": lambda folder: safetensors(
        plain(folder) / "model.safetensors", header({"a": ("F32", [0, 4]), "b": ("F32", [])})
    ),
}
"""By name; each is made in the folder it is given. `hub_cache` returns another one, which is to be scanned."""
