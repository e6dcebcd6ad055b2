"""What a call has taken is free when its result is gone, without waiting for Python's collector of cycles.

That collector comes seldom where few objects are made: thirty grids left 50 MB in each kernel of a class.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from next_room import CLEAN, CORRUPT, PAIR

import labkit as lk
from labkit.models import heap


def patch(lm: Any, **how: Any) -> Any:
    return lk.patch(lm, *PAIR, progress=False, **how)


CALLS: dict[str, Callable[[Any], Any]] = {
    "grid": patch,
    "grid by head": lambda lm: patch(lm, site="z"),
    "estimate": lambda lm: patch(lm, method="attribution"),
    "several tokens": lambda lm: lk.patch(lm, CLEAN, CORRUPT, " Susan and", " William", progress=False),
    "noise": lambda lm: lk.patch(
        lm, CLEAN, answer=" Susan", foil=" William", by=lk.Noise("Susan", samples=2), window=2, progress=False
    ),
    "unequal prompts": lambda lm: lk.patch(
        lm, CLEAN, CORRUPT.replace("museum", "big museum"), " Susan", " William", progress=False
    ),
    "paths": lambda lm: lk.path_patch(lm, *PAIR, receiver="logits", progress=False),
    "edges": lambda lm: lk.edge_attribution(lm, *PAIR, progress=False),
    "faithfulness": lambda lm: lk.edge_attribution(lm, *PAIR, progress=False).circuit(40).faithfulness(lm, [PAIR]),
    "sweep": lambda lm: lk.sweep(lm, [PAIR, PAIR], site="z", progress=False),
    "run": lambda lm: lm.run(CLEAN, read=["resid_pre", "pattern", "z"]),
    "written text": lambda lm: lm.generate(CLEAN, max_new_tokens=4, read=["resid_post.1"]),
    "attention": lambda lm: lk.attention(lm, CLEAN).scores(),
    "lens": lambda lm: lk.logit_lens(lm, CLEAN).figure(),
    "direct attribution": lambda lm: lk.direct_logit_attribution(lm, CLEAN, " Susan", " William"),
    "input attribution": lambda lm: lk.input_attribution(lm, CLEAN, written=" Susan", progress=False),
    "collect": lambda lm: lk.collect(lm, [CLEAN, CORRUPT], read=["z"], progress=False),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_waits_for_the_collector(name: str, home: lk.LanguageModel) -> None:
    CALLS[name](home)  # what is made once for good
    gc.collect()
    gc.disable()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        CALLS[name](home)
        gc.collect()
        left = [one for one in gc.garbage if isinstance(one, torch.Tensor)]
        around = sorted({type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("labkit")})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left, f"{len(left)} tensors in a cycle with {around}"


def in_memory() -> int:
    """Bytes of this process that are in memory and in no file."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


@pytest.mark.skipif(heap.glibc("mallinfo2") is None, reason="only glibc says what its heap keeps")
def test_much_idle_memory_goes_back_to_the_system_after_a_grid(home: lk.LanguageModel) -> None:
    patch(home)
    blocks = [bytearray(100_000) for _ in range(6000)]
    del blocks[::2]  # pieces between what is used, which the C library keeps
    before = in_memory()
    assert heap.idle() > heap.IDLE
    patch(home)
    assert in_memory() < before - 150e6
    assert len(blocks) == 3000
