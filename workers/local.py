"""The worker as a child process with a pipe: `--executor local`, without Ray.

A fresh interpreter (not a fork of the driver's, and not multiprocessing's spawn, which would run
the caller's main module again), killed by the kernel when the driver dies. Messages that arrive on
`LocalWorker.connection`:

    ("ready", WorkerFacts)       once, after loading
    ("failed", exception)        instead of ready: it could not load
    ("result", TaskResult)       one of these two per task
    ("failure", TaskFailure)
    ("progress", (Progress, …))  every half second while tasks run: samples and tokens so far

The driver waits with `multiprocessing.connection.wait([w.connection, w.sentinel])`.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import socket
import subprocess
import threading
import traceback
import uuid
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tokenmill.schemas.job import Job
from tokenmill.schemas.work import Task
from tokenmill.workers.inflight import Held, page_folder, read_page, sweep
from tokenmill.workers.launch import launch
from tokenmill.workers.memory import keep_freed_memory
from tokenmill.workers.worker import StreamWorker

SLOTS = 2  # the next unit's reading and decoding overlaps this one's encoding
PROGRESS_SECONDS = 0.5
STOP_SECONDS = 10.0


class LocalWorker:
    """The driver's handle on one worker process. Not thread-safe."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection, page: Path):
        self.process = process
        self.connection = connection
        self.page = page
        self._pidfd = os.pidfd_open(process.pid)

    @classmethod
    def start(cls, job: Job, pipeline: str, stream: str, index: int = 0) -> LocalWorker:
        """Start the process and return at once; ("ready", …) or ("failed", …) arrives later."""
        ours, theirs = socket.socketpair()
        folder = page_folder()
        sweep(folder)
        page = folder / f"{os.getpid()}-{index}-{uuid.uuid4().hex[:12]}"
        with theirs:
            process = launch(
                "tokenmill.workers.local:serve", str(theirs.fileno()), fds=(theirs.fileno(),)
            )
        connection = Connection(ours.detach())
        worker = cls(process, connection, page)
        with suppress(BrokenPipeError):  # died at once: its sentinel says so
            connection.send((job, pipeline, stream, str(page)))
        return worker

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def sentinel(self) -> int:
        """Readable when the process has ended: for `multiprocessing.connection.wait`."""
        return self._pidfd

    def send(self, task: Task) -> None:
        """Queue a task; two run at once. Raises BrokenPipeError where the process is dead."""
        self.connection.send(task)

    def in_flight(self) -> Held | None:
        """After a death: the unit and the samples that native code held."""
        return read_page(self.page)

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self.process.poll()

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Running tasks end at their next batch, then the process; SIGKILL after `timeout` s."""
        with suppress(OSError):
            self.connection.send(None)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self._bury()

    def kill(self) -> int:
        """SIGKILL, reap; its exit code. Its children die with it."""
        self.process.kill()
        return self._bury()

    def _bury(self) -> int:
        code = self.process.wait()
        self.connection.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self.page.unlink(missing_ok=True)
        return code


def serve(control: str) -> None:
    """The process's main: load, say so, run tasks in two slots until told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C and a service manager's TERM go to the whole group: the driver decides
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    faulthandler.enable()  # a crash in native code leaves its stack on stderr
    connection = Connection(int(control))
    job, pipeline, stream, page = connection.recv()
    try:
        worker = StreamWorker(job, pipeline, stream, page=Path(page), killable=True)
        facts = worker.facts()
    except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it
        _Outbox(connection).send("failed", error)
        return
    _Server(worker, connection).run(facts)


class _Outbox:
    """One writer at a time; an exception that cannot be pickled goes as text."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: str, body: Any) -> None:
        with self._lock, suppress(BrokenPipeError):  # the driver is gone, we are next
            try:
                self._connection.send((kind, body))
            except (TypeError, AttributeError, ValueError) as error:
                if not isinstance(body, Exception):
                    raise
                text = "".join(traceback.format_exception(body))
                self._connection.send((kind, RuntimeError(f"{text}\n(not picklable: {error})")))


class _Server:
    def __init__(self, worker: StreamWorker, connection: Connection) -> None:
        self._worker = worker
        self._connection = connection
        self._outbox = _Outbox(connection)
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._stop = threading.Event()

    def run(self, facts: Any) -> None:
        slots = [threading.Thread(target=self._slot, name=f"slot-{n}") for n in range(SLOTS)]
        ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        for thread in (*slots, ticker):
            thread.start()
        self._outbox.send("ready", facts)
        while (task := self._next()) is not None:
            self._tasks.put(task)
        self._stop.set()
        self._worker.stop()
        for _ in slots:
            self._tasks.put(None)
        for thread in slots:
            thread.join()
        self._worker.close()

    def _next(self) -> Task | None:
        try:
            task: Task | None = self._connection.recv()
        except (EOFError, OSError):
            return None
        return task

    def _slot(self) -> None:
        while (task := self._tasks.get()) is not None:
            answer = self._worker.run(task)
            self._outbox.send("failure" if hasattr(answer, "kind") else "result", answer)

    def _tick(self) -> None:
        while not self._stop.wait(PROGRESS_SECONDS):
            if progress := self._worker.progress():
                self._outbox.send("progress", progress)
