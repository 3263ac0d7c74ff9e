"""Planning many inputs: seconds and peak memory, before and after they are covered.

    python benchmarks/plan.py --inputs 10000 100000

Makes so many one-line files, plans them, tokenizes them with `tokenmill run --executor local`,
plans again against their full coverage, touches one in a hundred and plans once more. Every figure
is of a process of its own; `base` is that process with everything imported and nothing listed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
JOB = """\
name: planning
store: store
pipelines:
  text:
    source: {uri: files, format: text}
    streams:
      text: {tokenizer: bpe, checkpoint: tokenizer.json}
"""
PER_FOLDER = 1000


def make(folder: Path, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(count):
        inside = folder / "files" / f"{number // PER_FOLDER:04d}"
        if number % PER_FOLDER == 0:
            inside.mkdir(parents=True)
        (inside / f"{number % PER_FOLDER:03d}.txt").write_text(f"the sample of number {number}\n")
    (folder / "job.yaml").write_text(JOB)
    _tokenmill(folder, "tokenizers", "fit", "bpe", "--job", "job.yaml", "--out", "tokenizer.json",
               "--set", "vocab_size=300")  # fmt: skip


def _tokenmill(folder: Path, *arguments: str) -> None:
    main = "from tokenmill.pipelines.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", main, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def stage(folder: str) -> dict[str, float]:
    """List, read the coverage, plan: in this process, which is a fresh one."""
    from tokenmill.pipelines.plan import plan  # noqa: PLC0415 - the parent needs none of it
    from tokenmill.pipelines.session import Options, Session, covered, load_job  # noqa: PLC0415

    session = Session(load_job(f"{folder}/job.yaml"), Options(executor="local"))
    base = _peak()
    clock = [time.perf_counter()]
    session.list()
    clock.append(time.perf_counter())
    ledger = session.existing_ledger()
    coverage = covered(ledger, "text") if ledger else {}
    clock.append(time.perf_counter())
    cells = coverage.get("text", ())
    made = plan(
        "text",
        session.inputs["text"],
        {"text": cells[0].recipe if cells else "0" * 64},
        coverage,
        unit_bytes=64 << 20,
        unit_inputs=4096,
        splittable=session.sources["text"].splittable,
    )
    clock.append(time.perf_counter())
    listed, read, planned = (b - a for a, b in pairwise(clock))
    return {
        "inputs": made.inputs,
        "tasks": len(made.tasks),
        "list_s": round(listed, 2),
        "coverage_s": round(read, 2),
        "plan_s": round(planned, 2),
        "base_mib": base,
        "peak_mib": _peak(),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _in_its_own(folder: Path) -> dict[str, float]:
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "plan.py"), "--stage", str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default="/tmp/tokenmill-bench/plan")
    parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(stage(options.stage)))
        return
    print(json.dumps({"machine": measure.machine(), "load": measure.load()}), flush=True)
    folder = Path(options.folder)
    for count in options.inputs:
        make(folder, count)
        _rounds("nothing covered", folder, options.rounds)
        began = time.perf_counter()
        _tokenmill(folder, "run", "job.yaml", "--executor", "local")
        print(json.dumps({"run_s": round(time.perf_counter() - began, 1)}), flush=True)
        _rounds("all covered", folder, options.rounds)
        for path in sorted((folder / "files").rglob("*.txt"))[::100]:
            path.write_text("another text\n")
        _rounds("one in a hundred changed", folder, options.rounds)
    shutil.rmtree(folder, ignore_errors=True)


def _rounds(what: str, folder: Path, rounds: int) -> None:
    found = [_in_its_own(folder) for _ in range(rounds)]
    best = {key: min(each[key] for each in found) for key in found[0]}
    print(json.dumps({"state": what, **best, "rounds": rounds}), flush=True)


if __name__ == "__main__":
    main()
