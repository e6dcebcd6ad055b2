"""The notebooks with the default model in other bits: what their text claims has to hold there as well.

    python tools/other_bits.py 32 build/notebooks-32
    python -m pytest build/notebooks-32 --nbval-lax --nbval-current-env

`make test-claims` does both, and again as on a processor with only AVX2. Notebook 07 compares 4 bits with 32 and is
left out; in others, cells about 4 bits are tagged so, and what they print is not compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
COMPARES = "07_what_four_bits_cost.ipynb"
LOADS = "lk.load(progress=False)"
ABOUT = "about 4 bits"
CHECKED = "# NBVAL_CHECK_OUTPUT"


def in_bits(notebook: nbformat.NotebookNode, bits: int) -> int:
    """Load the default model in other bits, in place. How often the notebook loads it."""
    loads = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        loads += cell.source.count(LOADS)
        cell.source = cell.source.replace(LOADS, f"lk.load(bits={bits}, progress=False)")
        if ABOUT in cell.metadata.get("tags", ()):
            cell.source = cell.source.replace(CHECKED, "")
    return loads


def write(bits: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if path.name == COMPARES:
            continue
        notebook = nbformat.read(path, as_version=4)
        if in_bits(notebook, bits) == 0:
            raise SystemExit(f"{path.name} does not load the default model with {LOADS}")
        nbformat.write(notebook, folder / path.name)


if __name__ == "__main__":
    write(int(sys.argv[1]), Path(sys.argv[2]))
