"""A Ray cluster of several nodes on one machine, driven through pipes; `python -m` runs it.

Commands on stdin, an answer a line: `add CPUS GPUS LABELS-AS-JSON` -> node id, `kill ID`,
`drain ID SECONDS`, `end`. The first line it writes is the cluster's address.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Nodes:
    """The other end of the pipes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise RuntimeError("the cluster ended")

    def ask(self, *words: object) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._read()

    def add(self, cpus: int, gpus: int = 0, **labels: str) -> str:
        return self.ask("add", cpus, gpus, json.dumps(labels, separators=(",", ":")))


@contextmanager
def cluster() -> Iterator[Nodes]:
    """A head without CPUs; gone with all its nodes when left."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipelines.nodes"],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield Nodes(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    import ray  # noqa: PLC0415 - only in the process of its own
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - as above

    store = 100 << 20  # the least that Ray takes is about 75 MiB
    # short: Ray's socket paths must stay below 108 bytes
    folder = tempfile.mkdtemp(prefix="tm-", dir="/tmp")
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": store,
            "include_dashboard": False,
            "temp_dir": folder,
        },
    )
    nodes: dict[str, Any] = {}
    print(f"> {made.address}", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        answer = "ok"
        if word == "add":
            node = made.add_node(
                num_cpus=int(rest[0]),
                num_gpus=int(rest[1]),
                labels=json.loads(rest[2]),
                object_store_memory=store,
            )
            nodes[node.node_id] = node
            answer = node.node_id
        elif word == "kill":
            made.remove_node(nodes.pop(rest[0]), allow_graceful=False)
        elif word == "drain":
            done = subprocess.run(
                [str(Path(sys.executable).with_name("ray")), "drain-node", "--address",
                 made.address, "--node-id", rest[0], "--reason", "DRAIN_NODE_REASON_PREEMPTION",
                 "--reason-message", "a test", "--deadline-remaining-seconds", rest[1]],
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                answer = f"refused: {done.stderr[-300:]!r}"
        elif word == "end":
            break
        print(f"> {answer}", flush=True)
    made.shutdown()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
