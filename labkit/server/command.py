"""`labkit serve`: its arguments, and how it starts."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from labkit._version import install_command

PORT = 8900
HEADERS = 32 << 10  # bytes of the headers of a request


def add_parser(commands: Any) -> None:
    """Add `serve` to the commands of labkit."""
    serve = commands.add_parser("serve", help="share one model with a class: students use it with lk.connect")
    serve.add_argument("name", nargs="?", help="hub id, folder or .gguf file; omit it for the default model")
    serve.add_argument("--bits", type=int, default=None, help="4 (default), 8, 16 or 32")
    serve.add_argument("--tokens", metavar="FILE", help="who may use it: a line `name token` for each student")
    serve.add_argument("--make-tokens", nargs=2, metavar=("N", "FILE"), help="write a new file of N tokens, and end")
    serve.add_argument("--hub", action="store_true", help="accept the users of the JupyterHub this is a service of")
    serve.add_argument("--host", default=None, help="address to listen on (127.0.0.1); 0.0.0.0 for the network")
    serve.add_argument("--port", type=int, default=None, help=f"port to listen on ({PORT})")
    serve.add_argument("--keep", metavar="FOLDER", help="where the queue is kept over a restart")
    serve.add_argument("--workers", type=int, default=1, help="processes that hold the model, as for several GPUs (1)")
    serve.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster whose workers hold the model")
    serve.add_argument("--jobs", type=int, default=8, help="calls of a student that may wait or run at a time (8)")
    serve.add_argument("--seconds", type=float, default=120, help="model time that one call may take (120)")
    serve.add_argument(
        "--per-minute", type=float, default=None, help="model seconds that a student may use within a minute (all)"
    )
    serve.add_argument("--body", type=float, default=8, metavar="MB", help="size of a call (8)")
    serve.add_argument("--result", type=float, default=64, metavar="MB", help="size of a result (64)")


def serve(asked: argparse.Namespace) -> int:
    """Run the server until it is interrupted; the exit status says whether it could."""
    missing = [name for name in ("starlette", "uvicorn", "websockets") if importlib.util.find_spec(name) is None]
    if missing and not asked.make_tokens:
        print(f"labkit serve needs {' and '.join(missing)}: {install_command('serve')}", file=sys.stderr)
        return 1
    try:
        return _make_tokens(*asked.make_tokens) if asked.make_tokens else _serve(asked)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _make_tokens(students: str, path: str) -> int:
    from labkit.server.tokens import make_tokens

    if not students.isdecimal():
        raise ValueError(f"how many students? --make-tokens 30 class.txt; {students!r} is no number")
    try:
        made = make_tokens(path, int(students))
    except FileExistsError:
        print(f"{path} is there already; delete it first, or name another file", file=sys.stderr)
        return 1
    print(f"{made} has {students} tokens for students and one for the teacher. Now: labkit serve --tokens {made}")
    return 0


def configured(app: Any) -> Any:
    """uvicorn as it runs here."""
    import uvicorn

    from labkit.server.connection import Connection

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            http=Connection,
            ws="auto",
            ws_max_size=4096,
            ws_per_message_deflate=False,
            h11_max_incomplete_event_size=HEADERS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=3,
        )
    )


def _serve(asked: argparse.Namespace) -> int:
    from labkit.models.cache import cache_folder
    from labkit.remote.calls import failed, key
    from labkit.server.app import build
    from labkit.server.dask_workers import places
    from labkit.server.desk import Desk, Worker
    from labkit.server.store import Store
    from labkit.server.tokens import Door, Doors, Hub, TokenFile
    from labkit.server.turns import Limits
    from labkit.server.workers import ProcessWorker, plan_of

    doors: list[Door] = [TokenFile(asked.tokens)] if asked.tokens else []
    if asked.hub:
        doors.append(Hub())
    if not doors:
        raise ValueError(
            "who may use it? Make tokens for a class, `labkit serve --make-tokens 30 class.txt`, and start with "
            "`--tokens class.txt`; as a service of a JupyterHub, with --hub"
        )
    if asked.workers < 1:
        raise ValueError(f"--workers is 1 or more, not {asked.workers}")
    host, port, base = _place(asked)
    bound = listening(host, port)  # before a minute of loading
    limits = Limits(
        jobs=asked.jobs,
        seconds=asked.seconds,
        per_minute=asked.per_minute,
        body=int(asked.body * (1 << 20)),
        result=int(asked.result * (1 << 20)),
    )
    plan = plan_of(asked.name, bits=asked.bits)
    workers: list[Worker] = []
    if asked.dask:
        print("waiting for the cluster to load the model ...", flush=True)
        workers += (there := places(asked.dask, plan))
        about, files = there[0].described()
    else:
        print("loading the model ...", flush=True)
        processes = [ProcessWorker(plan) for _ in range(asked.workers)]
        try:
            for process in processes:
                process.ready()
        except BaseException:
            for process in processes:
                process.close()
            raise
        about, files = processes[0].about, processes[0].files
        workers += processes
    model = f"{about.get('name')}, {about.get('bits')} bits"
    folder = Path(asked.keep) if asked.keep else cache_folder() / "serve" / re.sub(r"[^\w.-]+", "-", model)
    store = Store(folder, model=model)
    desk = Desk(workers, about=about, files=files, key=key, failed=failed, limits=limits, store=store)
    server = configured(build(desk, Doors(*doors), base=base))
    _many_files()
    address = bound.getsockname()
    url = f"http://{_shown(host)}:{address[1]}{base}"
    if desk.restored:
        print(f"{desk.restored} calls of before the restart are in the queue again, or ready to fetch")
    print(f"{model} is served. The first cell of a student's notebook:\n")
    print(f'    import labkit as lk\n    lm = lk.connect("{url}", token="...")  # each their own token\n')
    print(f"The teacher's page: {url}/teacher", flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn passes it on when it has ended
        server.run(sockets=[bound])
    if left := len(desk.turns.unfinished()):
        print(f"{left} calls go on when it starts again")
    return 0


def _place(asked: argparse.Namespace) -> tuple[str, int, str]:
    """Host, port and prefix: as asked, or as a JupyterHub wants them."""
    hub = urlsplit(os.environ.get("JUPYTERHUB_SERVICE_URL", ""))
    base = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "").rstrip("/")
    port = asked.port if asked.port is not None else hub.port or PORT
    return asked.host or hub.hostname or "127.0.0.1", port, base


def listening(host: str, port: int) -> socket.socket:
    """A socket at this address, for the server.

    Raises:
        ValueError: it is taken, or is not of this machine.
    """
    # asyncio sends small answers at once (TCP_NODELAY) only where the socket says that it is TCP: 1 ms instead of 45
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    bound.set_inheritable(False)
    return bound


def _shown(host: str) -> str:
    """The address that students type."""
    if host in ("0.0.0.0", "::"):
        with suppress(OSError):
            return socket.getfqdn() if "." in socket.getfqdn() else socket.gethostbyname(socket.gethostname())
    return f"[{host}]" if ":" in host else host


def _many_files() -> None:
    """A class has more connections open than the few files that a process may by default."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard > soft else soft, hard))
