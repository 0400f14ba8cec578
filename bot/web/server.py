"""Serves a WSGI app with gunicorn: one process with 16 threads, which ends what it began when it is told to stop."""

import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Final, Protocol, cast
from wsgiref.types import WSGIApplication

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import TConn, ThreadWorker

from bot.baton import Baton

THREADS: Final = 16
GRACEFUL_TIMEOUT_S: Final = 10
"""From SIGTERM to SIGKILL."""
CONVERSATION_S: Final = 6.0
"""From the first byte of a request to the last one of its answer; Slack itself waits for 3 s."""
SWITCH_EVERY_S: Final = 0.0005
"""Python lets a thread run for 5 ms before another one may: at each of its waits, an answer would wait as long again
behind whatever the bot's own threads are computing."""
STAYS_MS: Final = 2
"""How long a thread waits for the next request on its connection before it takes another one."""
MOST_IN_A_ROW: Final = 100
LOOK_AT_CONVERSATIONS_EVERY_S: Final = 0.5


class Site(Protocol):
    """What is served: built and started in the serving process, stopped when it ends."""

    @property
    def wsgi(self) -> WSGIApplication: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _PlainLogger(Logger):
    """Leaves handlers and format to the program's own logging."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn.error")
        self.access_log = logging.getLogger("gunicorn.access")
        self.error_log.propagate = True
        self.access_log.propagate = False
        self.cfg = cfg


class _Worker(ThreadWorker):
    """Hangs up on who keeps a thread for too long, by sending half a request or by reading the answer slowly."""

    def init_process(self) -> None:
        self._ends_at: dict[TConn, float] = {}
        threading.Thread(target=self._hang_up, name="hang-up", daemon=True).start()
        super().init_process()

    def handle(self, conn: TConn) -> Any:
        baton = cast("_Gunicorn", self.app).baton
        for _ in range(MOST_IN_A_ROW):
            has_begun = conn.initialized or conn.wait_for_data(0)
            self._ends_at[conn] = time.monotonic() + CONVERSATION_S
            try:
                # Who connects and says nothing carries nothing.
                with baton.carried() if has_begun else nullcontext():
                    is_kept = super().handle(conn)
            finally:
                del self._ends_at[conn]
            if is_kept is not True or not _says_more(conn.sock):
                break
        return is_kept

    def _hang_up(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_AT_CONVERSATIONS_EVERY_S):
            for conn, ends_at in list(self._ends_at.items()):
                if time.monotonic() >= ends_at:
                    with suppress(OSError):
                        conn.sock.shutdown(socket.SHUT_RDWR)


def _says_more(sock: socket.socket) -> bool:
    """Whether the next request comes at once; gunicorn's way there and back takes two changes of threads."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(STAYS_MS))


class _Gunicorn(BaseApplication):
    def __init__(self, build: Callable[[], Site], *, host: str, port: int, baton: Baton) -> None:
        self.baton = baton
        self._build = build
        self._bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._site: Site | None = None
        super().__init__()

    def load_config(self) -> None:
        chosen = {
            "bind": self._bind,
            "worker_class": _Worker,
            "workers": 1,
            "threads": THREADS,
            "graceful_timeout": GRACEFUL_TIMEOUT_S,
            "timeout": 30,
            "keepalive": 5,
            "accesslog": None,
            "logger_class": _PlainLogger,
            "control_socket_disable": True,
            # A heartbeat file on a disk can stall; and a read-only image has no other place for it.
            "worker_tmp_dir": "/dev/shm" if Path("/dev/shm").is_dir() else None,  # noqa: S108
            "worker_exit": lambda _server, _worker: self._stop(),
        }
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        sys.setswitchinterval(SWITCH_EVERY_S)
        self._site = self._build()
        self._site.start()
        return self._site.wsgi

    def _stop(self) -> None:
        if self._site is not None:
            self._site.stop()


def serve(build: Callable[[], Site], *, host: str, port: int, baton: Baton) -> None:
    """Serve until SIGTERM or SIGINT; returns by SystemExit."""
    _Gunicorn(build, host=host, port=port, baton=baton).run()
