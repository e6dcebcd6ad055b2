"""`labkit serve` as its clients meet it: over HTTP and WebSockets, on a real port."""

from __future__ import annotations

import argparse
import json
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from socket import IPPROTO_TCP, create_connection
from typing import Any

import pytest
from shared_room import ODD, TOKENS, Room, Small, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from labkit.remote.http import DEAF, HttpTransport
from labkit.server import command
from labkit.server.desk import Desk
from labkit.server.store import Store
from labkit.server.tokens import TokenFile


@pytest.fixture
def worker() -> Small:
    return Small()


@pytest.fixture
def room(tmp_path: Path, worker: Small) -> Iterator[Room]:
    with Room(tmp_path, worker, jobs=3, body=1000, result=2000) as room:
        yield room


def ask(room: Room, body: bytes, name: str = "ann", *, once: str | None = None) -> str:
    """The id of a call that a student put into the queue."""
    headers = {"Idempotency-Key": once} if once else {}
    with room.of(name, **headers) as client:
        answer = client.post("/v1/jobs", content=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def answer(room: Room, id: str, name: str = "ann") -> Any:
    """What comes of it at last."""
    with room.of(name) as client:
        while (found := client.get(f"/v1/jobs/{id}", params={"wait": 30})).status_code == 202:
            pass
    return found


def socket(room: Room, id: str, name: str = "ann", *, query: str = "", **headers: str) -> Any:
    address = f"ws{room.url.removeprefix('http')}/v1/jobs/{id}/events{query}"
    token = {"Authorization": f"Bearer {TOKENS[name]}"} if name else {}
    return connect(address, additional_headers=token | headers, compression=None)


# -- the door --------------------------------------------------------------------------------------------------------


def test_a_token_opens_the_door_and_nothing_else_does(room: Room, worker: Small) -> None:
    id = ask(room, b"a call")
    answer(room, id)
    routes = ["GET /v1/model", "GET /v1/tokenizer/tokenizer.json", "POST /v1/calls", "POST /v1/jobs",
              f"GET /v1/jobs/{id}", f"DELETE /v1/jobs/{id}", f"POST /v1/jobs/{id}/stop"]  # fmt: skip
    wrong = ["", "Bearer", f"Bearer {TOKENS['ann']}x", f"Basic {TOKENS['ann']}", TOKENS["ann"]]
    with room.of("") as client:
        for header in wrong:
            for route in routes:
                method, path = route.split()
                refused = client.request(method, path, headers={"Authorization": header} if header else {})
                assert (refused.status_code, list(refused.json())) == (401, ["error", "after"]), (route, header)
        assert client.get("/healthz").json()["ready"] is True
    with pytest.raises(InvalidStatus) as no:
        socket(room, id, "")
    assert no.value.response.status_code == 401
    assert worker.ran == [b"a call"]
    with room.of("ann") as client:
        told = client.get("/v1/model").json()
        assert (told["you"], told["model"]["name"], told["limits"]["body"]) == ("ann", "small <model>", 1000)
        assert client.get("/v1/tokenizer/tokenizer.json").content == b"{}"
        assert client.get("/v1/tokenizer/..%2Fclass.txt").status_code == 404


def test_tokens_are_read_again_when_they_change(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    def knows(token: str) -> bool:
        with room.of("", Authorization=f"Bearer {token}") as client:
            return bool(client.get("/v1/model").status_code == 200)

    lines = room.tokens.read_text()
    assert (knows(TOKENS["ann"]), knows("n" * 20)) == (True, False)
    room.tokens.write_text(lines.replace(TOKENS["ann"], "n" * 20))
    assert (knows(TOKENS["ann"]), knows("n" * 20)) == (False, True)
    room.tokens.write_text("ann short\n")  # half an edit
    assert (knows("n" * 20), knows("short"), knows(TOKENS["bob"])) == (True, False, True)
    room.tokens.unlink()
    assert knows(TOKENS["bob"])
    said = capsys.readouterr().err
    assert said.count("line 1 of") == said.count("cannot be read") == 1
    assert "short" not in said
    room.tokens.write_text(lines)
    assert knows(TOKENS["ann"])


@pytest.mark.parametrize("line", ["ann", f"ann {'x' * 15}", f"ann {'x' * 20} admin", f"ann {'x' * 20}\nann {'y' * 20}",
                                  f"ann {'x' * 20}\nbob {'x' * 20}", f"a\x1bnn {'x' * 20}", "\udcff"])  # fmt: skip
def test_a_file_of_tokens_that_is_wrong_is_refused_without_showing_one(tmp_path: Path, line: str) -> None:
    path = tmp_path / "class.txt"
    path.write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"class\.txt") as error:
        TokenFile(path)
    assert "xxxxx" not in str(error.value)


def test_make_tokens_writes_a_file_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    path = tmp_path / "class.txt"
    make = lambda n: command.serve(parser.parse_args(["serve", "--make-tokens", n, str(path)]))  # noqa: E731
    assert make("30") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    people = TokenFile(path).people
    assert [person.name for person in people if person.teacher] == ["teacher"]
    assert {person.name for person in people if not person.teacher} == {f"student-{n:02d}" for n in range(1, 31)}
    before = path.read_text()
    capsys.readouterr()
    for n, said in (("30", "is there already"), ("many", "how many students"), ("0", "at least one student")):
        assert make(n) == 1
        assert said in capsys.readouterr().err
    assert path.read_text() == before
    path.chmod(0o644)
    TokenFile(path)
    assert "chmod 600" in capsys.readouterr().err


# -- calls -----------------------------------------------------------------------------------------------------------


def test_garbage_is_refused_in_words(room: Room, worker: Small) -> None:
    with room.of() as client:
        for path, told in (
            ("/v1/calls?wait=soon", {"content": b"a"}),
            ("/v1/calls?wait=-1", {"content": b"b"}),
            ("/v1/calls?wait=nan", {"content": b"c"}),
            ("/v1/calls", {"content": b"garbage\x00\xff"}),
            ("/v1/jobs", {"content": b"garbage"}),
            ("/v1/jobs", {"content": b"d", "headers": {"Idempotency-Key": "x" * 101}}),
        ):
            refused = client.post(path, **told)  # type: ignore[arg-type]
            assert refused.status_code == 400, path
            assert len(refused.json()["error"]) > 10
        for id in ("x", "%2e%2e%2fclass.txt", "f" * 64):
            assert client.get(f"/v1/jobs/{id}").status_code == 404
        assert client.get("/v1/calls").status_code == 405
    assert not [body for body in worker.ran if body.startswith((b"garbage", b"d"))]


def test_what_is_too_large_is_refused_before_and_after(room: Room, worker: Small) -> None:
    with room.of() as client:
        said = client.post("/v1/calls", content=bytes(1001))
        cut = client.post("/v1/calls", content=iter([bytes(600), bytes(600)]))  # of a length that it does not say
        result = client.post("/v1/calls?wait=30", content=b"large result")
    assert [said.status_code, cut.status_code, result.status_code] == [413] * 3
    assert "the result has 5,000 bytes" in result.json()["error"]
    assert worker.ran == [b"large result"]


def test_sending_a_call_twice_is_sending_it_once(room: Room, worker: Small) -> None:
    ids = {ask(room, b"a call", once="mine") for _ in range(3)}
    assert len(ids) == 1
    with room.of("ann", **{"Idempotency-Key": "mine"}) as client:
        assert client.post("/v1/calls?wait=30", content=b"a call").content == b"answer to a call"
    assert worker.ran == [b"a call"]
    theirs = ask(room, b"a call", "bob", once="mine")  # a name of one's own
    assert theirs not in ids
    assert answer(room, theirs, "bob").content == b"answer to a call"
    assert worker.ran == [b"a call"] * 2


def test_equal_calls_share_an_answer_but_not_an_error_and_not_a_part(room: Room, worker: Small) -> None:
    for body in (b"same call", b"same error"):
        for name in ("ann", "bob"):
            assert answer(room, ask(room, body, name), name).content.endswith(body)
    assert (worker.ran.count(b"same call"), worker.ran.count(b"same error")) == (1, 2)


def test_a_job_of_another_student_is_not_there(room: Room, worker: Small) -> None:
    id = ask(room, b"wait")
    with room.of("bob") as client:
        refused = [client.get(f"/v1/jobs/{id}"), client.delete(f"/v1/jobs/{id}"), client.post(f"/v1/jobs/{id}/stop")]
        never = client.get(f"/v1/jobs/{'0' * 64}")
    assert [(one.status_code, one.json()) for one in refused] == [(404, never.json())] * 3
    with pytest.raises(InvalidStatus) as no:
        socket(room, id, "bob")
    assert no.value.response.status_code == 404
    worker.go.set()
    assert answer(room, id).content == b"answer to wait"


def test_a_call_is_cancelled_or_stopped_wherever_it_is(room: Room, worker: Small) -> None:
    runs, waits = ask(room, b"wait 1"), ask(room, b"wait 2")
    assert worker.began.acquire(timeout=60)
    with room.of() as client:
        told = client.get(f"/v1/jobs/{waits}").json()
        assert (told["state"], told["said"]) == ("waiting", [{"waiting": 1}])
        assert client.post(f"/v1/jobs/{waits}/stop").status_code == 204
        gone = client.get(f"/v1/jobs/{waits}")
        assert (gone.status_code, "stopped before" in gone.json()["error"]) == (410, True)
        assert client.post(f"/v1/jobs/{runs}/stop").status_code == 204
        assert answer(room, runs).content == b"a part of wait 1"
        cancelled = ask(room, b"wait 3")
        assert worker.began.acquire(timeout=60)
        assert client.delete(f"/v1/jobs/{cancelled}").status_code == 204
        assert client.get(f"/v1/jobs/{cancelled}").status_code == 410
    assert answer(room, ask(room, b"next")).content == b"answer to next"  # the worker is free
    assert worker.ran == [b"wait 1", b"wait 3", b"next"]


def test_a_long_poll_ends_with_the_answer(room: Room, worker: Small) -> None:
    id = ask(room, b"wait")
    assert worker.began.acquire(timeout=60)
    with ThreadPoolExecutor() as pool, room.of() as client:
        news = client.get(f"/v1/jobs/{id}").json()
        assert (news["state"], news["after"], news["said"]) == ("running", 1, [{"done": 1, "total": 2}])
        poll = pool.submit(client.get, f"/v1/jobs/{id}", params={"wait": 30, "after": 1})
        worker.go.set()
        assert poll.result().content == b"answer to wait"


def test_a_socket_tells_the_same_as_polls(room: Room, worker: Small) -> None:
    id = ask(room, b"wait")
    assert worker.began.acquire(timeout=60)
    with socket(room, id) as one, socket(room, id, query="?after=1") as other:
        told = json.loads(one.recv(timeout=60))
        assert (told["state"], told["said"]) == ("running", [{"done": 1, "total": 2}])
        worker.go.set()
        last = [json.loads(said)["state"] for said in other]
        assert last[-1] == "done"
    with pytest.raises(InvalidStatus) as no:
        socket(room, id, query="?after=soon")
    assert no.value.response.status_code == 400
    with pytest.raises(InvalidStatus) as no:
        socket(room, id, Origin="http://elsewhere.example")
    assert no.value.response.status_code == 403


def test_a_client_that_talks_on_its_socket_is_shut_out_and_its_call_goes_on(room: Room, worker: Small) -> None:
    id = ask(room, b"wait")
    with socket(room, id) as talks:
        talks.send("x" * 100)
        with suppress(ConnectionClosed):
            list(talks)
        assert talks.close_code == 1008
    worker.go.set()
    assert answer(room, id).content == b"answer to wait"


def test_whoever_floods_is_refused_and_waits_behind_the_others(room: Room, worker: Small) -> None:
    first = ask(room, b"wait", "bob")
    assert worker.began.acquire(timeout=60)
    more = [ask(room, b"bob %d" % n, "bob") for n in range(2)]
    with room.of("bob") as client:
        refused = client.post("/v1/jobs", content=b"too many")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    mine = [ask(room, b"ann %d" % n) for n in range(2)]
    worker.go.set()
    for name, ids in (("bob", [first, *more]), ("ann", mine)):
        assert {answer(room, id, name).status_code for id in ids} == {200}
    order = [body[:3] for body in worker.ran]
    assert order == [b"wai", b"ann", b"ann", b"bob", b"bob"] or order == [b"wai", b"ann", b"bob", b"ann", b"bob"]


def test_a_call_that_takes_too_long_brings_what_is_done_and_says_so(tmp_path: Path, worker: Small) -> None:
    with Room(tmp_path, worker, seconds=0.01) as room:
        with pytest.warns(UserWarning, match="stopped after 0 s of the model"):
            assert HttpTransport(room.url, TOKENS["ann"]).call(b"wait", report=print) == b"a part of wait"
        assert worker.ran == [b"wait"]


def test_small_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY only where a socket says that it is of TCP; without, each answer waits for 40 ms."""
    with command.listening("127.0.0.1", 0) as bound:
        bound.listen()
        with create_connection(bound.getsockname()), bound.accept()[0] as accepted:
            assert accepted.proto == IPPROTO_TCP


def test_an_address_that_is_taken_is_refused_in_words() -> None:
    with command.listening("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(ValueError, match="choose another --port"):
            command.listening("127.0.0.1", bound.getsockname()[1])


# -- when something ends ---------------------------------------------------------------------------------------------


def test_a_call_whose_worker_dies_runs_once_more(tmp_path: Path) -> None:
    worker = Small()
    with Room(tmp_path, worker) as room:
        refused = answer(room, ask(room, b"die"))
        assert (refused.status_code, "twice" in refused.json()["error"]) == (422, True)
        assert worker.ran == [b"die"] * 2
        assert answer(room, ask(room, b"die", "bob"), "bob").status_code == 422
        assert worker.ran == [b"die"] * 2  # nobody else's call of this kind runs
        worker.deaths = 1
        assert answer(room, ask(room, b"die once")).content == b"answer to die once"
        assert worker.ran.count(b"die once") == 2
    with Room(tmp_path, Small()) as room:  # a restart does not forget
        assert answer(room, ask(room, b"die"), "ann").status_code == 422


def test_a_restart_goes_on_with_the_queue(tmp_path: Path, worker: Small) -> None:
    with Room(tmp_path, worker) as room:
        done = ask(room, b"done", once="done")
        assert answer(room, done).status_code == 200
        runs, waits = ask(room, b"wait"), ask(room, b"next", "bob")
        assert worker.began.acquire(timeout=60)
    second = Small()
    second.go.set()
    with Room(tmp_path, second, port=room.port) as room:
        assert room.desk.restored == 3
        assert answer(room, done).content == b"answer to done"
        assert answer(room, runs).content == b"answer to wait"
        assert answer(room, waits, "bob").content == b"answer to next"
        assert ask(room, b"done", once="done") == done
    assert second.ran == [b"wait", b"next"]


def test_what_runs_at_the_end_is_kept_though_nobody_asked_for_that(tmp_path: Path, worker: Small) -> None:
    desk = Desk([worker], about={}, files={}, key=lambda body: None, store=Store(tmp_path, model="small"))
    desk.start()
    jobs = [desk.submit("ann", body, once=str(body), keep=False) for body in (b"wait", b"next")]
    assert worker.began.acquire(timeout=60)
    desk.close()
    store = Store(tmp_path, model="small")
    desk = Desk([Small()], about={}, files={}, key=lambda body: None, store=store)
    assert [job.work.body for job in desk.turns.students["ann"].waiting] == [b"wait", b"next"]
    assert list(desk.turns.jobs) == [job.id for job in jobs]
    assert store.deaths == {}
    desk.close()


def test_a_worker_that_had_to_be_killed_at_the_end_does_not_count_against_its_call(tmp_path: Path) -> None:
    class Deaf(Small):
        def perform(self, body: bytes, **how: Any) -> bytes:
            self.began.release()
            assert self.go.wait(60)
            raise type(self).died

        from labkit.server.desk import WorkerDied as died

    worker = Deaf()
    desk = Desk([worker], about={}, files={}, key=lambda body: None, store=Store(tmp_path, model="small"))
    desk.start()
    desk.submit("ann", b"deaf", once="1", keep=True)
    assert worker.began.acquire(timeout=60)
    desk.close(wait=0.05)
    store = Store(tmp_path, model="small")
    assert store.deaths == {}
    assert len(list((tmp_path / "jobs").iterdir())) == 1
    store.close()


# -- the client ------------------------------------------------------------------------------------------------------


class Proxy:
    """Lets no WebSocket through, the first so many."""

    def __init__(self, refuses: int) -> None:
        self.refuses, self.asked = refuses, 0

    def __call__(self, app: Any) -> Any:
        async def around(scope: Any, receive: Any, send: Any) -> None:
            self.asked += scope["type"] == "websocket"
            if scope["type"] == "websocket" and self.asked <= self.refuses:
                await send({"type": "websocket.close"})
            else:
                await app(scope, receive, send)

        return around


@pytest.mark.parametrize(("refuses", "asked"), [(1, 2), (100, DEAF)])
def test_a_client_gets_its_answers_with_and_without_sockets(tmp_path: Path, refuses: int, asked: int) -> None:
    worker, proxy = Small(), Proxy(refuses)
    with Room(tmp_path, worker, around=proxy) as room, ThreadPoolExecutor() as pool:
        transport = HttpTransport(room.url, TOKENS["ann"])
        for n in range(2):  # one refusal is not the end of sockets
            worker.go.clear()
            said: list[dict[str, Any]] = []
            call = pool.submit(transport.call, b"wait %d" % n, report=said.append)
            until(lambda: bool(said) and proxy.asked >= asked, worker)  # noqa: B023
            assert not call.done()
            worker.go.set()
            assert call.result() == b"answer to wait %d" % n
            assert {"done": 1, "total": 2} in said
        assert (proxy.asked > asked) == (refuses == 1)
        assert transport.call(b"quick", report=said.append) == b"answer to quick"


def test_an_interrupt_brings_what_is_done(room: Room, worker: Small) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"wait", report=lambda said: None, stop=stop)
        assert worker.began.acquire(timeout=60)
        stop.set()
        assert call.result() == b"a part of wait"


def test_what_a_call_streams_comes_once_though_it_runs_twice(room: Room, worker: Small) -> None:
    worker.deaths = 1
    said: list[dict[str, Any]] = []
    with ThreadPoolExecutor() as pool:
        call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"die slowly", report=said.append)
        until(lambda: any("partial" in one for one in said), worker)
        worker.go.set()
        assert call.result() == b"answer to die slowly"
    assert worker.ran == [b"die slowly"] * 2
    assert sum("partial" in one for one in said) == 1


@pytest.mark.parametrize("same", [True, False], ids=["same folder", "another folder"])
def test_a_client_does_not_notice_a_restart(tmp_path: Path, worker: Small, same: bool) -> None:
    with ThreadPoolExecutor() as pool:
        (tmp_path / "other").mkdir()
        with Room(tmp_path, worker) as room:
            call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"wait", report=lambda said: None)
            assert worker.began.acquire(timeout=60)
            until(lambda: any(job.kept for job in room.desk.turns.unfinished()), worker)
        second = Small()
        second.go.set()
        with Room(tmp_path if same else tmp_path / "other", second, port=room.port) as room:
            assert call.result() == b"answer to wait"
            assert room.desk.restored == same
    assert second.ran == [b"wait"]


def test_a_call_that_its_teacher_stopped_is_not_sent_again(room: Room, worker: Small) -> None:
    with ThreadPoolExecutor() as pool:
        call = pool.submit(HttpTransport(room.url, TOKENS["ann"]).call, b"wait", report=lambda said: None)
        assert worker.began.acquire(timeout=60)
        [job] = room.desk.turns.unfinished()
        room.desk.turns.cancel(job, why="the teacher stopped this call")
        with pytest.raises(Exception, match="the teacher stopped this call"):
            call.result()
    assert worker.ran == [b"wait"]


# -- the teacher -----------------------------------------------------------------------------------------------------


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
