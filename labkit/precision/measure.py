"""One model measured on a text, alone or compared with another precision of it that was measured before.

The models of a report are looked at one after the other and need not fit into memory together. What stays of the one
that the others are compared with is small: activations of a short stretch of text, projections of its weights, and, in
a temporary file, its logits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.metrics import metric_of
from labkit.activations.run import run
from labkit.activations.sites import layers_with
from labkit.engine.recorded_run import Unsupported
from labkit.generation.generate import generate
from labkit.lens.logit_lens import logit_lens
from labkit.models.weights import matrices_of
from labkit.patching.source_model import SIZES
from labkit.patching.spec import PairSpec
from labkit.text.encode import encode

if TYPE_CHECKING:
    from labkit.language_model import LanguageModel
    from labkit.text.types import Prompt

SITES = ("resid_post", "attn_out", "mlp_out", "q", "k", "v", "z")
LOOKED_AT = 128  # tokens of the text whose activations and patterns are compared
WRITTEN = 24  # tokens that are written to measure the speed
PROJECTIONS = 64


@dataclass(frozen=True)
class Asked:
    """What is measured: a text in windows of `context` tokens, and the clean prompts of pairs."""

    text: Prompt
    context: int
    pairs: Sequence[Sequence[Any]]

    def windows(self, lm: LanguageModel) -> list[torch.Tensor]:
        """The text as ids, in windows (1, context) that are read one by one; a single token at the end is left out."""
        parts = encode(lm, self.text, most=None).split(self.context, 1)
        return [part for part in parts if part.shape[1] > 1]


class Measured:
    """What a model does with a text.

    Attributes:
        sizes: layers, widths and heads: models that differ in them cannot be compared.
        ids: of each window.
        logprobs: of each token but the first of each window, natural logarithms, float64 (token,).
        likeliest: the likeliest token in the place of each of them (token,).
        kl: of the reference's distribution from this one there, nats, float64 (token,); without a reference None.
        differences: the logit of the answer minus that of the foil for each pair.
        activations: by (site, layer), float32 (token, ...); patterns (head, token, token).
        lens: the likeliest token after each layer (layer, token); None where there is no lens.
        weights: by (name, layer) a matrix under fixed random projections, float32 (PROJECTIONS, in).
        bytes: of its weights.
        tokens_per_second: while it writes, one token after the other.
    """

    def __init__(self, lm: LanguageModel, asked: Asked, reference: Measured | None) -> None:
        parts = asked.windows(lm)
        self.sizes = {name: int(getattr(lm, name)) for name in SIZES}
        self.ids = [part[0].tolist() for part in parts]
        self._logits: np.memmap[Any, Any] | None = None
        self._read(lm, parts, reference)
        looked = parts[0][:, :LOOKED_AT]
        self.activations = _activations(lm, looked)
        self.lens = _lens(lm, looked)
        self.weights = _projected(lm)
        self.differences = np.array([_difference(lm, pair) for pair in asked.pairs], np.float64)
        self.bytes = lm.memory().total
        self.tokens_per_second = _speed(lm, looked[:, :16])

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.logprobs.mean()))

    def check(self, lm: LanguageModel, asked: Asked) -> None:
        """Can a model be compared with this one?

        Raises:
            ValueError: it is another model, or has another tokenizer.
        """
        sizes = {name: (getattr(lm, name), n) for name, n in self.sizes.items()}
        if unlike := [f"{name} {a} and {b}" for name, (a, b) in sizes.items() if a != b]:
            raise ValueError(
                f"{lm.name} is another model than the reference, not another precision: {', '.join(unlike)}"
            )
        if self.ids != [part[0].tolist() for part in asked.windows(lm)]:
            raise ValueError(f"{lm.name} has another tokenizer than the reference: the text gives other tokens")

    def _read(self, lm: LanguageModel, parts: Sequence[torch.Tensor], reference: Measured | None) -> None:
        """Read the text, and compare each distribution with the reference's, or keep them to be compared with."""
        logprobs, likeliest, kl = [], [], []
        done, count = 0, sum(part.shape[1] - 1 for part in parts)
        for part, logits in zip(parts, _logits(lm, parts), strict=True):
            target = part[0, 1:].cpu()
            span = slice(done, done := done + len(target))
            own = logits.double().log_softmax(-1)
            logprobs.append(own.gather(1, target[:, None])[:, 0].numpy())
            likeliest.append(logits.argmax(-1).numpy())
            if reference is None:
                if self._logits is None:
                    shape = (count, logits.shape[1])
                    with tempfile.TemporaryFile() as file:  # it goes when the array does
                        self._logits = np.memmap(file, np.float32, "w+", shape=shape)
                self._logits[span] = logits.numpy()
            else:
                assert reference._logits is not None
                theirs = torch.from_numpy(reference._logits[span].copy()).double().log_softmax(-1)
                kl.append((theirs.exp() * (theirs - own)).sum(-1).numpy())
        self.logprobs, self.likeliest = np.concatenate(logprobs), np.concatenate(likeliest)
        self.kl = np.concatenate(kl) if kl else None


