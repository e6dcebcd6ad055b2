"""bitsandbytes as on a processor without AVX-512: its native library is asked once, and answers no.

PyTorch, oneDNN and MKL have environment variables for that, bitsandbytes has none. Python imports this file by its name
at the start of every process whose PYTHONPATH holds this folder; `tests/conftest.py` puts it there, for the processes
that tests start, and imports it itself.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ASKED = "bitsandbytes.functional"


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != ASKED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            module.has_avx512bf16 = lambda: False  # type: ignore[attr-defined]

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if ASKED in sys.modules:
    raise ImportError(f"{ASKED} is here already; this has to come before")
sys.meta_path.insert(0, _Finder())
