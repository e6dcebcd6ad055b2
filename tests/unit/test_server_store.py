"""What `labkit serve` has accepted is there again after a restart, whatever is in its folder."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.server.desk import Desk
from labkit.server.jobs import Job, Refused, Work
from labkit.server.store import Store
from labkit.server.turns import Turns


def an_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Server:
    """A queue with a folder, which can be ended as by a power cut."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder, model="small")
        self.turns = Turns(forgotten=self.store.forgotten)
        self.restored = self.store.restore(self.turns)

    def ask(self, student: str, body: bytes, key: str | None = None, *, name: str = "") -> Job:
        id = an_id(name or f"{student}{body!r}")
        return self.turns.submit(student, body, id=id, key=key, keep=self.store.accepted)

    def finish(self, result: bytes | None = b"result", error: Refused | None = None, *, shared: bool = True) -> Work:
        work = self.turns.next(0)
        assert work is not None
        self.store.begins(work)
        self.store.finished(work, result=result, error=error, shared=shared)
        self.turns.finish(work, result=result, error=error, shared=shared)
        self.store.ends(work)
        return work

    def again(self) -> Server:
        self.store.close()
        return Server(self.store.folder)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "queue")
    yield server
    server.store.close()


def test_accepted_calls_wait_again_in_their_order_over_two_restarts(server: Server) -> None:
    for body in (b"one", b"two\nlines \xff", b"three"):
        server.ask("ann", body)
    server.finish()
    server = server.again()
    assert server.restored == 3
    assert [job.work.body for job in server.turns.students["ann"].waiting] == [b"two\nlines \xff", b"three"]
    server.ask("ann", b"four")
    server = server.again()
    assert [job.work.body for job in server.turns.students["ann"].waiting] == [b"two\nlines \xff", b"three", b"four"]
    server.store.close()


def test_results_and_refusals_are_there_again_and_go_with_their_job(server: Server) -> None:
    good, bad = server.ask("ann", b"good"), server.ask("ann", b"bad")
    server.finish(b"\n\x00numbers\n")
    server.finish(None, Refused(413, "too much"))
    server = server.again()
    good, bad = (server.turns.find("ann", one.id) for one in (good, bad))  # type: ignore[assignment]
    assert (good.state, good.work.result) == ("done", b"\n\x00numbers\n")
    assert bad.work.error is not None
    assert (bad.state, bad.work.error.status, str(bad.work.error)) == ("failed", 413, "too much")
    assert server.turns.next(0) is None
    server.turns.cancel(good)
    assert [path.name for path in (server.store.folder / "jobs").iterdir()] == [bad.id]
    server.again().store.close()
    assert [path.name for path in (server.store.folder / "results").iterdir()] == [bad.id]


def test_equal_calls_stay_one_piece_of_work_and_what_is_not_for_all_stays_so(server: Server) -> None:
    for student in ("ann", "bob"):
        server.ask(student, b"same", "k")
        server.ask(student, b"stopped", "s")
    server.finish(b"whole")
    server.finish(b"a part", shared=False)
    server = server.again()
    assert server.restored == 4
    assert {job.work.result for job in server.turns.jobs.values()} == {b"whole", b"a part"}
    assert len({id(job.work) for job in server.turns.jobs.values()}) == 2
    assert server.turns.answer("k") == b"whole"
    assert server.turns.answer("s") is None
    assert server.ask("eve", b"stopped", "s").state == "waiting"
    server.store.close()


@pytest.mark.parametrize("id", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 64 + "/x"])
def test_no_client_names_a_file(server: Server, id: str) -> None:
    with pytest.raises(ValueError, match="not the id of a job"):
        server.turns.submit("ann", b"x", id=id, keep=server.store.accepted)
    assert server.turns.jobs == {}
    assert not list((server.store.folder / "jobs").iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]\nbody",
        b"{}\nbody",
        b'{"student": "ann", "number": "1", "key": null, "work": "x"}\nbody',
        b'{"student": "ann", "number": 1, "key": null, "work": "../../queue.json"}\nbody',
        b'{"student": ["ann"], "number": 1, "key": null, "work": "%s"}\nbody' % (b"a" * 64),
    ],
)
def test_damaged_files_are_passed_over(server: Server, content: bytes) -> None:
    whole = server.ask("ann", b"whole")
    for where in ("jobs", "results"):
        (server.store.folder / where / an_id("damaged")).write_bytes(content)
        (server.store.folder / where / "README").write_bytes(content)
        (server.store.folder / where / f"{an_id('x')}.1234.part").write_bytes(content)
    (server.store.folder / "results" / whole.id).write_bytes(content)
    (server.store.folder / "deaths.json").write_bytes(content)
    server = server.again()
    assert list(server.turns.jobs) == [whole.id]
    assert server.turns.jobs[whole.id].state == "waiting"
    server.store.close()


