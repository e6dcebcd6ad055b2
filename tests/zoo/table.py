"""Write docs/architectures.md: every promise on every architecture. Usage: python tests/zoo/table.py"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from conformance import PROMISES, conformance, model, passes
from shrink import LEFT_OUT, ZOO

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architectures.md"
PEER = ROOT / "benchmarks" / "results" / "zoo.json"
BITS = (32, 4)
HEAD = """# Architectures

labkit's promises, tested on a tiny random model of every decoder-only type that transformers {version} can load, in
32 bits and in 4 bits (NF4, computing in float32). Written by `python tests/zoo/table.py`; the tests check every row
against the models again.

**{good} of {total}** keep every promise for the sites they have, in both. {peer}

- `yes`: kept. `-`: the architecture has no such site, and `lm.sites()` says so. `no`: not kept, see below.
- *logits*: a run that reads gives the plain forward's logits.
- *resid*, *attn/mlp out*, *q/k/v*, *z*: writing back what was read changes nothing, writing something else does.
- *attn/mlp in*: the same, and what attention takes is a norm of `resid_pre`, or `resid_pre` itself where norms come
  later; where it is mixed of several streams or layers (DeepSeek-V4, Gemma 3n, Zamba, ...) only the former.
- *gates*: the same, and act(`mlp_gate`) * `mlp_up`, or act(`mlp_pre`), is `mlp_act` (in BitNet under a norm).
- *before rotary*: the same, and `q_pre` and `k_pre` differ from `q` and `k` by a rotation.
- *scores*: the same, and their softmax is `pattern`, less what an attention sink takes (gpt-oss and its like).
- *pattern*: rows sum to at most 1, no token looks ahead, pattern @ v = z.
- *head_out*: the heads add up to `attn_out`.
- *router*: which experts take each token, read and written; `experts` are their numbers.
- *state*: `state` is what transformers' cache has after a plain pass over any beginning of the prompt, and after one
  token at a time. Its shape is the layer's own, such as (batch, head, d_head, d_state) in Mamba 2 and (batch, head,
  d_key, d_value) in gated delta nets; it is read by `lm.run` and never written. RWKV, Griffin, xLSTM and MiniMax keep
  theirs outside of that cache, and convolutions (LFM2) keep their last tokens and no more. There is no site for the
  attention that such layers amount to. It is defined, as their scans are linear in the values: a matrix per head, in
  Mamba 1 per channel. But no hook reaches a scan: it is a plain function in the file of its model
  (`mamba2_chunk_scan`, `torch_chunk_gated_delta_rule`, ...), takes what it needs in another form in each family, and
  could only be exchanged for all models of the process at once.
- *final norm*: the same, and unembedded it gives the logits, up to a scale and a soft cap.
- *direct*: the parts of direct logit attribution add up to the logit difference, heads to their attention.
- *fast = naive*: grids by the wavefront equal one full forward pass per cell (`slow`: run that way, because layers or
  readout cannot be restarted alone).
- *generation*: transformers' own tokens. *clean up*: an error leaves no hook.
- *while writing*: what is read while the model writes with its cache is what one pass over prompt and text has, at
  every site; writing what is there changes nothing, and another value does what it does in that pass; texts of a batch
  are those that are written alone. Refused, with the reason: `k`, `v` and what is by key in
  layers that add compressed keys to those of the positions (DeepSeek-V4), and batches where transformers mixes their
  rows (RWKV).
- *4 bits*: the same, or what differs.

"""


def cells(row: dict[str, str]) -> list[str]:
    """What a row shows: no reasons, those are listed below the table."""
    return [re.sub(r"^no: .*", "no", row.get(name, "no")) for name in PROMISES]


def results(name: str, bits: int) -> dict[str, str]:
    """A type's row; one that cannot be made or loaded keeps no promise."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return conformance(model(name, bits, Path(folder)))
        except Exception as error:
            return dict.fromkeys(PROMISES, f"no: {type(error).__name__} {error}".splitlines()[0])


def written() -> dict[tuple[str, int], list[str]]:
    """The rows of the page as it is: (type, bits) -> cells."""
    rows: dict[tuple[str, int], list[str]] = {}
    for line in PAGE.read_text().splitlines():
        if match := re.fullmatch(r"\| `(.+?)` \| (.+) \|", line):
            values = match[2].split(" | ")
            full, four = values[: len(PROMISES)], values[len(PROMISES)]
            rows[match[1], 32] = full
            changed = dict(part.split(" ", 1) for part in four.split("; ")) if four != "the same" else {}
            rows[match[1], 4] = [changed.get(f"*{name}*", value) for name, value in zip(PROMISES, full, strict=True)]
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # as the tests do: two may add up the same numbers in another order, in the last digit
    peer = json.loads(PEER.read_text()) if PEER.is_file() else None
    lines, failures, good = [], [], 0
    for name in ZOO:
        rows = {bits: results(name, bits) for bits in BITS}
        good += all(map(passes, rows.values()))
        full, four = (cells(rows[bits]) for bits in BITS)
        differs = [f"*{p}* {b}" for p, a, b in zip(PROMISES, full, four, strict=True) if a != b]
        theirs = [peer["types"].get(name, "no")] if peer else []
        lines.append(f"| `{name}` | {' | '.join([*full, '; '.join(differs) or 'the same', *theirs])} |")
        failures += [
            f"- `{name}`, {bits} bits, {promise}: {value.removeprefix('no: ')}"
            for bits, row in rows.items()
            for promise, value in row.items()
            if value.startswith("no")
        ]
        print(lines[-1], flush=True)
    said = ""
    if peer:
        said = f"{peer['peer']}, on the same models in 32 bits, gives the logits, a cache and `resid_pre` patching on "
        said += f"{peer['good']}; its column says `yes`, or what failed (`make bench`, benchmarks/peer_zoo.py)."
    columns = [*PROMISES, "4 bits", *([peer["peer"]] if peer else [])]
    table = [f"| type | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}", *lines]
    out = HEAD.format(version=transformers.__version__, good=good, total=len(ZOO), peer=said)
    out += "\n".join(table) + "\n\n## Exceptions\n\n" + ("\n".join(failures) or "Nothing.") + "\n"
    out += "\n## What is left out\n\nTypes in transformers' causal mapping that are not plain decoders:\n\n"
    by_reason: dict[str, list[str]] = {}
    for name, why in LEFT_OUT.items():
        by_reason.setdefault(why, []).append(name)
    out += "".join(f"- {why}: {', '.join(names)}\n" for why, names in by_reason.items())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(out)


if __name__ == "__main__":
    main()
