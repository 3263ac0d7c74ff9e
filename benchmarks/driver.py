"""The driver's memory against the number of samples: it sees units, never samples.

python benchmarks/driver.py --samples 200000 2000000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import measure
import psutil

HERE = Path(__file__).resolve().parent
FILES = 8
JOB = """\
name: driver
store: store
pipelines:
  text:
    source: {uri: in, format: jsonl}
    streams:
      text: {tokenizer: bpe, checkpoint: tokenizer.json, field: text}
"""


def make(folder: Path, samples: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    for number in range(FILES):
        with (folder / "in" / f"{number}.jsonl").open("w") as file:
            for n in range(samples // FILES):
                file.write(json.dumps({"text": f"sample {n} of file {number}, a few words"}) + "\n")
    (folder / "job.yaml").write_text(JOB)


def peak(folder: Path, arguments: list[str]) -> int:
    """Peak resident bytes of the driver process alone."""
    main = "from tokenmill.pipelines.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    quiet = subprocess.DEVNULL
    highest = 0
    with subprocess.Popen(
        [sys.executable, "-c", main, *arguments], cwd=folder, env=env, stdout=quiet, stderr=quiet
    ) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                highest = max(highest, driver.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"tokenmill {' '.join(arguments)} failed")
    return highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, nargs="*", default=[200_000, 2_000_000])
    parser.add_argument("--folder", default="/tmp/tokenmill-bench/driver")
    options = parser.parse_args()
    print(json.dumps({"machine": measure.machine()}))
    folder = Path(options.folder)
    for samples in options.samples:
        make(folder, samples)
        fit = "tokenizers fit bpe --job job.yaml --out tokenizer.json --set vocab_size=300"
        if samples == options.samples[0]:
            peak(folder, fit.split())
            vocabulary = (folder / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").write_bytes(vocabulary)
        for executor in ("local", "ray"):
            shutil.rmtree(folder / "store", ignore_errors=True)
            found = peak(folder, ["run", "job.yaml", "--executor", executor])
            line = {"samples": samples, "executor": executor, "driver_peak_mib": found >> 20}
            print(json.dumps(line), flush=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