def test_a_folder_is_of_one_model_one_server_and_its_owner(server: Server) -> None:
    folder = server.store.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(ValueError, match="another labkit serve uses"):
        Store(folder, model="small")
    server.store.close()
    with pytest.raises(ValueError, match="has the queue of small, not of large"):
        Store(folder, model="large")
    (folder / "queue.json").write_text("[")
    with pytest.raises(ValueError, match="a model that it does not name"):
        Store(folder, model="small")
    (folder / "queue.json").unlink()
    Store(folder, model="small").close()  # what was refused let go of the lock


def test_a_folder_that_cannot_be_written_to_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "queue"):
        with pytest.raises(ValueError, match=r"cannot be kept in .*give another folder with --keep"):
            Store(folder, model="small")


def test_a_file_that_cannot_be_written_at_the_start_is_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    Store(folder, model="small").close()
    (folder / "running" / an_id("a")).touch()
    (folder / "deaths.json").mkdir()  # what cannot be replaced, whoever writes
    with pytest.raises(ValueError, match="cannot be kept in"):
        Store(folder, model="small")
    (folder / "deaths.json").rmdir()
    Store(folder, model="small").close()  # what was refused let go of the lock


def test_what_ended_two_servers_is_refused_for_good(server: Server) -> None:
    job = server.ask("ann", b"deadly")
    for _ in range(2):
        work = server.turns.next(0)
        assert work is not None
        server.store.begins(work)
        server = server.again()
    assert server.store.deaths == {work.digest: 2}
    server.store.close()

    class Never:
        def perform(self, body: bytes, *, stop: object, report: object) -> bytes:
            raise AssertionError("it ran")

        def close(self) -> None:
            pass

    for _ in range(2):  # refusing it does not forget why
        store = Store(server.store.folder, model="small")
        desk = Desk([Never()], about={}, files={}, key=lambda body: None, store=store)
        for found in [desk.turns.find("ann", job.id), desk.submit("eve", b"deadly", once="x", keep=True)]:
            assert found is not None
            if found.work.ended is None:
                turn = desk.turns.next(0)
                assert turn is not None
                desk._run(desk.workers[0], turn)
            assert "twice" in str(found.work.error)
        desk.close()
    assert json.loads((store.folder / "deaths.json").read_text()) == {work.digest: 2}


def test_a_call_that_ends_well_is_not_held_against(server: Server) -> None:
    server.ask("ann", b"unlucky")
    work = server.turns.next(0)
    assert work is not None
    server.store.begins(work)
    server = server.again()
    assert server.store.deaths == {work.digest: 1}
    server.finish()
    server = server.again()
    assert server.store.deaths == {}
    server.store.close()


def test_a_full_disk_ends_no_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Small:
        def perform(self, body: bytes, *, stop: object, report: object) -> bytes:
            return b"answer to " + body

        def close(self) -> None:
            pass

    store = Store(tmp_path, model="small")
    desk = Desk([Small()], about={}, files={}, key=bytes.hex, store=store)
    jobs = [desk.submit("ann", b"a call", once="1", keep=True)]
    for name in ("jobs", "results", "running"):
        (tmp_path / name).rename(tmp_path / f"{name}-away")
    with pytest.raises(Refused, match="cannot write calls down") as refused:
        desk.submit("ann", b"another", once="2", keep=True)
    assert (refused.value.status, refused.value.after) == (503, 60)
    work = desk.turns.next(0)
    assert work is not None
    desk._run(desk.workers[0], work)
    assert jobs[0].work.result == b"answer to a call"
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "jobs-away").rename(tmp_path / "jobs")
    desk.submit("ann", b"another", once="2", keep=True)  # what was refused is not what it waits for
    work = desk.turns.next(0)
    assert work is not None
    assert work.body == b"another"
    desk.close()
