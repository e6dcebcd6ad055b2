"""Direct logit attribution: what each part of a model writes to the logits directly.

The last residual stream is a sum: the embedding, and what every layer's attention and MLP added. With the scale of the
final norm frozen at its value in this run, the map from there to a logit is linear, so the logit difference is the sum
of the parts' own shares (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; the frozen scale as
in Wang et al. 2022, section 3.1). What a part does through later layers is not in its share; use patching for that.

Weights stay packed: heads go through their own output projection one layer at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.activations.hooks import Place, hooked
from labkit.activations.site_kinds import HEAD_IN
from labkit.activations.sites import absent, layers_with, n_heads_of
from labkit.activations.unembedding import last_logits
from labkit.elsewhere import where_the_model_is
from labkit.engine.readout import Readout, readout_of
from labkit.engine.recorded_run import RecordedRun, Unsupported
from labkit.language_model import LanguageModel
from labkit.models.devices import Copies, copied, runs_on
from labkit.models.flow import first_tensor
from labkit.models.weights import bias_of, is_plain, weight_of
from labkit.text.as_code import LM, as_code
from labkit.text.encode import single_token
from labkit.text.prompts import asked, each_prompt
from labkit.text.tokens import Token
from labkit.text.types import Prompt

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(repr=False)
class DirectAttribution:
    """The shares of a logit, or of the difference of two, at the last position; float32, in logits.

    They add up: `embed + attn.sum() + mlp.sum() + bias + rest == total`, and over a layer's heads
    `heads[layer].sum() + attn_bias[layer] == attn[layer]`, each within rounding.

    Attributes:
        total: the model's own logit, or answer minus foil; before the soft cap where a model caps its logits.
        embed: the embedding's share.
        attn, mlp: (layer,), zero where a layer has no such part; in a layer with only one part (state spaces), `mlp` is
            that part.
        heads: (layer, head), NaN where a layer's heads cannot be separated (something else is added with them).
        attn_bias: (layer,), what attention adds outside the heads: the bias of its output projection.
        bias: of the final norm and the unembedding.
        rest: the rounding error, and what a model adds between its layers.
    """

    total: float
    embed: float
    attn: np.ndarray
    mlp: np.ndarray
    heads: np.ndarray
    attn_bias: np.ndarray
    bias: float
    rest: float
    tokens: list[Token] = field(repr=False)
    answer: str = ""
    foil: str | None = None
    made_by: str = field(default="", repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per part: `part`, `layer`, `head`, `share`. Heads are listed next to the attention they add up to."""
        import pandas as pd

        rows: list[tuple[str, int | None, int | None, float]] = [("embed", None, None, self.embed)]
        for layer in range(len(self.attn)):
            rows += [("attn", layer, None, self.attn[layer])]
            rows += [("head", layer, n, share) for n, share in enumerate(self.heads[layer]) if not np.isnan(share)]
            rows += [("mlp", layer, None, self.mlp[layer])]
        rows += [("bias", None, None, self.bias), ("rest", None, None, self.rest)]
        frame = pd.DataFrame(rows, columns=["part", "layer", "head", "share"])
        return frame.astype({"layer": "Int64", "head": "Int64", "share": "float32"})

    def figure(self) -> go.Figure:
        """The shares by layer: attention and MLP as bars."""
        import plotly.graph_objects as go

        what = f"{self.answer!r}" + ("" if self.foil is None else f" minus {self.foil!r}")
        layers = list(range(len(self.attn)))
        bars = [go.Bar(x=layers, y=self.attn, name="attention"), go.Bar(x=layers, y=self.mlp, name="MLP")]
        return go.Figure(bars).update_layout(
            title=f"What writes {what}: {self.total:.2f} in all",
            xaxis_title="layer",
            yaxis_title="share of the logit" + ("" if self.foil is None else " difference"),
            barmode="relative",
            template="simple_white",
        )

    def code(self) -> str:
        """The Python that repeats it."""
        return self.made_by

    def __repr__(self) -> str:
        """The total, its parts, and the five heads and MLPs that write most of it."""
        what = repr(self.answer) + ("" if self.foil is None else f" - {self.foil!r}")
        sums = {"embed": self.embed, "attention": float(self.attn.sum()), "MLP": float(self.mlp.sum())}
        sums |= {"bias": self.bias, "rest": self.rest}
        parts = " ".join(f"{name} {share:+.2f}" for name, share in sums.items())
        frame = self.to_frame().query("part in ('head', 'mlp')").sort_values("share", key=abs, ascending=False)
        most = [
            f"{row.part} {row.layer}" + ("" if row.part == "mlp" else f".{row.head}") + f" {row.share:+.2f}"
            for row in frame.head(5).itertuples()
        ]
        return f"DirectAttribution({what}: {self.total:+.2f} = {parts}; most: {', '.join(most)})"


