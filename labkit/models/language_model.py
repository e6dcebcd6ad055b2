"""LanguageModel: the weights, the tokenizer and where everything is in them.

A thin face on a transformers model. The model itself is never changed: reading and writing go through hooks that are
there only while one forward pass runs, and one job at a time has the model (`lm.lock`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from labkit.models.fast import FastLayers

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from labkit.analysis.steering import SteeringVector
    from labkit.branching import Tree
    from labkit.generation import Generation
    from labkit.internals.run import Run
    from labkit.models.anatomy import Anatomy
    from labkit.models.memory import MemoryReport
    from labkit.regions import Region
    from labkit.tokens import Token

Prompt = str | Sequence[Mapping[str, str]] | torch.Tensor
"""A prompt: text, a list of chat messages ({"role": ..., "content": ...}) or a `labkit.Chat`, or token ids (1, seq)."""
Prompts = list[str] | tuple[str, ...] | Sequence[torch.Tensor] | Sequence[Sequence[Mapping[str, str]]]
"""Several of them; ids (n, seq) count as several, too."""


class LanguageModel:
    """An open model in memory, ready to be looked into. Made by `labkit.load` or `labkit.wrap`.

    Attributes:
        hf: the transformers model; its passes run in eval mode, and it keeps the mode that it is in.
        tokenizer: its tokenizer.
        name: what it was loaded from (hub id, folder, file, or the default model's name).
        revision: the commit or pinned version it came from, or None.
        bits: 4, 8, 16 or 32.
        lock: held by whoever runs the model; one job per model at a time.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        revision: str | None = None,
        bits: int = 32,
        asked_dtype: torch.dtype | None = None,
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.bits = bits
        self.asked_dtype = asked_dtype  # what it was loaded to compute in, where that was said
        self.lock = threading.RLock()
        self.checked: set[str] = set()  # what has been held against running the model whole: sites, paths, the readout
        self.heads: tuple[Any, ...] | None = None  # what `internals.heads` saw of each layer
        self.batches: bool | None = None  # do several prompts in a pass give what each gives alone? None: not known yet
        self.restarts: dict[int, str] = {}  # how `internals.wavefront` restarts each layer
        self.fast = FastLayers()

    # -- sizes ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The text part of the model's configuration."""
        return self.hf.config.get_text_config(decoder=True)

    @property
    def n_layers(self) -> int:
        return len(self.anatomy.blocks)

    @property
    def n_heads(self) -> int:
        """Attention heads a layer; 0 for a model without any."""
        return int(getattr(self.config, "num_attention_heads", None) or 0)

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads; smaller than `n_heads` where queries are grouped."""
        return int(getattr(self.config, "num_key_value_heads", None) or self.n_heads)

    @property
    def d_model(self) -> int:
        return int(self.config.hidden_size)

    @property
    def d_head(self) -> int:
        return int(getattr(self.config, "head_dim", None) or self.d_model // max(1, self.n_heads))

    @property
    def n_vocab(self) -> int:
        return int(self.config.vocab_size)

    @property
    def context(self) -> int | None:
        """The longest prompt the model was made for, in tokens; None where it declares no limit."""
        value = getattr(self.config, "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype activations have (for 4-bit weights, the compute dtype)."""
        embed = self.hf.get_input_embeddings()
        return getattr(embed, "computes", embed.weight.dtype)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        from labkit.models.offload import runs_on

        where = self.hf.get_input_embeddings().weight.device
        return runs_on(self.hf.get_input_embeddings()) if where.type == "meta" else where

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the layers run; several where the model is spread over several devices."""
        from labkit.models.offload import runs_on

        return tuple(dict.fromkeys(runs_on(block.module) for block in self.anatomy.blocks))

    @cached_property
    def only_last(self) -> dict[str, int]:
        """What to ask a forward pass for the last position's logits alone; nothing where it cannot be asked."""
        return {"logits_to_keep": 1} if "logits_to_keep" in signature(self.hf.forward).parameters else {}

    @cached_property
    def any_logits(self) -> bool:
        """Can a forward pass be asked for the logits of any positions, and not only of the last ones?"""
        asked = signature(self.hf.forward).parameters.get("logits_to_keep")
        return asked is not None and "Tensor" in str(asked.annotation)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where blocks, attention, MLP, norms, embedding and unembedding are."""
        from labkit.models.anatomy import find_anatomy

        with self.busy():
            return find_anatomy(self.hf)

    # -- text and tokens -----------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> torch.Tensor:
        """Token ids (1, seq), int64, on the model's device; one BOS where the tokenizer wants one, never two.

        Raises:
            ValueError: the prompt is empty, or longer than the model's context.
            TypeError: it is none of text, chat messages, ids.
        """
        from labkit.tokens import encode

        with torch.inference_mode(False), torch.no_grad():  # ids of inference mode could not go into a gradient
            ids = encode(self, prompt)
            return ids.clone() if ids.is_inference() else ids

    def tokens(self, prompt: Prompt) -> list[Token]:
        """The prompt as the model sees it, one `Token` a position, with text that people can read."""
        from labkit.tokens import describe

        return describe(self.tokenizer, self.encode(prompt)[0].tolist())

    def regions(self, prompt: Prompt) -> list[Region]:
        """Which part of a prompt is whose: messages and `<think>` regions; see `labkit.regions.regions`."""
        from labkit.regions import regions

        return regions(self, prompt)

    # -- looking inside ------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        read: Sequence[str] = (),
        write: Mapping[Any, torch.Tensor | Callable[[torch.Tensor], torch.Tensor]] | None = None,
        logits: Literal["all", "last", "none"] | Sequence[int] = "all",
        to: str | torch.device | None = None,
    ) -> Run:
        """One forward pass with sites read and written; see `labkit.internals.run.run`."""
        from labkit.internals.run import run

        return run(self, prompt, read=read, write=write, logits=logits, to=to)

    def sites(self) -> pd.DataFrame:
        """Every kind of site with its shape in this model, and why a kind is absent where it is."""
        from labkit.internals.sites import describe_sites

        return describe_sites(self)

    def weight(
        self, name: str, layer: int, *, expert: int | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A weight matrix (out, in) of a layer, such as `lm.weight("o_proj", 5)`; see `labkit.models.weights.named`."""
        from labkit.models.weights import named

        return named(self, name, layer, expert=expert, dtype=dtype or self.dtype)

    @overload
    def generate(self, prompt: Prompt, **settings: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Prompts, **settings: Any) -> list[Generation]: ...
    def generate(self, prompt: Any, **settings: Any) -> Any:
        """Continue a prompt, or each of a list of them; see `labkit.generation.generate`."""
        from labkit.generation import generate

        return generate(self, prompt, **settings)

    def steer(
        self, vector: SteeringVector | torch.Tensor, strength: float = 1.0, *, layer: int | None = None
    ) -> AbstractContextManager[None]:
        """Add a vector to what leaves a layer while a `with` block runs; see `labkit.analysis.steering.steer`."""
        from labkit.analysis.steering import steer

        return steer(self, vector, strength, layer=layer)

    def tree(self, prompt: Prompt, **settings: Any) -> Tree:
        """Continue a prompt and keep it as a tree to branch; see `labkit.branching.Tree`."""
        from labkit.branching import tree

        return tree(self, prompt, **settings)

    def code(self) -> str:
        """The Python that loads this model again."""
        from labkit.models.packaged import NAME

        name = "" if self.name == NAME else f"{self.name!r}, "
        revision = f", revision={self.revision!r}" if name and self.revision else ""
        dtype = f", dtype={str(self.asked_dtype).removeprefix('torch.')!r}" if self.asked_dtype else ""
        return f"import labkit as lk\n\nlm = lk.load({name}bits={self.bits}{dtype}{revision})\n"

    def memory(self) -> MemoryReport:
        """Where the bytes are; see `labkit.models.memory.MemoryReport`."""
        from labkit.models.memory import measure

        return measure(self)

    @contextmanager
    def busy(self, *, gradients: bool = False) -> Iterator[None]:
        """Have the model to oneself, in eval mode and uncompiled, on the processors that are free, while a block runs.

        Its layers are as fast as they can be. It runs without gradients unless they are asked for. Whatever mode the
        caller is in, of the model or of PyTorch (`torch.inference_mode`), is back afterwards.

        Raises:
            RuntimeError: gradients meet tensors that were made under `torch.inference_mode()`, which can have none.
        """
        from labkit.models.compiled import uncompiled
        from labkit.models.processors import shared

        with (
            self.lock, shared(), uncompiled(), torch.inference_mode(False), self.fast.used(self),
            torch.set_grad_enabled(gradients),
        ):  # fmt: skip
            training = [module for module in self._modules if module.training]
            try:
                for module in training:  # not `hf.eval()`: each module gets its own mode back
                    module.training = False
                yield
            except RuntimeError as error:
                if gradients and "nference tensor" in str(error):
                    raise RuntimeError(
                        f"this needs gradients, and {self.name} or something given with it was made under inference "
                        "mode, where tensors have none; leave torch.inference_mode() and make it again"
                    ) from error
                raise
            finally:
                for module in training:
                    module.training = True

    @cached_property
    def _modules(self) -> tuple[torch.nn.Module, ...]:
        """All modules of the model; a walk over them takes longer than many a small pass."""
        return tuple(self.hf.modules())

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """A second model, with weights and a lock of its own."""
        copied = memo[id(self)] = object.__new__(type(self))
        with self.lock, torch.inference_mode(False):
            kept = {name: value for name, value in self.__dict__.items() if name != "lock"}
            copied.__dict__ |= {name: deepcopy(value, memo) for name, value in kept.items()}
        copied.lock = threading.RLock()
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self.name} is a model in memory and is not pickled. Results are, without it. Load it again where it is "
            f"needed:\n\n{self.code()}"
        )

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"LanguageModel({self.name!r}, bits={self.bits}, dtype={dtype}, layers={self.n_layers}, "
            f"heads={self.n_heads}, kv_heads={self.n_kv_heads}, d_model={self.d_model})"
        )
