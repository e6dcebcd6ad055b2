"""The teacher's page of `labkit serve`."""

from __future__ import annotations

from pathlib import Path

from shared_room import ODD, TOKENS, Room, Small, answer, ask

from labkit.remote.http import HttpTransport


def test_only_the_teacher_logs_in_and_the_cookie_is_kept_close(room: Room) -> None:
    with room.of("") as client:
        assert 'type="password"' in client.get("/teacher").text
        for token in ("", "wrong", TOKENS["ann"]):
            refused = client.post("/teacher/login", data={"token": token})
            assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        assert client.post("/teacher/stop", data={"work": "x"}).status_code == 401
        elsewhere = {"Origin": "http://elsewhere.example"}
        assert client.post("/teacher/login", data={"token": TOKENS["teacher"]}, headers=elsewhere).status_code == 403
        welcome = client.post("/teacher/login", data={"token": TOKENS["teacher"]}, headers={"Origin": room.url})
        assert (welcome.status_code, welcome.headers["location"]) == (303, "/teacher")
        flags = {part.strip().lower() for part in welcome.headers["set-cookie"].split(";")}
        assert {"httponly", "samesite=strict", "path=/teacher"} <= flags
        assert "secure" not in flags
        assert TOKENS["teacher"] not in welcome.headers["set-cookie"]
        assert "Log out" in client.get("/teacher").text
        assert client.post("/teacher/pause", data={"student": "ann"}, headers=elsewhere).status_code == 403
        client.post("/teacher/logout")
        assert 'type="password"' in client.get("/teacher").text  # the old cookie opens nothing
        by_https = {"X-Forwarded-Proto": "https"}
        welcome = client.post("/teacher/login", data={"token": TOKENS["teacher"]}, headers=by_https)
        assert "secure" in welcome.headers["set-cookie"].lower()
    with room.of("ann") as client:
        assert 'type="password"' in client.get("/teacher").text  # the token of a student, as for a call


def test_the_page_shows_who_waits_pauses_them_and_stops_what_runs(room: Room, worker: Small) -> None:
    with room.of("") as client:
        client.post("/teacher/login", data={"token": TOKENS["teacher"]})
        client.headers["Authorization"] = f"Bearer {'x' * 20}"
        runs = client.post("/v1/jobs", content=b"wait").json()["id"]  # of the student with the odd name
        assert worker.began.acquire(timeout=60)
        id = ask(room, b"mine")
        shown = client.get("/teacher")
        assert ODD not in shown.text
        assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in shown.text
        assert "small &lt;model&gt;" in shown.text
        assert "1 running, 1 waiting" in shown.text
        assert "1 of 2" in shown.text
        assert "default-src 'none'" in shown.headers["content-security-policy"]
        assert shown.headers["cache-control"] == "no-store"
        client.post("/teacher/pause", data={"student": "ann"})
        client.post("/teacher/pause", data={"student": "nobody"})
        assert "paused" in client.get("/teacher").text
        assert "nobody" not in room.desk.turns.students
        client.post("/teacher/stop", data={"work": runs})
        gone = client.get(f"/v1/jobs/{runs}")
        assert (gone.status_code, gone.json()["error"]) == (410, "the teacher stopped this call")
        answer(room, ask(room, b"others go on", "bob"), "bob")
        assert worker.ran == [b"wait", b"others go on"]
        client.post("/teacher/resume", data={"student": "ann"})
        assert answer(room, id).content == b"answer to mine"


def test_behind_a_hub_everything_is_under_its_prefix(tmp_path: Path, worker: Small) -> None:
    with Room(tmp_path, worker, base="/services/labkit") as room:
        assert answer(room, ask(room, b"a call")).content == b"answer to a call"
        assert HttpTransport(room.url, TOKENS["ann"]).describe()["name"] == "small <model>"
        with room.of("") as client:
            welcome = client.post("/teacher/login", data={"token": TOKENS["teacher"]})
            assert welcome.headers["location"] == "/services/labkit/teacher"
            assert "path=/services/labkit/teacher" in welcome.headers["set-cookie"].lower()
            assert 'action="/services/labkit/teacher/logout"' in client.get("/teacher").text
