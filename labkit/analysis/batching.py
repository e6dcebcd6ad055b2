"""How much to send up the blocks at once, and what to do when it was too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from labkit.models.language_model import LanguageModel


def is_out_of_memory(error: BaseException) -> bool:
    """Did this fail for want of memory, on a GPU or on the CPU?"""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def tokens_at_once(lm: LanguageModel) -> int:
    """How many packed tokens to send up the blocks together, from the memory that is free.

    Enough to keep the matrix units busy and few enough that results come every second or so.
    """
    import psutil

    inner = getattr(lm.config, "intermediate_size", None) or 4 * lm.d_model
    width = 8 * lm.d_model + 3 * int(max(inner) if isinstance(inner, list) else inner)
    size = torch.finfo(lm.dtype).bits // 8
    if lm.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(lm.device)[0], 65536
    else:
        free, most = psutil.virtual_memory().available, 4096
    return int(min(most, max(256, 0.4 * free / (width * size))))
