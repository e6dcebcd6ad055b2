"""The handle on a model: its weights, its tokenizer, and where everything is in it.

The transformers model itself is never changed: reading and writing go through hooks that are there only while one
forward pass runs, and one job at a time has the model (`lm.lock`). Everything else is built on top of this, in
`labkit.language_model`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

from labkit.elsewhere import where_the_model_is
from labkit.models.anatomy import Anatomy, find_anatomy
from labkit.models.compiled import uncompiled
from labkit.models.devices import runs_on
from labkit.models.memory import MemoryReport, measure
from labkit.models.processors import shared
from labkit.models.unpacked_layers import FastLayers
from labkit.models.weights import named
from labkit.text.encode import encode, tokens_of
from labkit.text.regions import Region, regions
from labkit.text.tokens import Token
from labkit.text.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")


class Model:
    """An open model in memory, made by `labkit.load` or `labkit.wrap`.

    Attributes:
        hf: the transformers model; labkit runs it in eval mode and restores its own mode.
        tokenizer: its tokenizer.
        name: what it was loaded from (hub id, folder, file, or the default model's name).
        revision: the commit or pinned version it came from, or None.
        bits: 4, 8, 16 or 32.
        stored_as: the format of a checkpoint that was quantised already, such as `Q4_1` or `FP8`; else None.
        lock: held by whoever runs the model; one job per model at a time.
        fast: speeds up its layers while labkit runs it.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        revision: str | None = None,
        bits: int = 32,
        load_code: str | None = None,
        stored_as: str | None = None,
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.bits = bits
        self.stored_as = stored_as
        self.load_code = load_code or f"lm = lk.load({name!r}, bits={bits})"
        self.lock = threading.RLock()
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
        """Attention heads per layer; 0 for a model without any."""
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
    def embedding(self) -> torch.Tensor:
        """The embedding's weight, a row per id (ids, d_model); often there are more ids than tokens."""
        return self.hf.get_input_embeddings().weight.detach()

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
        """The device of the token ids."""
        where = self.hf.get_input_embeddings().weight.device
        return runs_on(self.hf.get_input_embeddings()) if where.type == "meta" else where

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the layers run; several where the model is spread over several devices."""
        return tuple(dict.fromkeys(runs_on(block.module) for block in self.anatomy.blocks))

    @cached_property
    def only_last(self) -> dict[str, int]:
        """Arguments that limit a forward pass to the last position's logits; empty if it has none."""
        return {"logits_to_keep": 1} if "logits_to_keep" in signature(self.hf.forward).parameters else {}

    @cached_property
    def any_logits(self) -> bool:
        """Can a forward pass be limited to the logits of any positions, not only the last ones?"""
        asked = signature(self.hf.forward).parameters.get("logits_to_keep")
        return asked is not None and "Tensor" in str(asked.annotation)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where blocks, attention, MLP, norms, embedding and unembedding are."""
        with self.busy():
            return find_anatomy(self.hf)

    # -- text and tokens -----------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> torch.Tensor:
        """Token ids (1, seq), int64, on the model's device; one BOS where the tokenizer wants one, never two.

        Raises:
            ValueError: the prompt is empty, or longer than the model's context.
            TypeError: it is not text, chat messages or ids.
        """
        return encode(self, prompt)

    def tokens(self, prompt: Prompt) -> list[Token]:
        """The prompt as the model sees it, one `Token` per position, with readable text."""
        return tokens_of(self, prompt)

    def regions(self, prompt: Prompt) -> list[Region]:
        """Which part of a prompt belongs to whom: messages and `<think>` regions; see `labkit.text.regions.regions`."""
        return regions(self, prompt)

    # -- weights -------------------------------------------------------------------------------------------------

    @where_the_model_is(small=True)
    def weight(
        self, name: str, layer: int, *, expert: int | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A copy of one weight matrix of a layer, dequantised, by its name in the architecture.

        Args:
            name: the end of its name in the layer: `o_proj`, `mlp.down_proj`, `experts.gate_up_proj`.
            layer: counted from 0, or from the end if negative.
            expert: which expert of a mixture; by default all, (expert, out, in).
            dtype: of the copy; by default the model's own.

        Returns:
            (out, in): `x @ weight.T` is what the layer does to x, without its bias.

        Raises:
            ValueError: no such layer, name or expert, or several matrices of that name; the message lists the names.
        """
        if not -self.n_layers <= layer < self.n_layers:
            raise ValueError(f"layer {layer} is out of range; {self.name} has layers 0 to {self.n_layers - 1}")
        block = self.anatomy.blocks[layer].module
        with self.busy():
            return named(
                block, name, f"layer {layer} of {self.name}", self.anatomy.adapted, expert, dtype or self.dtype
            )

    def memory(self) -> MemoryReport:
        """Where the bytes are; see `labkit.models.memory.MemoryReport`."""
        return measure(self.hf, self.anatomy, kept=self.fast.size)

    def code(self) -> str:
        """The Python that loads this model again."""
        return f"import labkit as lk\n\n{self.load_code}\n"

    # -- running -------------------------------------------------------------------------------------------------

    @contextmanager
    def busy(self, *, gradients: bool = False, plain: bool = False) -> Iterator[None]:
        """Exclusive use of the model, in eval mode, uncompiled and on the free processors, while a block runs.

        Layers run in their fast form (`plain`: as transformers runs them), without gradients unless requested. The
        modes of the model and of PyTorch (`torch.inference_mode`) are restored afterwards.

        Raises:
            RuntimeError: gradients reach tensors made under `torch.inference_mode()`, which can have none.
        """
        with (
            self.lock, shared(), uncompiled(), torch.inference_mode(False),
            nullcontext() if plain else self.fast.used(self.hf, self.dtype, self.name),
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
                        f"this needs gradients, but {self.name} or one of the arguments was created in inference mode, "
                        "where tensors have none; leave torch.inference_mode() and create it again"
                    ) from error
                raise
            finally:
                for module in training:
                    module.training = True

    def for_patching(self) -> AbstractContextManager[None]:
        """Make layers compute as patched passes need while a block runs, under the lock; see `FastLayers`."""
        blocks = self.anatomy.blocks if self.dtype == torch.float32 else ()
        return self.fast.for_patching(module for block in blocks for module in block.module.modules())

    @cached_property
    def _modules(self) -> tuple[torch.nn.Module, ...]:
        """All modules of the model; walking them takes longer than many a small pass."""
        return tuple(self.hf.modules())

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        """A second model, with weights and a lock of its own."""
        copied = memo[id(self)] = object.__new__(type(self))
        with self.lock, torch.inference_mode(False):
            kept = {name: value for name, value in self.__dict__.items() if name != "lock"}
            copied.__dict__ |= {name: deepcopy(value, memo) for name, value in kept.items()}
        copied.lock = threading.RLock()
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self.name} is a model in memory and cannot be pickled; results can be, without it. Load it again where "
            f"it is needed:\n\n{self.code()}"
        )

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({self.name!r}, bits={self.bits}, dtype={dtype}, layers={self.n_layers}, "
            f"heads={self.n_heads}, kv_heads={self.n_kv_heads}, d_model={self.d_model})"
        )


class PerModel(Generic[T]):
    """What some part of labkit knows of each model, kept for as long as the model lives."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._of: WeakKeyDictionary[Model, T] = WeakKeyDictionary()

    def __getitem__(self, lm: Model) -> T:
        if lm not in self._of:
            self._of[lm] = self._make()
        return self._of[lm]