def _logits(lm: LanguageModel, parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The logits before each token but the first of each window, (token, vocab), float32 on the CPU.

    In the kernels that transformers uses: another way to round moves a perplexity in bfloat16 by half a percent.
    """
    for part in parts:
        with lm.busy(plain=True):
            logits = lm.hf(input_ids=part, use_cache=False).logits
        yield logits[0, :-1].float().cpu()


def _activations(lm: LanguageModel, ids: torch.Tensor) -> dict[tuple[str, int], torch.Tensor]:
    kinds = [kind for kind in (*SITES, "pattern") if layers_with(lm, kind)]
    seen = run(lm, ids, read=kinds, logits="none", to="cpu")
    return {(kind, layer): seen[f"{kind}.{layer}"][0].float() for kind in kinds for layer in layers_with(lm, kind)}


def _lens(lm: LanguageModel, ids: torch.Tensor) -> np.ndarray | None:
    try:
        return logit_lens(lm, ids, k=1).top_ids[..., 0]
    except (Unsupported, ValueError):
        return None


def _projected(lm: LanguageModel) -> dict[tuple[str, int], torch.Tensor]:
    """Every matrix of the layers under random projections of its outputs, the same in every model of these sizes.

    The norm of a difference of two matrices is that of the difference of their projections, within about 1 % (Johnson
    and Lindenstrauss 1984), so the matrices of two models need not be there at once.
    """
    found = {}
    for layer, block in enumerate(lm.anatomy.blocks):
        for name in matrices_of(block.module, lm.anatomy.adapted):
            weight = lm.weight(name, layer, dtype=torch.float32)
            weight = weight.reshape(-1, weight.shape[-1])
            draw = torch.Generator().manual_seed(len(weight))
            signs = torch.randint(2, (PROJECTIONS, len(weight)), generator=draw).float() * 2 - 1
            found[name, layer] = (signs.to(weight.device) @ weight).cpu()
    return found


def _difference(lm: LanguageModel, pair: Sequence[Any]) -> float:
    """The answer's logit minus the foil's after the clean prompt."""
    asked = PairSpec(*pair).prepared(lm)
    logits = run(lm, asked.ids["clean"], logits="last").logits[0, -1:].float()
    return float(metric_of(None, answer=asked.answer, foil=asked.foil, reference=logits[0]).of(logits)[0])


def _speed(lm: LanguageModel, ids: torch.Tensor) -> float:
    """Tokens per second while it continues a prompt, after a first time that is not counted."""
    generate(lm, ids, max_new_tokens=2)
    begun = time.perf_counter()
    written = generate(lm, ids, max_new_tokens=WRITTEN)
    return len(written.tokens) / (time.perf_counter() - begun)
