"""AttentionView beside BertViz's model view and CircuitsVis, in one run; prints a table and writes it to results/.

Each side runs in a process of its own, one after another; labkit in a real Jupyter kernel, every message to the browser
counted, its own code included. The clock stops when all that the first picture needs is handed to the browser; what the
browser then needs to draw it is on top for every side (a canvas here, half a gigabyte of HTML to parse there), so that
the peers' times are lower bounds. Usage: python benchmarks/attention.py [--peers PYTHON] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import nbformat
from machine import describe
from nbclient import NotebookClient
from prompts import PAIRS

import labkit as lk

HERE = Path(__file__).parent
MANY, FEW = 2048, 256

# what runs in the kernel: {bits} and {ids} are filled in
KERNEL = """
import json, resource, time
import torch
from ipykernel.comm.comm import BaseComm
import labkit as lk

sent, plain = 0, BaseComm.publish_msg

def counted(self, msg_type, data=None, metadata=None, buffers=None, **keys):
    global sent
    sent += len(json.dumps(data or {{}}, default=str)) + sum(len(memoryview(b).cast("B")) for b in buffers or ())
    return plain(self, msg_type, data=data, metadata=metadata, buffers=buffers, **keys)

BaseComm.publish_msg = counted

lm = lk.load(bits={bits}, progress=False)
ids = torch.tensor([{ids}])
lm.run(ids[:, :8])  # warm
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
sent, begin = 0, time.perf_counter()
view = lk.AttentionView(lm, ids)
view.wait()
seconds, first = time.perf_counter() - begin, sent
numbers = (view.heads, "thumbnails"), (view.heatmap, "values")
array = sum(len(one.get_state(name)[name]["data"]) for one, name in numbers)
switches = []
view.selection = (12, 0); view.wait()
for head in range(1, 9):
    begin = time.perf_counter()
    view.selection = (12, head)
    view.wait()
    switches.append(time.perf_counter() - begin)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(dict(seconds=seconds, bytes=first, arrays=array, switch=sorted(switches)[4], slowest=max(switches),
                      loaded=loaded, peak=peak, tokens=len(view.strip.tokens))))
"""


def in_a_kernel(bits: int, ids: list[int]) -> dict:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(KERNEL.format(bits=bits, ids=ids))])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    text = "".join(one.text for one in notebook.cells[0].outputs if one.get("name") == "stdout")
    return json.loads(text.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=str(HERE.parent / ".venv-peers/bin/python"), help="the peers' Python")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()

    lm = lk.load(bits=32, progress=False)
    text = " ".join(PAIRS["long"]) * 50
    ids = {length: lm.encode(text[: 8 * length])[0, :length].tolist() for length in (FEW, MANY)}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        lm.hf.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        (Path(folder) / "ids.json").write_text(json.dumps(ids[FEW]))
        del lm
        results["NF4"], results["fp32"] = in_a_kernel(4, ids[FEW]), in_a_kernel(32, ids[FEW])
        results["long"] = in_a_kernel(4, ids[MANY])
        print("BertViz and CircuitsVis ...", file=sys.stderr)
        arguments = [options.peers, "peer_attention.py", folder, f"{folder}/ids.json", f"{folder}/out.json"]
        done = subprocess.run(arguments, cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            print(f"peer_attention.py failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            peers = {}
        else:
            peers = json.loads((Path(folder) / "out.json").read_text())

    rows = []
    for label in ("fp32", "NF4"):
        ours = results[label]
        for name, theirs in peers.items():
            asked = {"bytes": ">= 300x", "seconds": ">= 10x"} if name == "BertViz" else {"bytes": "", "seconds": ""}
            for key, what, say in (
                ("bytes", "sent before the first interaction", _size),
                ("seconds", "call to picture", _time),
            ):
                ratio = f"{theirs[key] / ours[key]:.0f}x"
                rows.append(
                    (f"{FEW} tokens, {label}: {what}", say(ours[key]), f"{name} {say(theirs[key])}", ratio, asked[key])
                )
        rows.append(
            (
                f"{FEW} tokens, {label}: all that is sent, code of the widgets included",
                _size(ours["bytes"]),
                "",
                "",
                "<= 1 MB",
            )
        )
    long = results["long"]
    about = f"{long['tokens']:,} tokens, NF4"
    rows += [
        (f"{about}: all that is sent before the first interaction", _size(long["bytes"]), "", "", "<= 1 MB"),
        (f"{about}: of that, numbers", _size(long["arrays"]), "", "", ""),
        (f"{about}: call to picture, every head scored", _time(long["seconds"]), "", "", ""),
        (f"{about}: another head of a layer, median of 8", f"{1e3 * long['switch']:.0f} ms", "", "", "< 300 ms"),
        (f"{about}: another head of a layer, slowest of 8", f"{1e3 * long['slowest']:.0f} ms", "", "", "< 300 ms"),
        (
            f"{about}: peak memory of the kernel",
            _size(long["peak"]),
            f"with the model loaded {_size(long['loaded'])}",
            "",
            "< 1.5 GB",
        ),
    ]
    machine = describe()
    head = f"{date.today()}: {machine['cpu']}, {machine['threads']} threads, " + ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "bitsandbytes", "labkit")
    )
    lines = ["| what | labkit | beside it | ratio | asked |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    table = "\n".join([head, "", *lines, ""])
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "attention.md").write_text(table)
    record = {"machine": machine, "date": str(date.today()), "labkit": results, "peers": peers}
    (options.out / "attention.json").write_text(json.dumps(record, indent=1))


def _size(count: float) -> str:
    return (
        f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.0f} MB"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s"


if __name__ == "__main__":
    main()
