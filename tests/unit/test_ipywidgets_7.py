"""The widgets on ipywidgets 7.7, which Colab has: in a kernel that finds it before the one of this environment."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

OLD = ("ipywidgets==7.7.5", "widgetsnbextension==3.6.10", "jupyterlab_widgets==1.1.11", "ipython_genutils==0.2.0")
CODE = """
import ipywidgets, sys, types
assert ipywidgets.__version__.startswith("7.7"), ipywidgets.__version__
import labkit as lk
lm = lk.load(progress=False)
sys.modules["google.colab"] = types.ModuleType("google.colab")  # so that work is done in the calling thread
"""


class Kernel:
    """A kernel whose messages are seen as a front end sees them."""

    def __init__(self, env: dict[str, str]) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel(env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(300)

    def run(self, code: str, timeout: float = 300) -> list[dict[str, Any]]:
        """Everything the cell sends until it is done, in order.

        Raises:
            AssertionError: the cell raised an error.
        """
        asked = self.client.execute(code)
        seen: list[dict[str, Any]] = []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"nothing came for {timeout} s after {code!r}") from None
            if message["parent_header"].get("msg_id") != asked:
                continue
            assert message["msg_type"] != "error", "\n".join(message["content"]["traceback"])
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return seen
            seen.append(message)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    old = tmp_path_factory.mktemp("ipywidgets7")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(old), *OLD], check=True
    )
    root = str(Path(__file__).parents[2])
    kernel = Kernel(os.environ | {"PYTHONPATH": os.pathsep.join([str(old), root])})
    try:
        kernel.run(CODE)
        yield kernel
    finally:
        kernel.close()


def batches(messages: list[dict[str, Any]]) -> list[list[str]]:
    """The tokens that were sent while the cell ran, batch by batch."""
    contents = [m["content"]["data"].get("content") for m in messages if m["msg_type"] == "comm_msg"]
    return [content["tokens"] for content in contents if isinstance(content, dict) and content.get("kind") == "append"]


@pytest.mark.long
def test_text_streams_in_the_foreground_while_the_cell_runs(kernel: Kernel) -> None:
    code = "lab = lk.PromptLab(lm, 'Once upon a time', max_new_tokens=30)\ndisplay(lab)\nlab.start()\nprint(lab.text)"
    messages = kernel.run(code)
    kinds = [m["msg_type"] for m in messages]
    sent = batches(messages)
    assert len(sent[0]) == 1  # the first token at once
    assert len(sent) > 3  # the others as they come, before the cell is done
    assert sum(map(len, sent)) == 30
    assert kinds.index("display_data") < kinds.index("comm_msg", kinds.index("display_data")) < kinds.index("stream")
    said = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
    assert said.strip().startswith(", the")


@pytest.mark.long
def test_branches_scores_and_chat_work_on_it(kernel: Kernel) -> None:
    code = (
        "lab = lk.PromptLab(lm, 'Once upon a time', max_new_tokens=6); lab.run()\n"
        "lab.branch(0, ' in'); lab.wait(); print(len(lab.columns[0].tree), repr(lab.text[:3]))\n"
        "lab.mode, lab.prompt = 'score', 'One two three'; print(lab.run())\n"
        "lab.mode, lab.prompt, lab.max_new_tokens = 'chat', 'Hi', 3; lab.run(); print(len(lab.messages))\n"
        "lab.columns[0].strip.get_state(); print(len(lab.snapshot()) > 200)"
    )
    said = "".join(m["content"]["text"] for m in kernel.run(code) if m["msg_type"] == "stream")
    lines = said.splitlines()
    assert lines[0] == "2 ' in'"
    assert lines[1].startswith("Score(3 tokens")
    assert lines[2:] == ["2", "True"]


@pytest.mark.long
def test_every_other_tool_is_made_on_it(kernel: Kernel) -> None:
    code = (
        "view = lk.AttentionView(lm, 'Hi there'); patching = lk.PatchLab(lm, 'a b', 'a c', ' d', ' e')\n"
        "display(view, patching, lk.Heatmap([[1.0]]), lk.BranchTree([])); print(patching.grid.complete)"
    )
    said = "".join(m["content"]["text"] for m in kernel.run(code) if m["msg_type"] == "stream")
    assert said.strip() == "True"


@pytest.mark.long
def test_source_is_sent_once_on_it(kernel: Kernel) -> None:
    kernel.run('del sys.modules["google.colab"]')  # where a page is one
    try:
        messages = kernel.run("a, b = lk.TokenStrip(['a']), lk.TokenStrip(['b'])")
    finally:
        kernel.run('sys.modules["google.colab"] = types.ModuleType("google.colab")')
    states = [m["content"]["data"]["state"] for m in messages if m["msg_type"] == "comm_open"]
    shared = [state for state in states if "text" in state]
    strips = [state for state in states if "_esm" in state]
    assert (len(shared), len(strips)) == (1, 2)
    assert len({state["_shared"] for state in strips}) == 1
    assert all(len(state["_esm"]) < len(shared[0]["text"]) / 2 for state in strips)