@where_the_model_is(small=True)
@each_prompt
def direct_logit_attribution(
    lm: LanguageModel, prompt: Prompt, answer: str | int, foil: str | int | None = None
) -> DirectAttribution:
    """What every layer's attention, heads and MLP write directly to the logit of an answer, minus that of a foil.

    Args:
        lm: the model, in any bits.
        prompt: text, chat messages, or token ids (1, seq); or a list of these, which gives a list of results.
        answer, foil: one token each, as text or id; without a foil, only the answer's logit.

    Raises:
        ValueError: a bad prompt or answer, or a model whose residual stream is not one sum (several streams, layers
            that run more than once) or whose last step is not a norm.
    """
    prompt = asked(lm, prompt)
    ids = lm.encode(prompt)
    found, way, words = _way_of(lm, ids, answer, foil)
    n_heads = max(1, n_heads_of(lm, "head_out"))
    attn, mlp, attn_bias = (np.zeros(lm.n_layers, np.float32) for _ in range(3))
    heads = np.full((lm.n_layers, n_heads), np.nan, np.float32)
    copies = Copies()  # the host waits for all layers' shares once
    for layer in range(lm.n_layers):
        after = found["resid_post", layer].float()
        added = after - found["resid_pre", layer].to(after.device).float()  # which comes from the layer before
        by_attention = by_attention_of(found, layer)
        copies.into(
            mlp[layer : layer + 1], way.shares(added[-1:] if by_attention is None else (added - by_attention)[-1:])
        )
        if by_attention is None:
            continue
        copies.into(attn[layer : layer + 1], way.shares(by_attention[-1:]))
        if (HEAD_IN, layer) in found:
            turn, fits = _factors(found["attn_out", layer], by_attention)
            with lm.busy():
                outs = _heads_out(lm, layer, found[HEAD_IN, layer][-1])
            fits = fits.to(way.direction.device)
            beside = way.shares((by_attention[-1] - turn * outs.sum(0))[None])
            copies.into(heads[layer, : len(outs)], torch.where(fits, way.shares(turn * outs), torch.nan))
            copies.into(attn_bias[layer : layer + 1], torch.where(fits, beside, 0.0))
    copies.done()
    embed = way(found["resid_pre", 0][-1].float())
    rest = way.total - embed - float(attn.sum()) - float(mlp.sum()) - way.bias
    code = as_code(lm.code(), "found = lk.direct_logit_attribution", LM, prompt, answer, foil)
    return DirectAttribution(
        way.total, embed, attn, mlp, heads, attn_bias, way.bias, rest, lm.tokens(ids), *words, code
    )


def logit_path(
    lm: LanguageModel, ids: torch.Tensor, answer: str | int, foil: str | int | None = None
) -> tuple[dict[int, torch.Tensor], tuple[str, str | None]]:
    """By layer whose heads can be separated, the direction (d_model,), float32, in which a head's output adds to the
    logit; and the texts of answer and foil. Raises what `direct_logit_attribution` raises.
    """
    found, way, words = _way_of(lm, ids, answer, foil)
    directions = {}
    for layer in range(lm.n_layers):
        by_attention = by_attention_of(found, layer)
        if by_attention is None or (HEAD_IN, layer) not in found:
            continue
        if (turn := factors_on_the_way(found["attn_out", layer], by_attention)) is not None:
            directions[layer] = way.direction * turn
    return directions, words


def _way_of(
    lm: LanguageModel, ids: torch.Tensor, answer: str | int, foil: str | int | None
) -> tuple[dict[Place, torch.Tensor], _Way, tuple[str, str | None]]:
    """What was there at the last two positions, or the one there is; the way from the last residual stream to the logit
    (difference); and the texts of answer and foil.
    """
    chosen = single_token(lm, answer, after=ids)
    against = None if foil is None else single_token(lm, foil, role="foil", after=ids)
    if (why := absent(lm, "resid_post")) is not None:
        raise ValueError(f"{lm.name} has no direct attribution: {why}")
    reads = {("resid_pre", 0)}
    for kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", HEAD_IN):
        reads |= {(kind, layer) for layer in layers_with(lm, kind)}
    with lm.busy(), hooked(lm, reads, {}, keep=lambda x: x[0, -2:].detach().clone()) as found:
        logits = last_logits(lm, ids)[0].float()
    final = found["resid_post", lm.n_layers - 1]
    if final.shape[1:] != (lm.d_model,):
        raise ValueError(f"{lm.name} has no direct attribution: its residual stream has several copies")
    try:
        readout = readout_of(RecordedRun(lm, ids, [final[-1:]], [], {}, logits))
        way = _Way.of(lm, readout, final[-1], chosen, against)
    except Unsupported as error:
        raise ValueError(f"{lm.name} has no direct attribution: {error}") from None
    text = lm.tokenizer.decode
    return found, way, (text([chosen]), None if against is None else text([against]))


def by_attention_of(found: dict[Place, torch.Tensor], layer: int) -> torch.Tensor | None:
    """What attention added to the residual stream (positions, d_model), float32; None where a layer has none.

    That is attention's output, unless something lies between (a norm, a multiplier): then the change of the stream.
    """
    if ("attn_out", layer) not in found:
        return None
    out = found["attn_out", layer].float()
    if ("resid_mid", layer) not in found:
        return out  # side by side with the MLP
    seen = found["resid_mid", layer].float() - found["resid_pre", layer].to(out.device).float()
    rounding = 1e-5 if found["attn_out", layer].dtype == torch.float32 else 2.0**-7
    limit = rounding * (found["resid_mid", layer].float().norm() + out.norm())
    return torch.where((seen - out).norm() <= limit, out, seen)


