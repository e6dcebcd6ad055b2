"""A scan of a model that is on a hub and not on this machine: lists and headers come over the network, weights do not.

The hub is a small web server of the test's own, which answers huggingface_hub as the real one does.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlparse

import pytest
from suspects import WEIGHTS, header, plain, safetensors, torch_zip, touching

SHA = "c0ffee" * 6 + "c0ff"


class Hub(ThreadingHTTPServer):
    """Serves one model, `owner/model`, from a folder."""

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.ranges, self.sent, self.extra = folder, ranges, 0, []  # type: ignore[var-annotated]


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path.startswith("/api/models/owner/model"):
            files = [file for file in sorted(self.server.folder.rglob("*")) if file.is_file()]
            names = [(file.relative_to(self.server.folder).as_posix(), file.stat().st_size) for file in files]
            siblings = [{"rfilename": name, "size": size} for name, size in [*names, *self.server.extra]]
            return self.answer(200, json.dumps({"id": "owner/model", "sha": SHA, "siblings": siblings}).encode())
        prefix = f"/owner/model/resolve/{SHA}/"
        if not path.startswith(prefix) or not (file := self.server.folder / path.removeprefix(prefix)).is_file():
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        asked = self.headers.get("Range")
        if asked is None or not self.server.ranges:
            return self.answer(200, file.read_bytes())
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        with file.open("rb") as opened:
            opened.seek(first)
            return self.answer(206, opened.read(last - first + 1))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(plain(tmp_path / "served"))
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def scanned(hub: Hub, tmp_path: Path, name: str = "owner/model") -> tuple[int, dict]:
    """The exit status and the JSON of `labkit scan` with this hub in the place of the real one."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-m", "labkit.cli", "scan", name, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(hub, tmp_path):
    hub.server_port = 9
    status, scan = scanned(hub, tmp_path)
    assert (status, scan["safe"]) == (2, False)
    assert scan["error"].startswith("owner/model is not on this machine and the hub cannot be reached")


def test_a_model_that_the_hub_does_not_have_is_said_in_a_sentence(hub, tmp_path):
    status, scan = scanned(hub, tmp_path, "owner/other")
    assert (status, scan["safe"]) == (2, False)
    assert scan["error"].startswith("there is no model 'owner/other' on the hub")


def test_a_model_on_the_hub_is_scanned_without_its_weights(hub, tmp_path):
    with (hub.folder / "model.safetensors").open("wb") as weights:
        head = hub.folder / "head.safetensors"
        safetensors(head, header({"a": ("BF16", [1 << 12, 1 << 12])} | WEIGHTS), 0)
        weights.write(head.read_bytes())
        head.unlink()
        weights.write(bytes(2 * (1 << 24) + 288))
    status, scan = scanned(hub, tmp_path)
    assert (status, scan["safe"], scan["place"], scan["revision"]) == (0, True, "hub", SHA)
    assert scan["bytes"] > 33_000_000
    assert hub.sent < 1_000_000
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_pickles_inside_an_archive_on_the_hub_are_found_by_its_list(hub, tmp_path):
    torch_zip(
        hub.folder / "pytorch_model.bin", pickle.dumps(touching(tmp_path), 2), **{"archive/data/1": bytes(5_000_000)}
    )
    status, scan = scanned(hub, tmp_path)
    assert status == 1
    assert [one["rule"] for one in scan["findings"]][:1] == ["pickle-runs-code"]
    assert hub.sent < 1_000_000


def test_a_name_in_the_list_of_the_hub_that_leads_elsewhere_is_not_followed(hub, tmp_path):
    hub.extra = [("../../etc/passwd", 10)]
    status, scan = scanned(hub, tmp_path)
    assert status == 1
    assert [(one["rule"], one["file"]) for one in scan["findings"]][:1] == [("path-leaves", "../../etc/passwd")]


def test_a_file_that_the_hub_lists_and_does_not_give_is_not_called_safe(hub, tmp_path):
    hub.extra = [("model-2.safetensors", 1000)]
    status, scan = scanned(hub, tmp_path)
    assert (status, scan["safe"]) == (2, False)
    assert "the hub answers 404" in scan["findings"][0]["what"]


def test_a_server_without_ranges_is_asked_for_no_more_than_is_needed(hub, tmp_path):
    hub.ranges = False
    status, scan = scanned(hub, tmp_path)
    assert (status, scan["safe"]) == (0, True)


def test_a_model_that_the_hub_does_not_have_is_told(hub, tmp_path):
    status, scan = scanned(hub, tmp_path, "owner/other")
    assert status == 2
    assert "there is no model 'owner/other' on the hub" in scan["error"], scan
