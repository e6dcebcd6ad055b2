"""What one head or neuron writes to the logits directly, quickly, for tools that ask again and again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from labkit.activations.sites import absent
from labkit.elsewhere import where_the_model_is
from labkit.features.head_weights import HeadWeights, Unembedding
from labkit.language_model import LanguageModel
from labkit.lens.direct_attribution import factors_on_the_way
from labkit.models.weights import weight_of
from labkit.text.as_code import LM, as_code
from labkit.text.tokens import describe
from labkit.text.types import Prompt

TOP = 8


@dataclass(frozen=True)
class Writes:
    """The tokens for which, and against which, a head or a neuron writes.

    Attributes:
        title: what is shown.
        tokens: as displayed: those that are promoted most, then those that are suppressed most, the least first.
        logits: of each, for a last residual stream of root mean square 1.
        code: the Python that gives the same numbers; "" where no one call does.
    """

    title: str
    tokens: tuple[str, ...]
    logits: tuple[float, ...]
    code: str = ""


class Writer:
    """The heads and neurons of one model; the end of the model is looked at once."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    @cached_property
    def _weights(self) -> HeadWeights:
        return HeadWeights(self.lm)

    @cached_property
    def _to_logits(self) -> Unembedding:
        return Unembedding(self.lm, self._weights.readout)

    @where_the_model_is(small=True)
    def head(self, layer: int, head: int, prompt: Prompt, position: int, *, top: int = TOP) -> Writes:
        """What a head writes when it looks at a token of a text, as `lk.head_circuit` has it.

        Raises:
            ValueError: its layer's heads have no weights of their own.
        """
        output = self._weights.output(layer)[head]  # (d_head, d_model)
        values = self._weights.values(layer, self._weights.streams(layer, prompt, [position]))[0]  # (kv_head, d_head)
        written = values[self._weights.shared(layer, head, len(values))] @ output
        asked = {"prompt": prompt, "positions": [position]}
        code = as_code(self.lm.code(), "circuit = lk.head_circuit", LM, f"{layer}.{head}", **asked)
        token = self.lm.tokens(prompt)[position]
        return self._named(
            f"Head {layer}.{head}, looking at {token.display}, writes for and against", written, top, code
        )

    @where_the_model_is(small=True)
    def neuron(self, layer: int, neuron: int, *, top: int = TOP) -> Writes:
        """What a neuron writes per unit of its activation.

        Raises:
            ValueError: the layer's neurons go through no one projection.
        """
        lm, runner = self.lm, self._weights.runner
        if (why := absent(lm, "mlp_act", layer)) is not None:
            raise ValueError(f"layer {layer} of {lm.name} has no neurons to read: {why}")
        with lm.busy():
            written = weight_of(lm.anatomy.blocks[layer].down_projection, dtype=torch.float32)[:, neuron]
            if absent(lm, "resid_mid", layer) is None:  # else side by side with attention, and added as it is
                at = runner.resid[layer]
                noise = torch.randn((2, 1, at.shape[-1]), generator=torch.Generator().manual_seed(layer)).to(at)
                out, found = runner.block(layer, noise, reads=[("mlp_out", layer), ("resid_mid", layer)])
                put = found["mlp_out", layer][:, 0].float()
                added = out[:, 0].float() - found["resid_mid", layer][:, 0].float()
                rounding = 1e-5 if out.dtype == torch.float32 else 2.0**-7
                if float((added - put).norm()) > rounding * float(out.float().norm() + put.norm()):
                    if (factors := factors_on_the_way(put, added)) is None:
                        raise ValueError(
                            f"layer {layer} of {lm.name}: what lies between its MLP and the residual stream does not "
                            "scale components one by one"
                        )
                    written = written * factors
        return self._named(f"Neuron {layer}.{neuron} writes for and against", written.cpu(), top)

    def _named(self, title: str, written: torch.Tensor, top: int, code: str = "") -> Writes:
        logits = self._to_logits(written[None])[0][: len(self.lm.tokenizer)]
        best, worst = logits.topk(top).indices.tolist(), (-logits).topk(top).indices.tolist()
        ids = [*best, *reversed(worst)]
        shown = describe(self.lm.tokenizer, ids)
        return Writes(title, tuple(token.display for token in shown), tuple(float(logits[id]) for id in ids), code)
