"""LanguageModel, the model that users hold, and how one is made.

Its methods are written elsewhere and gathered here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from labkit.activations.metrics import MetricFunction
from labkit.activations.run import Run, run
from labkit.activations.sites import describe_sites
from labkit.generation.generate import generate
from labkit.generation.result import Generation
from labkit.generation.samples import samples_of
from labkit.generation.tree import Tree, tree
from labkit.models.handle import Model
from labkit.models.load import loaded, wrapped
from labkit.models.quantisation import Packing
from labkit.steering.steer import steer
from labkit.steering.vector import Manner, SteeringVector
from labkit.text.types import Prompt, Prompts

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    bits: int | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    keep: Sequence[str] = (),
    quant_type: str = "nf4",
    double_quant: bool = True,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> LanguageModel:
    """Load an open model, by default with 4-bit weights.

    Args:
        name: a hub id, a local folder, a `.gguf` file, or nothing for the default model, SmolLM2-135M-Instruct.
        bits: 4 (NF4 with double quantisation, Dettmers et al. 2023), 8 (LLM.int8, Dettmers et al. 2022), 16 or 32. By
            default 4, or what a pre-quantised checkpoint has; FP8 and MXFP4 (DeepSeek-V3, gpt-oss) are then dequantised
            to 16.
        revision: a branch, tag or commit of the hub.
        device: `cuda`, `cuda:1`, `mps`, `cpu`, or `auto` to spread over all GPUs, and in 16 and 32 bits also over the
            CPU and the disk; by default the best there is.
        dtype: what to compute in, such as `"float32"`; the default is that of `compute_dtype`. With 4 and 8 bits,
            embeddings stay in 16 bits regardless.
        keep: matrices that stay in 16 bits where the others get 4 or 8: `"o_proj.23"` for one layer's, `"mlp.0"` for
            all in a part of it, `"down_proj"` for that of every layer.
        quant_type: in 4 bits, `"nf4"` or `"fp4"`.
        double_quant: in 4 bits, quantise the scales of the blocks, too.
        trust_remote_code: run Python code that comes with the model. Read that code first.
        progress: show progress bars.

    Raises:
        LoadError: one of `labkit.models.errors`, with what to do.
        ValueError: unknown bits or dtype, bits that contradict the checkpoint, or nothing that is called as in `keep`.
    """
    return loaded(
        LanguageModel,
        name,
        bits=bits,
        revision=revision,
        device=device,
        dtype=dtype,
        packing=Packing(quant_type, double_quant, (keep,) if isinstance(keep, str) else tuple(keep)),
        trust_remote_code=trust_remote_code,
        progress=progress,
    )


def wrap(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """Look into a transformers model that is already in memory. The model itself is not changed.

    Of a model that also takes images or sound, this is the text part, sharing its weights. A compiled model is run
    uncompiled, and one with adapters (LoRA and others of PEFT) behaves as if they were merged.

    Raises:
        NotADecoder: it is not a decoder-only language model.
        TypeError: it is not a transformers model, nor one wrapped by `torch.compile` or PEFT.
        ValueError: an adapter that changes more than the model's layers.
    """
    return wrapped(LanguageModel, hf, tokenizer)


class LanguageModel(Model):
    """An open model in memory, made by `labkit.load` or `labkit.wrap`.

    It has the weights, sizes and tokens of `Model`, and the methods below.
    """

    def run(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        read: Sequence[str] = (),
        write: Mapping[Any, torch.Tensor | Callable[[torch.Tensor], torch.Tensor]] | None = None,
        logits: Literal["all", "last", "none"] | Sequence[int] = "all",
        to: str | torch.device | None = None,
        grad: Sequence[str] = (),
        of: str | MetricFunction | None = None,
        answer: str | int | None = None,
        foil: str | int | None = None,
        at: int = -1,
    ) -> Run:
        """One forward pass with sites read and written, and gradients of a metric at sites; see
        `labkit.activations.run.run`.
        """
        return run(
            self,
            prompt,
            read=read,
            write=write,
            logits=logits,
            to=to,
            grad=grad,
            of=of,
            answer=answer,
            foil=foil,
            at=at,
        )

    def sites(self) -> pd.DataFrame:
        """Every kind of site with its shape in this model, and why a kind is absent."""
        return describe_sites(self)

    @overload
    def generate(self, prompt: Prompt, *, samples: None = None, **settings: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Prompts, *, samples: None = None, **settings: Any) -> list[Generation]: ...
    @overload
    def generate(self, prompt: Prompt, *, samples: int, **settings: Any) -> list[Generation]: ...
    @overload
    def generate(self, prompt: Prompts, *, samples: int, **settings: Any) -> list[list[Generation]]: ...
    def generate(self, prompt: Any, *, samples: int | None = None, **settings: Any) -> Any:
        """Continue a prompt, or each of a list of them, and read and write sites meanwhile; see
        `labkit.generation.generate.generate`. With `samples` several times, as a list; see
        `labkit.generation.samples.samples_of`.
        """
        return generate(self, prompt, **settings) if samples is None else samples_of(self, prompt, samples, **settings)

    def steer(
        self,
        vector: SteeringVector | Mapping[int, SteeringVector] | torch.Tensor,
        strength: float = 1.0,
        *,
        layer: int | Sequence[int] | None = None,
        manner: Manner = "add",
        to: float | None = None,
        low: float | None = None,
        high: float | None = None,
        when: tuple[SteeringVector, float] | None = None,
    ) -> AbstractContextManager[None]:
        """Add a vector to the output of a layer, set or clamp what is along it, or project it out of all layers, while
        a `with` block runs; see `labkit.steering.steer.steer`.
        """
        return steer(self, vector, strength, layer=layer, manner=manner, to=to, low=low, high=high, when=when)

    def tree(self, prompt: Prompt, **settings: Any) -> Tree:
        """Continue a prompt and keep it as a tree to branch; see `labkit.generation.tree.Tree`."""
        return tree(self, prompt, **settings)
