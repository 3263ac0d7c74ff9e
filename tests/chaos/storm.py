"""Chaos on the real parts (G1, G2, G4, G5): `python -m tests.chaos.storm --seconds 240`.

Runs itself in a network and mount namespace of its own. Episode by episode: an empty store, the
same job, random faults while it runs and is run again, then quiet until it ends with 0; verdicts
and ids must equal those of an undisturbed run, `verify` must be clean, `vacuum` must take the
orphans and nothing else, and no process may be left. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import parts
from tests.chaos.proxy import KINDS, Proxy

QUIET_TRIES = 6
INJECT_SECONDS = 120.0  # at most, in one episode
DISK_FILES = 40
RUN = ("--workers", "2")
Verdicts = dict[tuple[str, bytes], tuple[str, str]]  # (stream, sample) -> verdict, ids or reason


def corpus(folder: Path, files: int) -> int:
    """Real text: the standard library's sources, a sample per line, some lines not JSON."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    samples = 0
    folder.mkdir()
    for number in range(files):
        text = sources[number % len(sources)].read_text(encoding="utf-8", errors="replace")
        rows = [json.dumps({"text": f"{number} {line}"}) for line in _lines(text)]
        rows[len(rows) // 2 : len(rows) // 2] = ["not json"]
        (folder / f"{number:04d}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        samples += len(rows)
    return samples


def _lines(text: str) -> list[str]:
    """Without the toy tokenizer's word for filling the disk, which a regular expression holds."""
    return [line for line in text.splitlines() if line and "<fill>" not in line]


def job(store: str, source: str, checkpoint: Path) -> str:
    """Two streams: text, and bytes that go through decode children."""
    toy = "tests.workers.toy:Bytes"
    return f"""
name: chaos
store: {store}
policy: {{quarantine_share: 1, attempts: 20, store_patience: 60}}
pipelines:
  docs:
    source: {{uri: "{source}", format: jsonl, unit_inputs: 2}}
    streams:
      text: {{tokenizer: bpe, checkpoint: {checkpoint}, field: text}}
      raw: {{tokenizer: "{toy}", field: text, config: {{child: true, window: 4096, windows: 64}}}}
"""


def verdicts(store: str) -> tuple[Verdicts, int]:
    """Every verdict of the store, and how many samples stand in it twice."""
    import tokenmill  # noqa: PLC0415 - the environment comes first

    found: Verdicts = {}
    twice = 0
    dataset = tokenmill.open(store)
    reasons = {
        (row["stream"], bytes.fromhex(row["sample"])): row["reason"]
        for row in dataset.sql("select stream, sample, reason from quarantine").to_pylist()
    }
    for row in dataset:
        for stream in ("text", "raw"):
            name = (stream, row.id)
            twice += name in found
            ids = row[stream]
            if ids is not None:
                found[name] = ("tokens", hashlib.sha256(ids.tobytes()).hexdigest())
            else:
                found[name] = (str(row.verdict(stream)), reasons.get(name, ""))
    return found, twice


class Storm:
    """One campaign: its parts, its faults, what it found."""

    def __init__(self, folder: Path, seed: int, files: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.faults: Counter[str] = Counter()
        self.recovery: dict[str, list[float]] = {"worker": [], "driver": []}
        self.server = parts.Server(folder / "s3")
        self.proxy = Proxy(self.server.port, seed)
        self.env = parts.environment(self.proxy.url)
        os.environ.update({k: v for k, v in self.env.items() if k not in os.environ})
        os.environ["AWS_ENDPOINT_URL"] = self.proxy.url
        self.samples = corpus(folder / "in", files)
        self._prepare()
        self.nodes = parts.Nodes(folder, self.env)
        self.log = folder / "runs.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._killed: tuple[str, float, set[int]] | None = None

    def _prepare(self) -> None:
        from tokenmill.store.access import Access  # noqa: PLC0415 - the environment comes first

        there = Access(f"s3://{parts.BUCKET}/in")
        for file in sorted((self.folder / "in").iterdir()):
            there.put(file, file.name)
        self.checkpoint = self.folder / "v.json"
        local = self._job("unused", str(self.folder / "in"))
        self._must("tokenizers", "fit", "bpe", "--job", local, "--out", self.checkpoint,
                   "--set", "vocab_size=1000")  # fmt: skip
        calm = self._job("calm", f"s3://{parts.BUCKET}/in")
        self._must("run", calm, "--executor", "local", *RUN)
        self.calm, twice = verdicts(f"s3://{parts.BUCKET}/calm")
        assert len(self.calm) == 2 * self.samples and not twice, (len(self.calm), self.samples)

    def _job(self, store: str, source: str) -> Path:
        path = self.folder / f"{store}.yaml"
        path.write_text(job(f"s3://{parts.BUCKET}/{store}", source, self.checkpoint))
        return path

    def _must(self, *arguments: object) -> str:
        code, said = parts.call(*arguments, env=self.env)
        if code:
            raise RuntimeError(f"{arguments} ended with {code}:\n{said}")
        return said

    # -- faults ----------------------------------------------------------------------------

    def kinds(self) -> dict[str, Callable[[], bool | None]]:
        """By name; a fault that found nothing to hit returns False."""
        found: dict[str, Callable[[], bool | None]] = {
            "actor": self.kill_actor,
            "child": self.kill_child,
            "node": self.kill_node,
            "driver": self.kill_driver,
            "server": self.kill_server,
        }
        return found | {f"s3 {kind}": lambda kind=kind: self.misbehave(kind) for kind in KINDS}

    def kill_actor(self) -> bool:
        running = parts.encoding()
        victims = [p for p in parts.actors() if p.pid in running] or parts.actors()
        if victims:
            self.random.choice(victims).kill()
            self._killed = self._killed or ("worker", time.monotonic(), running)
        return bool(victims)

    def kill_child(self) -> bool:
        victims = parts.children()
        if victims:
            self.random.choice(victims).kill()
        return bool(victims)

    def kill_node(self) -> None:
        self.nodes.kill_worker_node(self.random.randrange(2))

    def kill_driver(self) -> None:
        if self.process is not None:
            parts.kill(self.process)
            self._killed = ("driver", time.monotonic(), parts.encoding())

    def kill_server(self) -> None:
        self.server.kill()
        time.sleep(self.random.uniform(0.2, 1.5))
        self.server.start()

    def misbehave(self, kind: str) -> None:
        self.proxy.shares = {kind: self.random.choice((0.3, 1.0))}
        time.sleep(self.random.uniform(0.5, 2.0))
        self.proxy.shares = {}

    # -- episodes --------------------------------------------------------------------------

    def episode(self, number: int, seconds: float, gap: float) -> dict[str, Any]:
        store = f"store-{number}"
        path = self._job(store, f"s3://{parts.BUCKET}/in")
        codes: Counter[int] = Counter()
        until = time.monotonic() + min(seconds, INJECT_SECONDS)
        order: list[str] = []
        kinds = self.kinds()
        self.process = self._start(path)
        next_fault = time.monotonic() + self.random.uniform(0.0, gap)
        while time.monotonic() < until:
            self._watch_recovery()
            if self.process.poll() is not None:
                codes[self.process.returncode] += 1
                if self.process.returncode == 0:
                    break
                self.process = self._start(path)
            if time.monotonic() >= next_fault and parts.actors():  # before them nothing is hit
                order = order or self.random.sample(sorted(kinds), len(kinds))
                kind = order.pop()
                if kinds[kind]() is not False:
                    self.faults[kind] += 1
                next_fault = time.monotonic() + self.random.uniform(0.2 * gap, gap)
            time.sleep(0.1)
        codes += self._calm_down(path)
        return self._judge(store, codes)

    def _start(self, path: Path) -> subprocess.Popen[bytes]:
        return parts.start("run", path, "--address", self.nodes.address, *RUN, env=self.env,
                           log=self.log)  # fmt: skip

    def _watch_recovery(self) -> None:
        if self._killed is not None:
            what, since, before = self._killed
            if parts.encoding() - before:
                self.recovery[what].append(round(time.monotonic() - since, 1))
                self._killed = None

    def _calm_down(self, path: Path) -> Counter[int]:
        """No more faults: the very same command, until it ends with 0."""
        codes: Counter[int] = Counter()
        for _ in range(QUIET_TRIES):
            assert self.process is not None
            until = time.monotonic() + 240
            while self.process.poll() is None and time.monotonic() < until:
                self._watch_recovery()
                time.sleep(0.2)
            if self.process.poll() is None:
                raise RuntimeError(f"a run hangs:\n{self.log.read_text()[-3000:]}")
            codes[self.process.returncode] += 1
            if self.process.returncode == 0:
                self._killed = None
                return codes
            self.process = self._start(path)
        raise RuntimeError(f"never ends with 0: {codes}\n{self.log.read_text()[-3000:]}")

    def _judge(self, store: str, codes: Counter[int]) -> dict[str, Any]:
        uri = f"s3://{parts.BUCKET}/{store}"
        found, twice = verdicts(uri)
        lost = len(self.calm.keys() - found.keys())
        other = sum(self.calm.get(name) != verdict for name, verdict in found.items())
        self._must("verify", uri)
        said = json.loads(self._must("vacuum", uri, "--delete", "--grace", "0s", "-f", "json"))
        self._must("verify", uri)
        after, _ = verdicts(uri)
        again = json.loads(self._must("vacuum", uri, "--grace", "0s", "-f", "json"))
        return {
            "runs": {str(code): n for code, n in sorted(codes.items())},
            "checked": len(found),
            "lost": lost,
            "duplicated": twice,
            "different": other + (after != found),
            "orphans": len(said["orphans"]),
            "orphans_left": len(again["orphans"]),
            "processes_left": self._left(),
        }

    def _left(self) -> int:
        """After a moment: a killed driver's actors go when Ray notices."""
        until = time.monotonic() + 20
        while parts.strangers() and time.monotonic() < until:
            time.sleep(0.5)
        return len(parts.strangers())

    def close(self) -> None:
        self.nodes.close()
        self.server.kill()
        self.proxy.shutdown()


def disk_full(folder: Path) -> dict[str, Any]:
    """A store on a disk of 1 MiB: exit 3 and no verdicts of it; with more room all is done."""
    disk = folder / "disk"
    disk.mkdir()
    size = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(size, capture_output=True).returncode:
        return {"skipped": "no mount here"}
    env = parts.environment("http://127.0.0.1:1")
    samples = corpus(folder / "disk-in", DISK_FILES)
    path = folder / "disk.yaml"
    text = job(str(disk / "store"), str(folder / "disk-in"), folder / "v.json")
    path.write_text(text.replace("store_patience: 60", "store_patience: 4"))
    command = ("run", path, "--executor", "local", *RUN)
    try:
        codes = [parts.call(*command, env=env)[0]]
        subprocess.run(["mount", "-o", "remount,size=300m", str(disk)], check=True)
        codes.append(parts.call(*command, env=env)[0])
        verify, _ = parts.call("verify", disk / "store", env=env)
        found, twice = verdicts(str(disk / "store"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    refused = sum(verdict != "tokens" for verdict, _ in found.values())
    return {
        "runs": codes,
        "verify": verify,
        "checked": len(found),
        "duplicated": twice,
        "lost": 2 * samples - len(found),
        "different": refused - 2 * DISK_FILES,  # one line of every file is no JSON
    }


def apart() -> None:
    """Run this very command again in namespaces of its own, where the machine allows it."""
    if os.environ.get("TOKENMILL_CHAOS_APART"):
        parts.loopback_up()
        return
    flags = ["-n", "-m"] if os.geteuid() == 0 else ["-r", "-n", "-m"]
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, *flags, "true"], capture_output=True).returncode:
        return  # Ray's nodes share the machine's loopback then
    command = [unshare, *flags, sys.executable, "-m", "tests.chaos.storm", *sys.argv[1:]]
    os.environ["TOKENMILL_CHAOS_APART"] = "1"
    os.execv(unshare, command)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=240.0, help="of faults, over all")
    options.add_argument("--gap", type=float, default=4.0, help="longest pause between faults")
    options.add_argument("--files", type=int, default=60)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    apart()
    ctypes.CDLL(None).prctl(36, 1)  # orphans become our children: nothing escapes the count
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="tm-chaos-"))
    # or Ray writes its address where other clusters of this machine look for theirs
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        storm = Storm(folder, chosen.seed, chosen.files)
        episodes = []
        try:
            left = chosen.seconds
            while left > 0:
                started = time.monotonic()
                episodes.append(storm.episode(len(episodes), left, chosen.gap))
                left -= max(time.monotonic() - started, 1.0)
            full = disk_full(folder)
        finally:
            storm.close()
        report = {
            "seed": chosen.seed,
            "seconds": round(time.monotonic() - began),
            "faults": dict(sorted(storm.faults.items())),
            "requests_disturbed": dict(sorted(storm.proxy.injected.items())),
            "episodes": episodes,
            "disk_full": full,
            "recovery_seconds": storm.recovery,
            "processes_left": len(parts.strangers()),
        }
        print(json.dumps(report, indent=2))
        return 0 if sound(report) else 1
    finally:
        for process in psutil.Process().children(recursive=True):
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def sound(report: dict[str, Any]) -> bool:
    zero = ("lost", "duplicated", "different", "orphans_left", "processes_left")
    good = all(episode[name] == 0 for episode in report["episodes"] for name in zero)
    full = report["disk_full"]
    if "skipped" not in full:
        good &= full["runs"] == [3, 0] and full["verify"] == 0 and full["lost"] == 0
        good &= full["different"] == 0 and full["duplicated"] == 0
    return bool(good) and report["processes_left"] == 0


if __name__ == "__main__":
    sys.exit(main())
