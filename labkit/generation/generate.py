"""Continuing a prompt, with the alternatives at every token, and with sites read and written meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from labkit.activations.hooks import Edit, Place
from labkit.activations.sites import Site
from labkit.elsewhere import where_the_model_is
from labkit.generation.access import Access, Written
from labkit.generation.loop import Draft, OnToken, extend_records
from labkit.generation.readings import Span
from labkit.generation.result import Generation
from labkit.generation.sampling import Sampling
from labkit.generation.token_table import Record
from labkit.models.handle import Model
from labkit.results.recipe import made_with
from labkit.text.encode import TooLong, encode
from labkit.text.prompts import asked, each_prompt
from labkit.text.types import Prompt


@where_the_model_is(streams="on_token", without=("store",), draws="seed")
@each_prompt
def generate(
    lm: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop_strings: Sequence[str] = (),
    truncate_left: bool = False,
    stop: threading.Event | None = None,
    on_token: OnToken | None = None,
    alternatives: int = 10,
    read: Sequence[str | Site] = (),
    read_at: Span = "written",
    write: Mapping[Any, Written] | None = None,
    write_at: Span | slice | Sequence[int] = "all",
    store: str | os.PathLike[str] | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        prompt: text, chat messages or token ids (1, seq); or a list of these, continued one after the other.
        max_new_tokens: the most tokens to write.
        temperature: 0 takes the likeliest token each time; 1 samples from the model's distribution.
        top_p, top_k, min_p: sample only from the likeliest tokens (1.0, 0 and 0.0: from all); see `Sampling`.
        repetition_penalty: above 1 makes what is in the text already less likely.
        seed: the same seed gives the same text, also when it is resumed midway; by default a new one is drawn, which
            `code()` shows. The global random state is left alone.
        stop_strings: stop once one of these has been written; it stays in the text.
        truncate_left: drop tokens at the beginning of a prompt that is too long, except BOS.
        stop: an event that, once set from any thread, ends generation within one token.
        on_token: called with every `GeneratedToken` as it comes, in this thread.
        alternatives: how many of the likeliest tokens to keep at each place.
        read: sites to keep while the model writes, such as `["resid_post.5", "pattern.3", "z.5.3"]`. The result has
            them as a run has, without its first axis, a row per token: `generation["resid_post.5"]` is (token,
            d_model), `generation["pattern.3"]` (n_heads, token, key), with zeros where a row has not as many keys as
            the last. A row is what passed where that token is, which is also what `lm.run` has at its position in
            prompt and text. For the last token the model makes one more pass.
        read_at: `written`: a row for each token of the text; `prompt`: for each of the prompt's; `all`: for both.
        write: for each site what to write there: a value, a function, or a steering vector, which is added. A value is
            broadcast to the site's shape with one row per position of `write_at`, the written ones up to
            `max_new_tokens`. A function takes the activation, (1, position, ...) or (1, n_heads, position, key), and if
            it has a second argument the step, and gives the new one. It is called for the prompt at once, in step 0,
            and for the n-th token written in step n; what it gives must depend on nothing else, as some models pass
            over a position more than once.
        write_at: the positions that are written, as in `read_at`; or a slice or a list of them, counted from the first
            token of the prompt: `slice(20, None)` writes from position 20 on. By default all. A function is called for
            each stretch of neighbouring positions of the prompt.
        store: a folder on disk in which to keep what is read, for long texts: each generation gets a folder of its
            own in it (safetensors). By default it is kept in memory, on the CPU.

    Returns:
        A `Generation`, or a list of them for several prompts. After an interrupt it holds what was written and read so
            far, with a warning; after an error that is the error's `generation`. A token that was the last when it was
            interrupted has not been passed over, so there may be one row less than tokens.

    Raises:
        ValueError: a bad prompt or setting, settings that contradict each other, or a prompt that leaves no room in the
            context (`labkit.text.tokens.TooLong`, which says by how many tokens); an unknown site, one that this
            architecture lacks, a position in a site, a value of the wrong shape, a `store` that is a file.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop_strings)
    begun = Begun(
        lm, prompt, sampling, truncate_left=truncate_left, alternatives=alternatives,
        read=read, read_at=read_at, write=write, write_at=write_at, store=store,
    )  # fmt: skip
    try:
        return begun.result(*extend_records(lm, [begun.draft], stop=stop, on_token=on_token)[0])
    except Exception as error:
        error.generation = begun.result("failed", 0.0, 0.0)  # type: ignore[attr-defined]
        written = len(begun.draft.record)
        error.add_note(f"{written} tokens were written before it; they are in this error's `generation`")
        raise


class Begun:
    """A generation that has not been written yet: everything checked, and its recipe.

    Arguments as in `generate`, and `edits` as in `Access`, of which the recipe says nothing.
    """

    def __init__(
        self,
        lm: Model,
        prompt: Prompt,
        sampling: Sampling,
        *,
        truncate_left: bool = False,
        alternatives: int = 10,
        read: Sequence[str | Site] = (),
        read_at: Span = "written",
        write: Mapping[Any, Written] | None = None,
        write_at: Span | slice | Sequence[int] = "all",
        store: str | os.PathLike[str] | None = None,
        edits: Mapping[Place, Edit] | None = None,
    ) -> None:
        self.lm, sampling = lm, sampling.drawn()
        record = Record(min(alternatives, lm.n_vocab))
        prompt, most = asked(lm, prompt), sampling.max_new_tokens
        ids = room_for(lm, prompt, most, truncate_left=truncate_left)
        self.recipe = {"prompt": prompt, "load": lm.code(), **sampling.given(), "made_with": made_with(lm)}
        if truncate_left:
            self.recipe["truncate_left"] = True
        access = None
        if read or write or edits or store is not None or read_at != "written" or write_at != "all":
            access = Access(
                lm, ids, most, read=read, read_at=read_at, write=write, write_at=write_at, store=store, edits=edits
            )
            self.recipe |= access.recipe()
        self.draft = Draft(ids, record, sampling, access)

    def result(self, finish: str, seconds: float, first_seconds: float) -> Generation:
        """What has been written."""
        lm, draft, readings = self.lm, self.draft, None
        if draft.access is not None:
            draft.access.ended(len(draft.record))
            readings = draft.access.readings
        tokens = lm.tokens(draft.ids)
        return Generation(tokens, draft.record, finish, seconds, first_seconds, self.recipe, lm.tokenizer, readings)


def room_for(lm: Model, prompt: Prompt, more: int, *, truncate_left: bool = False) -> torch.Tensor:
    """The ids (1, seq) of a prompt after which `more` tokens fit into the context.

    Raises:
        TooLong: they do not fit and nothing may be dropped, or `more` alone is too much.
    """
    ids = encode(lm, prompt, most=None)
    over = ids.shape[1] + more - lm.context if lm.context else 0
    if over <= 0:
        return ids
    bos = int(ids[0, 0] == lm.tokenizer.bos_token_id) if lm.tokenizer.bos_token_id is not None else 0
    if truncate_left and ids.shape[1] - over > bos:
        return torch.cat([ids[:, :bos], ids[:, bos + over :]], 1)
    raise TooLong(
        f"the prompt has {ids.shape[1]} tokens and max_new_tokens={more}: {over} more than the {lm.context} of "
        f"{lm.name}'s context; shorten either, or drop the beginning of the prompt with truncate_left=True",
        over,
    )
