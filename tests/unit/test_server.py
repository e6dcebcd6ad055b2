"""`labkit serve` as its clients meet it: over HTTP and WebSockets, on a real port."""

from __future__ import annotations

import argparse
import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from socket import IPPROTO_TCP, create_connection
from typing import Any

import pytest
from shared_room import TOKENS, Room, Small, answer, ask
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from labkit.remote.http import HttpTransport
from labkit.server import command, connection
from labkit.server.desk import Desk
from labkit.server.store import Store
from labkit.server.tokens import TokenFile


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
    assert answer(room, ask(room, b"good")).content == b"answer to good"
    assert worker.ran == [b"good"]


def test_a_request_whose_head_does_not_arrive_holds_no_connection(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    whole = f"GET /healthz HTTP/1.1\r\nHost: {room.url.rpartition('/')[2]}\r\n\r\n".encode()
    silent, slow, second = (create_connection(room.bound.getsockname()) for _ in range(3))
    second.sendall(whole)
    assert second.recv(1 << 16).startswith(b"HTTP/1.1 200")
    for half in (slow, second):
        half.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
    for _ in range(600):
        try:
            slow.sendall(b"x")
        except OSError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a byte now and then gave it more time")
    for half in (silent, second):
        half.settimeout(60)
        while half.recv(1 << 16):  # of the answer; nothing when it is closed
            pass
    monkeypatch.undo()
    with room.of() as client:
        assert client.get("/healthz").status_code == 200


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