def factors_on_the_way(out: torch.Tensor, added: torch.Tensor) -> torch.Tensor | None:
    """The factors (d_model,) from attention's output to what it added, at the last position.

    None if they are not factors, that is, if the same ones, up to a scale, do not fit another position.
    """
    factors, fits = _factors(out, added)
    return factors if bool(fits) else None


def _factors(out: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without waiting for the device: the factors, and whether they are factors (), bool."""
    out = out.float()
    more = added - out
    nothing = (more - more[-1]).norm() <= 1e-5 * out.norm()  # or a bias
    factors = torch.where(out == 0, 0, added / torch.where(out == 0, 1, out))
    fits = torch.ones((), dtype=torch.bool, device=out.device)
    if len(out) > 1:
        guess = factors[0] * out[1]
        guess = guess * (guess @ added[1]) / (guess @ guess).clamp(min=1e-30)
        fits = (guess - added[1]).norm() <= 0.05 * added[1].norm()
    return torch.where(nothing, 1.0, factors[-1]), nothing | fits


def _heads_out(lm: LanguageModel, layer: int, z: torch.Tensor) -> torch.Tensor:
    """head_out (head, d_model) of one position from z (head, d_head), float32.

    The projection itself takes one head at a time, the others zero: no copy of its weight outlives the call.
    """
    projection: Any = lm.anatomy.blocks[layer].output_projection
    alone = torch.diag_embed(z.T).permute(1, 2, 0).flatten(1)  # (head, head * d_head)
    out, bias = projection.forward(alone).float(), bias_of(projection)
    return out if bias is None else out - bias.float()


# -- from the last residual stream to the logit ---------------------------------------------------------------------


@dataclass
class _Way:
    """A linear map from the last residual stream to a logit (difference), with the final norm's scale frozen."""

    direction: torch.Tensor  # (d_model,) float32
    total: float
    bias: float

    def __call__(self, x: torch.Tensor) -> float:
        return float(self.shares(x))

    def shares(self, x: torch.Tensor) -> torch.Tensor:
        """The shares (...) of vectors (..., d_model), float32, where they are computed."""
        return x.float().to(self.direction.device) @ self.direction

    @classmethod
    def of(cls, lm: LanguageModel, readout: Readout, x: torch.Tensor, chosen: int, against: int | None) -> _Way:
        """Found without knowing the norm's form, from its derivative J at x and its value at zero.

        The map with the scale frozen is A v = J v + (1 - r) (norm(x) - norm(0)) (v . x) / (x . x), where x is centred
        if the norm centres, and J x = r (norm(x) - norm(0)): r is the share of epsilon in the scale, 0 for large x; and
        1 if there is no norm at all.
        """
        unembed = readout.unembed
        with lm.busy():
            tail = [copied(module) for module in readout.tail]
            x = x.float().detach().to(runs_on(readout.tail[0]) if readout.tail else x.device)
            row = _row(unembed, chosen) - (0 if against is None else _row(unembed, against))  # (width,)
            row = row.to(x.device)

        def norm(x: torch.Tensor) -> torch.Tensor:
            for module in tail:
                x = first_tensor(module.float()(x[None, None]))[0, 0]  # type: ignore[index]
            return x

        with lm.busy(gradients=True):
            out, along = torch.autograd.functional.jvp(norm, x, x)
            at = x.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(norm(at) @ row, at)
        with lm.busy():
            zero = norm(torch.zeros_like(x)).nan_to_num()
            shifted = norm(x + float(x.std()))
            centred = x - x.mean() if torch.allclose(shifted, out, rtol=1e-3, atol=1e-4 * float(out.std())) else x
        made = out - zero
        share = float(along @ made) / max(float(made @ made), 1e-30)
        if float((along - share * made).norm()) > 1e-3 * float(made.norm()):
            raise Unsupported("its last step before the unembedding is neither a norm nor linear")
        direction = gradient + (1 - share) * float(made @ row) / (centred @ centred) * centred
        bias = float(zero @ row) + _bias(unembed, chosen) - (0.0 if against is None else _bias(unembed, against))
        uncapped = Readout(readout.tail, unembed, readout.scale, None)
        with lm.busy():
            logits = uncapped(x.to(lm.dtype)[None], [chosen] if against is None else [chosen, against])[0]
        total = logits[0] if against is None else logits[0] - logits[1]
        return _Way(direction * readout.scale, float(total), bias * readout.scale)


def _row(unembed: Any, id: int) -> torch.Tensor:
    weight = unembed.weight if is_plain(unembed) else weight_of(unembed, dtype=torch.float32)
    return weight[id].detach().float()


def _bias(unembed: Any, id: int) -> float:
    bias = bias_of(unembed)
    return 0.0 if bias is None else float(bias[id])
