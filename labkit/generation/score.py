"""How probable a model finds a text that is already there: one forward pass, and where the surprises are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from labkit.activations.run import run
from labkit.elsewhere import where_the_model_is
from labkit.generation.generate import room_for
from labkit.generation.token_table import Distribution, GeneratedToken, Record, Transcript
from labkit.models.handle import Model
from labkit.text.as_code import LM, as_code
from labkit.text.prompts import asked, each_prompt
from labkit.text.tokens import Token, bytes_of
from labkit.text.types import Prompt


@dataclass
class Score(Transcript):
    """A text as a model predicts it, token by token.

    The first token has nothing before it: it has no probability and no rank (NaN, None), and is not counted.

    Attributes:
        prompt: the tokens as the model sees them.
        record: probability, entropy, rank and the likeliest tokens at each place, (n,) rows.
    """

    prompt: list[Token]
    record: Record
    recipe: dict[str, Any] = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model was choosing, on average: exp(-logprob / tokens)."""
        count = len(self.record) - 1
        return math.exp(-self.logprob / count) if count else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Surprisal for each byte of the text after the first token: comparable between tokenizers."""
        size = len(b"".join(bytes_of(self.tokenizer, self.record.ids[1:])))
        return -self.logprob / math.log(2) / size if size else math.nan

    def surprises(self, count: int = 5) -> list[tuple[int, GeneratedToken]]:
        """The (position, token) that the model expected least, the least expected first."""
        bits = np.nan_to_num(self.record.measure("surprisal"), nan=-1.0)
        places = np.argsort(-bits, kind="stable")[:count]
        return [(int(place), self.tokens[place]) for place in places if bits[place] >= 0]

    def code(self) -> str:
        """The Python that scores the text again."""
        return as_code(self.recipe["load"], "score = lk.score", LM, self.recipe["prompt"])

    def __repr__(self) -> str:
        return f"Score({len(self.record)} tokens, logprob={self.logprob:.1f}, perplexity={self.perplexity:.2f})"


@where_the_model_is(small=True)
@each_prompt
def score(lm: Model, text: Prompt, *, alternatives: int = 10, truncate_left: bool = False) -> Score:
    """How probable the model finds a text, token by token.

    Args:
        text: text, chat messages or token ids (1, seq); or a list of these, scored one after the other.
        alternatives: how many of the likeliest tokens to keep at each place.
        truncate_left: drop tokens at the beginning of a text that is too long for the context, except BOS.

    Returns:
        A `Score`, or a list of them for several texts. `score.logprob` is the sum over its tokens.

    Raises:
        ValueError: the text is empty, a single token, or longer than the context.
    """
    record = Record(min(alternatives, lm.n_vocab))
    text = asked(lm, text)
    ids = room_for(lm, text, 0, truncate_left=truncate_left)
    if ids.shape[1] < 2:
        raise ValueError("the text is a single token with nothing before it; give at least two tokens")
    logits = run(lm, ids).logits[0]  # (seq, vocab)
    exact = torch.float32 if lm.device.type == "mps" else torch.float64  # so that rounding does not add up over a text
    nothing = np.zeros(record.alternatives, np.int32), np.zeros(record.alternatives, np.float16)
    tokens = ids[0].tolist()
    record.append((tokens[0], np.nan, np.nan, 0, *nothing))  # rank 0 stands for none
    for place, id in enumerate(tokens[1:]):
        record.append(Distribution(logits[place].to(exact), record.alternatives).row(id))
    return Score(lm.tokens(ids), record, {"prompt": text, "load": lm.code()}, lm.tokenizer)
