"""Open models: whose licence it is, what fits, and how a conversation is written down."""

from __future__ import annotations

from typing import Any

from labkit.course.checks import Verdict, exercise
from labkit.language_model import LanguageModel
from labkit.models.catalog import ROOM, known

MODEL, GPU = "meta-llama/Llama-2-7b-hf", 24e9
TALK = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the capital of France?"},
]


def _tokens_that_fit() -> tuple[float, int]:
    """How many tokens of keys and values in 16 bits fit beside the 4-bit weights, and the bytes of each."""
    model = known(MODEL)
    width = model.config["hidden_size"] // model.config["num_attention_heads"]
    each = 2 * model.config["num_hidden_layers"] * model.config["num_key_value_heads"] * width * 2
    return (GPU - model.bytes[4] - ROOM) / each, each


@exercise("08.1")
def _two_licences(answer: Any, lm: LanguageModel) -> Verdict:
    model = known(str(answer))
    if model.family != "DeepSeek":
        return Verdict(False, f"{model.id} is of the family {model.family}. Look for one by DeepSeek.")
    if model.also is None:
        return Verdict(
            False, f"{model.id} has one licence, {model.licence}. Look for one that was made from another's."
        )
    return Verdict(
        True, f"{model.id} is under {model.licence}, and under the {model.also} licence of what it was made from."
    )


@exercise("08.2")
def _how_long_a_text(answer: Any, lm: LanguageModel) -> Verdict:
    tokens, each = _tokens_that_fit()
    given = float(answer)
    if abs(given / tokens - 1) < 0.1:
        return Verdict(True, f"About {tokens:,.0f}: {each / 1024:.0f} KiB for each token.")
    if abs(given / tokens / 2 - 1) < 0.15:
        return Verdict(False, "That is about twice as many. A token leaves a key and a value in every layer.")
    if given > 1.1 * tokens:
        return Verdict(False, "That is too many. The weights are there already, and 1.5 GB are kept for the rest.")
    return Verdict(False, "That is too few. In 16 bits a number takes 2 bytes; the weights are in 4 bits.")


@exercise("08.3")
def _written_by_hand(answer: Any, lm: LanguageModel) -> Verdict:
    if not isinstance(answer, str):
        raise ValueError("the answer must be a text, the whole prompt as the model sees it")
    yours, own = (lm.encode(prompt)[0].tolist() for prompt in (answer, TALK))
    if yours == own:
        return Verdict(True, f"The same {len(own)} tokens that the template writes.")
    same = next(
        (n for n, pair in enumerate(zip(yours, own, strict=False)) if pair[0] != pair[1]), min(len(yours), len(own))
    )
    there, wanted = (lm.tokenizer.decode(ids[same : same + 1]) or "nothing" for ids in (yours, own))
    return Verdict(
        False, f"The first {same} of {len(own)} tokens agree. Then yours has {there!r}, the template {wanted!r}."
    )
