"""Run the notebooks and keep what a reader needs who has not run them: what cells print, figures and pictures.

    make notebooks                        # all of them
    python tools/run_notebooks.py notebooks/05_circuits.ipynb

Views of live widgets are left out of the file, as they would be of widgets that no longer live; of what a tool leaves,
its picture stays. Lines that one cell prints one after the other are kept together. What the cells
were when they ran is noted (`tools/ran.py`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from ran import keep

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
VIEW = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    began, about = time.perf_counter(), {k: v for k, v in notebook.metadata.items() if k != "widgets"}
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
    ).execute()
    notebook.metadata = nbformat.from_dict(about)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidied(cell.outputs)
            cell.metadata.pop("execution", None)  # times
    keep(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)


def tidied(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs without live views, and with neighbouring lines of one stream joined."""
    kept: list[nbformat.NotebookNode] = []
    for output, after in zip(outputs, [*outputs, {}][1:], strict=True):
        if VIEW in output.get("data", {}) and "labkit-snapshot" in after.get("data", {}).get("text/html", ""):
            continue  # without its view it would be the tool's name, above its picture
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        output.get("data", {}).pop(VIEW, None)
        kept.append(output)
    return kept


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        run(path)
