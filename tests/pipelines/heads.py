"""A real Ray head of a test's own: unusual ports, its own folder, an explicit token."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 90.0
_PORTS = (
    "--port",
    "--dashboard-port",
    "--ray-client-server-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)


@dataclass(frozen=True, kw_only=True)
class Head:
    address: str  # of its dashboard
    gcs: str  # host:port, for `--address` of a node or driver
    metrics: int
    token: str
    folder: Path
    pid: int


def free_ports(count: int) -> list[int]:
    """Distinct ports that are free now and outside Ray's default range of worker ports."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def running_head(
    *arguments: str, token: str = "", autoscaler: dict[str, Any] | None = None
) -> Iterator[Head]:
    """`ray start --head` with its dashboard; gone, with its folder, when left.

    autoscaler: node types, of which Ray's own autoscaler starts fake nodes on this machine.
    """
    # short: Ray's socket paths must stay below 108 bytes
    folder = Path(tempfile.mkdtemp(prefix="tm-", dir="/tmp"))
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    beside = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{beside}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "500",  # ten seconds otherwise
        "RAY_AUTH_MODE": "token" if token else "disabled",
        "RAY_AUTH_TOKEN": token,
    }
    command = [str(Path(beside) / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"{name}={port}" for name, port in ports.items()]
    command += ["--dashboard-host=127.0.0.1", f"--temp-dir={folder / 'ray'}"]
    command += ["--object-store-memory=134217728", *arguments]
    if autoscaler is not None:
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(_autoscaler(autoscaler, ports["--port"])))
        command += [f"--autoscaling-config={config}"]
        environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, cwd=folder, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{ports['--dashboard-port']}"
        _await(address, process, log)
        yield Head(
            address=address,
            gcs=f"{_own_address(log)}:{ports['--port']}",
            metrics=ports["--metrics-export-port"],
            token=token,
            folder=folder,
            pid=process.pid,
        )
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaler(types: dict[str, Any], port: int) -> dict[str, Any]:
    """A configuration for Ray's provider of fake nodes: processes of this machine."""
    lists = ("initialization_commands", "setup_commands", "head_setup_commands",
             "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
             "cluster_synced_files", "rsync_exclude", "rsync_filter")  # fmt: skip
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "test",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
            "disable_node_updaters": True,
        },
        "available_node_types": {"ray.head.default": head, **types},
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=2):
                return
        except urllib.error.HTTPError:  # it answers, and asks for the token
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no Ray head:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.2)


def _own_address(log: Path) -> str:
    """The address that Ray chose for the node: forcing 127.0.0.1 hangs on some machines."""
    for line in log.read_text(errors="replace").splitlines():
        if "Local node IP" in line:
            return line.rpartition(":")[2].replace("\x1b[1m", "").replace("\x1b[22m", "").strip()
    return "127.0.0.1"


def _end(process: subprocess.Popen[bytes]) -> None:
    """`ray start --block` takes its children along on SIGTERM; its group is what is left."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
