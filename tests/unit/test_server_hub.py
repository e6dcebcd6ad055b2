"""`labkit serve` as a service of a real JupyterHub: users have their tokens, admins are teachers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import httpx
import pytest
from hub import ROOT, _port, hub
from shared_room import TOKENS, Room, Small

import labkit as lk
from labkit.server.tokens import Doors, Hub, TokenFile

SMALL = ROOT / "tests/files/small_llama"
SERVICE = """
c.JupyterHub.services = [*c.JupyterHub.services, {{
    "name": "labkit", "url": "http://127.0.0.1:{port}", "cwd": {folder!r},
    "command": [{python!r}, "-m", "labkit.cli", "serve", {small!r}, "--bits", "32", "--hub", "--keep", "queue"],
    "environment": {{"PYTHONPATH": {root!r}, "OMP_NUM_THREADS": "1"}},
}}]
c.JupyterHub.load_roles = [
    {{"name": "class", "services": ["class"], "scopes": [*scopes, "tokens"]}},
    {{"name": "user", "scopes": ["self", "access:services!service=labkit"]}},
]
c.Authenticator.admin_users = {{"ada"}}
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a hub is for Linux")


def test_users_of_a_hub_ask_its_service_and_its_admins_see_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = SERVICE.format(port=_port(), folder=str(tmp_path), python=sys.executable, small=str(SMALL), root=str(ROOT))
    with hub(tmp_path, tmp_path, more=more) as running:
        url = f"{running.url}/services/labkit"
        running.web.post("/hub/api/users/student").raise_for_status()

        def token(of: str, **how: list[str]) -> str:
            return str(running.web.post(f"/hub/api/users/{of}/tokens", json=how).raise_for_status().json()["token"])

        student, admin, other = token("student"), token("ada"), token("student", scopes=["read:users!user"])
        ends = time.monotonic() + 120
        while httpx.get(f"{url}/healthz").status_code != 200:
            assert time.monotonic() < ends, running.log.read_text()[-3000:]
            time.sleep(0.2)
        for wrong in (other, "x" * 32):  # without the scope, and of nobody
            with pytest.raises(ValueError, match="not known here"):
                lk.connect(url, token=wrong)
        monkeypatch.setenv("LABKIT_SERVER", url)
        monkeypatch.setenv("JUPYTERHUB_API_TOKEN", student)  # as in a notebook of the hub
        monkeypatch.delenv("LABKIT_TOKEN", raising=False)
        lm = lk.connect()
        here = lk.load(SMALL, bits=32, device="cpu", progress=False)
        for prompt in ("one", "another prompt"):
            there, same = (one.run(prompt, read=["resid_pre.3@-1"], logits="last") for one in (lm, here))
            assert (there["resid_pre.3@-1"] - same["resid_pre.3@-1"]).abs().max() < 1e-3
        with httpx.Client(headers={"Origin": running.url}) as page:
            assert page.post(f"{url}/teacher/login", data={"token": student}).status_code == 401
            assert page.post(f"{url}/teacher/login", data={"token": admin}).status_code == 303
            assert "<td>student" in page.get(f"{url}/teacher").text


def test_a_hub_that_is_away_is_no_reason_to_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_API_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"--hub needs the environment"):
        Hub()
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "x" * 32)
    monkeypatch.setenv("JUPYTERHUB_API_URL", f"http://127.0.0.1:{_port()}/hub/api")
    monkeypatch.setenv("JUPYTERHUB_SERVICE_NAME", "labkit")
    with Room(tmp_path, Small()) as room:
        pass  # its file of tokens
    with Room(tmp_path, Small(), door=Doors(TokenFile(room.tokens), Hub())) as room, room.of() as client:
        assert client.get("/v1/model").json()["you"] == "ann"  # the file needs no hub
        away = [
            client.get("/v1/model", headers={"Authorization": f"Bearer {TOKENS['ann']}x"}),
            client.post("/teacher/login", data={"token": "x"}),
        ]
        assert [(one.status_code, one.headers.get("retry-after")) for one in away] == [(503, None)] * 2
