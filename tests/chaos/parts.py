"""What chaos is done to: SeaweedFS behind the proxy, a Ray cluster of a head and two workers, the
command line, and how to find their processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import ACCESS_KEY, SECRET_KEY, _await_bucket, _free_port, _start

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "chaos"
CLI = [sys.executable, "-c", "from tokenmill.pipelines.cli import main; main()"]


def loopback_up() -> None:
    """In a fresh network namespace `lo` is down. (`ip link set lo up` without iproute2.)"""
    with socket.socket() as any_socket:
        asked = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(any_socket, 0x8913, asked))[1]
        if not flags & 1:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", flags | 1))


class Server:
    """SeaweedFS, killed and started again on the same port and folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = _free_port()
        folder.mkdir()
        self.start()

    def start(self) -> None:
        self.process = _start(self._folder, self.port)
        url = f"http://127.0.0.1:{self.port}"
        try:
            _await_bucket(url, BUCKET, self.process, self._folder / "log")
        except RuntimeError as error:
            if "BucketAlready" not in str(error):
                raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Nodes:
    """A head without CPUs and two workers; each node has a temporary folder of its own, as on
    machines of their own, so that in-flight pages are not found by luck."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - the environment comes first

        self._folder = folder
        self._environment = environment
        self._cluster = Cluster()
        self._add(0)
        self.workers = [self._add(2) for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def _add(self, cpus: int) -> Any:
        temporary = self._folder / f"node-{time.monotonic_ns()}"
        temporary.mkdir()
        return self._cluster.add_node(
            num_cpus=cpus,
            object_store_memory=80 << 20,
            include_dashboard=False,
            env_vars={**self._environment, "TMPDIR": str(temporary)},
            wait=True,
        )

    def kill_worker_node(self, which: int) -> None:
        """SIGKILL of a raylet: its node is lost, its actors with it; another node comes."""
        node = self.workers.pop(which)
        for info in node.all_processes["raylet"]:
            info.process.kill()
        with contextlib.suppress(Exception):
            self._cluster.remove_node(node, allow_graceful=False)
        self.workers.append(self._add(2))

    def close(self) -> None:
        self._cluster.shutdown()


def ours() -> list[tuple[psutil.Process, str]]:
    """Processes below this one with their command lines."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, " ".join(process.cmdline())))
    return found


def actors() -> list[psutil.Process]:
    return [p for p, line in ours() if line.startswith("ray::StreamActor")]


def encoding() -> set[int]:
    """Processes that run a task now: Ray puts the method into the title."""
    return {p.pid for p, line in ours() if line.startswith("ray::StreamActor.run")}


def children() -> list[psutil.Process]:
    """Fork servers and decode children."""
    return [p for p, line in ours() if "tokenmill.workers.forkserver" in line]


def strangers() -> list[str]:
    """What a run should not leave behind."""
    return [line for _, line in ours() if "tokenmill" in line or "StreamActor" in line]


def environment(url: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    return kept | {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_raylet_start_wait_time_s": "180",  # on a machine that is busy
    }


def start(*arguments: object, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [*CLI, *map(str, arguments)], env=env, stdout=out, stderr=out, start_new_session=True
        )


def call(*arguments: object, env: dict[str, str], timeout: float = 300) -> tuple[int, str]:
    """Exit code and all that was said."""
    done = subprocess.run(
        [*CLI, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=timeout
    )
    return done.returncode, done.stdout + done.stderr


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
