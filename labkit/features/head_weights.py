"""The weights of heads, however they are stored: what a head reads, and what it writes, as linear maps.

Nothing is looked up by name. What a head makes of a residual stream is what its block makes of it at a prompt's first
position, where rotary embedding turns nothing: the block is run on rows of our own and left where it attends. So fused,
packed, adapted and shared projections, the norm before them and norms of queries and keys are as the model has them.
What a head writes is its part of the output projection, dequantised one layer at a time, through whatever lies between
it and the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch

from labkit.activations.hooks import Place
from labkit.activations.run import run
from labkit.activations.site_kinds import HEAD_IN
from labkit.activations.sites import Site, absent, checked, n_heads_of
from labkit.engine.block_runner import BlockRunner
from labkit.engine.readout import Readout, readout_of
from labkit.engine.recorded_run import Unsupported, record
from labkit.language_model import LanguageModel
from labkit.lens.direct_attribution import by_attention_of, factors_on_the_way
from labkit.models.bf16_matmul import linear
from labkit.models.devices import copied, runs_on
from labkit.models.flow import first_tensor
from labkit.models.weights import is_plain, weight_of
from labkit.text.types import Prompt

Head = str | tuple[int, int] | Site
"""A head: `"5.3"`, `"z.5.3"` or `(5, 3)`, its layer and its number."""
NEEDED = ("v", "z", "head_out")
ROWS = 1024  # that a block takes at once


def head_of(lm: LanguageModel, head: Head) -> tuple[int, int]:
    """Layer and number of a head, counted from 0.

    Raises:
        ValueError: it is no head, or one that this model does not have.
    """
    if isinstance(head, tuple):
        if len(head) != 2 or not all(isinstance(one, Integral) and not isinstance(one, bool) for one in head):
            raise ValueError(f"a head is (layer, head), such as (5, 3), or '5.3'; got {head!r}")
        head = f"z.{head[0]}.{head[1]}"
    words = str(head).strip()
    site = Site.parse(f"z.{words}" if words[:1] in "-0123456789" else words)
    if site.layer is None or site.head is None:
        raise ValueError(f"{words!r} is not one head; write layer and head, such as '5.3'")
    found = checked(lm, Site("z", site.layer, site.head))
    assert found.layer is not None
    assert found.head is not None
    return found.layer, found.head


class HeadWeights:
    """The heads of a model, read one layer at a time.

    Args:
        offset: how many positions after a key its query is, for rotary embedding; 0: both are at the first position.

    Raises:
        ValueError: the model's blocks cannot be run on their own.
    """

    def __init__(self, lm: LanguageModel, *, offset: int = 0) -> None:
        self.lm = lm
        ids = torch.zeros((1, offset + 1), dtype=torch.long, device=lm.device)
        try:
            base = record(lm, ids)[0]
            self.runner = BlockRunner(record(lm, ids[:, :1])[0] if offset else base)
            self._queries = BlockRunner(base, start=offset) if offset else self.runner
            self.readout = readout_of(base)
        except Unsupported as error:
            raise ValueError(f"{lm.name} has no circuits of heads: {error}") from None

    def layers(self) -> list[int]:
        """Those whose heads have weights of their own."""
        every = range(self.lm.n_layers)
        return [n for n in every if all(absent(self.lm, kind, n) is None for kind in NEEDED)]

    def layer(self, layer: int) -> int:
        """A layer, counted from 0.

        Raises:
            ValueError: there is none, or its heads have no weights of their own.
        """
        found = checked(self.lm, Site("resid_post", layer)).layer
        assert found is not None
        self.check(found)
        return found

    def check(self, layer: int) -> None:
        """
        Raises:
            ValueError: this layer's heads have no weights of their own; the message says why.
        """
        for kind in NEEDED:
            if (why := absent(self.lm, kind, layer)) is not None:
                raise ValueError(
                    f"layer {layer} of {self.lm.name} has no circuits of heads, for it has no {kind}: {why}"
                )

    def attention(self, layer: int, x: torch.Tensor, *, query: bool = False) -> dict[str, torch.Tensor]:
        """q, k and v (rows, head, d_head), float32 on the CPU, of residual streams (rows, d_model) before a layer."""
        runner, found = self._queries if query else self.runner, []
        at = runner.resid[layer]
        with self.lm.busy():
            try:
                for some in x.split(ROWS):
                    one = runner.attention(layer, some[:, None].to(at))
                    found.append({kind: value[:, 0].detach().float().cpu() for kind, value in one.items()})
            except Unsupported as error:
                raise ValueError(f"{self.lm.name} has no circuits of heads: {error}") from None
        return {kind: torch.cat([one[kind] for one in found]) for kind in ("q", "k", "v")}

    def values(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What each value head gets (rows, kv_head, d_head), of residual streams (rows, d_model) before a layer, beyond
        what it gets of none."""
        found = self.attention(layer, torch.cat([x, torch.zeros_like(x[:1])]))["v"]
        return found[:-1] - found[-1]

    def shared(self, layer: int, head: int, count: int) -> int:
        """Which of `count` key and value heads a query head uses."""
        return head // (self.n_heads(layer) // count)

    def inputs(self, layer: int) -> dict[str, torch.Tensor]:
        """What q, k and v take from the residual stream, (head, d_head, d_model), float32: as linear maps, without
        biases, with the gain of the norm before them, and but for a factor that all heads of the layer share.

        A kind is missing where it is no linear map: where queries or keys are normed head by head, or compressed.
        """
        lm = self.lm
        draw = torch.randn((1, lm.d_model), generator=torch.Generator().manual_seed(layer))
        # large, so that the norm's epsilon is nothing
        x = 1e3 * torch.cat([torch.eye(lm.d_model), draw, torch.zeros_like(draw)])
        found = {}
        for kind, made in self.attention(layer, x).items():
            free = made[:-1] - made[-1]
            weight, seen = free[:-1].permute(1, 2, 0), free[-1]
            expected = weight @ draw[0]
            if float(torch.cosine_similarity(expected.flatten(), seen.flatten(), dim=0)) > 0.999:
                found[kind] = weight
        return found

    def n_heads(self, layer: int) -> int:
        """Query heads of a layer."""
        return n_heads_of(self.lm, "q", layer)

    def scaling(self, layer: int) -> float:
        """What q @ k is multiplied by."""
        return float(self.runner.base.attention[layer].scaling)

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings (rows, d_model), float32, of ids (rows,)."""
        with self.lm.busy():
            return self.lm.anatomy.embed(ids.to(self.lm.device)).float().cpu()

    def streams(self, layer: int, prompt: Prompt, positions: Sequence[int]) -> torch.Tensor:
        """The residual streams (positions, d_model), float32, that reach a layer at some positions of a text."""
        site = f"resid_pre.{layer}"
        found = run(self.lm, prompt, read=[site], logits="none", to="cpu")[site]
        return found[0, list(positions)].float()

    def output(self, layer: int) -> torch.Tensor:
        """What each head adds to the residual stream per number of its z: (head, d_head, d_model), float32.

        A norm after the output projection is a scale for each component here, fixed but for a factor that all heads of
        the layer share.

        Raises:
            ValueError: something lies between that is no such scale.
        """
        self.check(layer)
        lm, runner = self.lm, self.runner
        kinds = ["attn_out", "z", HEAD_IN] + ["resid_mid"] * (absent(lm, "resid_mid", layer) is None)
        places: list[Place] = [(kind, layer) for kind in kinds]
        at = runner.resid[layer]
        noise = torch.randn((2, at.shape[-1]), generator=torch.Generator().manual_seed(layer)).to(at)
        with lm.busy():
            found = runner.block(layer, noise[:, None], reads=places)[1]
            found = {place: value[:, 0] for place, value in found.items()} | {("resid_pre", layer): noise}
            z, read = (found[kind, layer].float().flatten(1) for kind in ("z", HEAD_IN))
            if not torch.allclose(z, read):
                raise ValueError(
                    f"layer {layer} of {lm.name} has no circuits of heads: what its heads write is gated by the token "
                    "that looks"
                )
            added = by_attention_of(found, layer)
            factors = None if added is None else factors_on_the_way(found["attn_out", layer], added)
            if factors is None:
                raise ValueError(
                    f"layer {layer} of {lm.name} has no circuits of heads: what lies between its output projection and "
                    "the residual stream does not scale components one by one"
                )
            weight = weight_of(lm.anatomy.blocks[layer].output_projection, dtype=torch.float32)  # (d_model, heads * d)
            n_heads, width = found["z", layer].shape[1:]
            return (weight.T * factors).reshape(n_heads, width, -1).cpu()


class Unembedding:
    """The linear map from what a head writes to logits (rows, vocab): final norm and unembedding.

    The norm's scale is left out: logits are those for a last residual stream whose root mean square is 1, without the
    biases of norm and unembedding, and before a soft cap.

    Raises:
        ValueError: what lies before the unembedding is neither a norm nor linear.
    """

    def __init__(self, lm: LanguageModel, readout: Readout) -> None:
        self.lm, self.readout = lm, readout
        with lm.busy():
            self._tail = [copied(module).float() for module in readout.tail]
            width = lm.d_model
            draw = torch.Generator().manual_seed(0)
            a, b = torch.randn((2, 1, width), generator=draw).to(runs_on(readout.unembed))
            self._zero = self._norm(torch.zeros_like(a)).nan_to_num()
            one, two = (self._norm(factor * a) - self._zero for factor in (64.0, 128.0))
            self._is_norm = not torch.allclose(two, 2 * one, rtol=1e-3, atol=1e-4 * float(two.abs().max()))
            moved = self._norm(64 * a + 64.0) - self._zero
            self._centres = torch.allclose(moved, one, rtol=1e-2, atol=1e-3 * float(one.abs().max()))
            both, apart = self.through(a + b), self.through(a) + self.through(b)
            if float((both - apart).norm()) > 1e-3 * float(both.norm()):
                raise ValueError(
                    f"{lm.name} has no circuits of heads: its last step before the unembedding is neither a norm nor "
                    "linear"
                )

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        x = x[None]
        for module in self._tail:
            x = first_tensor(module(x))  # type: ignore[assignment]
        return x[0]

    def through(self, x: torch.Tensor) -> torch.Tensor:
        """Rows (rows, d_model) through the final norm, without its scale and bias, float32."""
        if not self._is_norm:
            return self._norm(x) - self._zero
        centred = x - x.mean(-1, keepdim=True) if self._centres else x
        scale = centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
        # made large, so that the norm's epsilon is nothing
        return (self._norm(x * (1e3 / scale)) - self._zero) * scale

    def __call__(self, x: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (rows, vocab) or (rows, len(columns)), float32, on the CPU, of what is written (rows, d_model)."""
        with self.lm.busy():
            unembed = self.readout.unembed
            made = self.through(x.to(runs_on(unembed)))
            if is_plain(unembed):
                weight = unembed.weight
                logits = linear(made, weight if columns is None else weight[columns.to(weight.device)])
            else:  # packed or adapted: it computes as it does, biases and all
                rows = torch.cat([made, torch.zeros_like(made[:1])]).to(self.lm.dtype)
                logits = unembed(rows).float()
                logits = (logits[:-1] - logits[-1])[:, slice(None) if columns is None else columns]
            return (logits * self.readout.scale).cpu()
