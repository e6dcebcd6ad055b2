"""Open models: relatives under different licences, what a long text costs, and another family's chat format."""

from __future__ import annotations

from typing import Any

from labkit.course.checks import Verdict, exercise
from labkit.language_model import LanguageModel
from labkit.models.catalog import OpenModel, known
from labkit.models.per_token import cache_bytes, has_windows
from labkit.text.chat import LLAMA_2

LEAST = 6  # billions of parameters
TOKENS = 100_000
ROOM = 24e9  # bytes of a GPU's memory, of which 5 % are left free, as the catalog does
CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."})


def _alike(one: OpenModel, other: OpenModel) -> bool:
    return (one.config["model_type"], one.parameters) == (other.config["model_type"], other.parameters)


def _licence(model: OpenModel) -> str:
    return model.licence + (f", and {model.also}" if model.also else "")


@exercise("08.1", 'two ids, such as ("maker/one", "maker/other")')
def _relatives_under_two_licences(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        raise ValueError('the answer must be two ids of lk.catalog(), such as ("maker/one", "maker/other")')
    one, other = (known(str(name)) for name in answer)
    if one.id == other.id:
        return Verdict(False, "That is the same model twice.")
    if not _alike(one, other):
        sizes = f"{one.parameters:.4g} and {other.parameters:.4g} billion parameters"
        return Verdict(
            False,
            f"They are not built alike: {one.config['model_type']} and {other.config['model_type']}, with {sizes}.",
        )
    if _licence(one) == _licence(other):
        return Verdict(False, f"They are built alike, and both are under {_licence(one)}. Look for two licences.")
    return Verdict(
        True,
        f"Both are {one.parameters:.4g} billion parameters in the same places. {one.id} is under {_licence(one)}, "
        f"{other.id} under {_licence(other)}.",
    )


@exercise("08.2", 'the id of a model, such as "maker/model"')
def _a_long_text_on_one_gpu(answer: Any, lm: LanguageModel) -> Verdict:
    model = known(str(answer))
    if model.parameters < LEAST:
        return Verdict(False, f"{model.id} has {model.parameters:.3g} billion parameters. Look for at least {LEAST}.")
    if model.context < TOKENS:
        return Verdict(False, f"{model.id} was made for texts of {model.context:,} tokens. Look for a longer context.")
    weights, cache = model.bytes[4], cache_bytes(model.config, TOKENS)
    said = (
        f"{weights / 1e9:.1f} GB of weights in 4 bits and {cache / 1e9:.1f} GB of keys and values: "
        f"{(weights + cache) / 1e9:.1f} GB."
    )
    if weights + cache <= 0.95 * ROOM:
        return Verdict(True, said)
    if weights > 0.95 * ROOM:
        return Verdict(False, said + " The weights alone do not fit into 24 GB.")
    if has_windows(model.config):
        return Verdict(
            False,
            said
            + " That counts all tokens in all layers. Some of its layers keep only the last ones, but how many the "
            "catalog does not say, so this cannot be decided. Look for another.",
        )
    return Verdict(
        False, said + f" It is the cache that does not fit: {cache / TOKENS / 1000:.0f} kB per token. Look for less."
    )


@exercise("08.3", "a text with the marks of Llama 2 in it")
def _by_hand(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, str):
        raise ValueError("the answer must be a text, with the marks of Llama 2 in it")
    right = lm.tokenizer.apply_chat_template(
        list(CHAT), chat_template=LLAMA_2, tokenize=False, bos_token="<s>", eos_token="</s>"
    )
    yours = answer.removeprefix("<s>").strip()
    wanted = str(right).removeprefix("<s>").strip()
    if yours == wanted:
        return Verdict(True, "That is what Llama 2 chat was trained to answer, character for character.")
    alike = (a == b for a, b in zip(yours + "\0", wanted, strict=False))
    begin = next((n for n, same in enumerate(alike) if not same), len(wanted))
    if begin == len(wanted):
        return Verdict(False, f"There is too much after {wanted[-7:]!r}: {yours[begin:]!r}. There the model answers.")
    after = f"After {yours[max(0, begin - 12) : begin]!r}" if begin else "At the beginning"
    found = repr(yours[begin : begin + 8]) if begin < len(yours) else "the end"
    return Verdict(False, f"{after} Llama 2 expects {wanted[begin : begin + 8]!r} and finds {found}.")
