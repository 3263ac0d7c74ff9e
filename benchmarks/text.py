"""Text end to end: tokens/s of `tokenmill run` against bare loops and datatrove, paired in one run.

    python benchmarks/text.py --pairs 5 --datatrove PYTHON

PYTHON is an interpreter of an environment with datatrove (`pip install datatrove==0.10.1`). Every
contender runs as a whole command on a small and on a large corpus; its rate is the slope between
the two, which leaves start-up out; start-up is the small run's wall time minus what the slope says
its tokens take. The slow contenders get a tenth of the corpus: a slope does not depend on it. All
contenders must make the same number of tokens of the same corpus. `-plain` writes raw ids as the
bare loop does (`encoding: plain`); without it text is compressed, the default.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

import corpus
import measure

HERE = Path(__file__).resolve().parent
FAST = (
    "tokenmill-local",
    "tokenmill-ray",
    "tokenmill-local-plain",
    "tokenmill-ray-plain",
    "bare-fast",
)
SLOW = ("bare-reference", "datatrove")
JOB = """\
name: benchmark
store: {store}
pipelines:
  text:
    source: {{uri: {source}, format: parquet}}
    streams:
      text: {{tokenizer: bpe, checkpoint: {tokenizer}, field: text, encoding: {encoding}}}
"""


def vocabulary(folder: Path, files: list[Path]) -> Path:
    """A byte-level vocabulary of 32,000, learned from the corpus's first file."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - beside its only use

    from tokenmill.workers.tokenizers.bpe import BpeTokenizer  # noqa: PLC0415

    path = folder / "tokenizer.json"
    if not path.exists():
        texts = pq.read_table(files[0], columns=["text"])["text"].to_pylist()
        BpeTokenizer.fit(({"text": t} for t in texts), str(path), {"vocab_size": 32_000})
    return path


def once(name: str, source: Path, folder: Path, tokenizer: Path, python: str) -> measure.Cost:
    """One whole run; `out` of the answer is its token count."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if not name.startswith("tokenmill"):
        interpreter = python if name == "datatrove" else sys.executable
        command = [interpreter, str(HERE / "contenders.py"), name]
        return measure.run([*command, str(source), str(out), str(tokenizer)])
    out.mkdir()
    job = out / "job.yaml"
    executor, _, plain = name.removeprefix("tokenmill-").partition("-")
    job.write_text(
        JOB.format(
            store=out / "store", source=source, tokenizer=tokenizer, encoding=plain or "auto"
        )
    )
    main = "from tokenmill.pipelines.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "RAY_USAGE_STATS_ENABLED": "0"}
    cost = measure.run([sys.executable, "-c", main, "run", str(job), "--executor", executor], env)
    return measure.Cost(
        wall=cost.wall, cpu=cost.cpu, peak=cost.peak, out=str(tokens(out / "store"))
    )


def tokens(store: Path) -> int:
    import tokenmill  # noqa: PLC0415 - not in the measured processes

    table = tokenmill.open(str(store)).sql("select sum(tokens) as n from shards")
    return int(table["n"][0].as_py())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--small", type=float, default=400e6, help="bytes of text")
    parser.add_argument("--large", type=float, default=2e9)
    parser.add_argument("--slow-part", type=float, default=0.1, help="of it, for the slow ones")
    parser.add_argument("--datatrove", default="", help="an interpreter that has it")
    parser.add_argument("--folder", default="/tmp/tokenmill-bench", help="about 3 GB")
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    folder = Path(options.folder)
    files = corpus.base(folder / "base")
    tokenizer = vocabulary(folder, files)
    places: dict[tuple[bool, str], Path] = {}
    for slow, part in ((False, 1.0), (True, options.slow_part)):
        for size, of in (("small", options.small), ("large", options.large)):
            where = folder / f"{size}{'-slow' if slow else ''}"
            places[slow, size] = corpus.repeated(where, int(of * part), files)
    names = [n for n in (*FAST, *SLOW) if not options.only or n in options.only]
    if not options.datatrove:
        names = [n for n in names if n != "datatrove"]
    print(json.dumps({"machine": measure.machine(), "load": measure.load()}), flush=True)
    found: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    made: dict[Path, set[int]] = {}
    for pair in range(options.pairs):
        for name in names[pair % len(names) :] + names[: pair % len(names)]:
            costs, counts = {}, {}
            for size in ("small", "large"):
                source = places[name in SLOW, size]
                costs[size] = once(name, source, folder, tokenizer, options.datatrove)
                counts[size] = int(costs[size].out)
                made.setdefault(source, set()).add(counts[size])
            found[name].append(_figures(costs, counts))
            print(json.dumps({"pair": pair, "name": name, **found[name][-1]}), flush=True)
    for source, different in made.items():
        if len(different) > 1:
            raise SystemExit(f"contenders disagree on {source}: {sorted(different)} tokens")
    _report(found)


def _figures(costs: dict[str, measure.Cost], counts: dict[str, int]) -> dict[str, float]:
    small, large = costs["small"], costs["large"]
    more = counts["large"] - counts["small"]
    rate = more / (large.wall - small.wall)
    return {
        "rate": round(rate),
        "cpu_rate": round(more / (large.cpu - small.cpu)),
        "start": round(small.wall - counts["small"] / rate, 2),
        "whole": round(counts["large"] / large.wall),
        "large_wall": round(large.wall, 2),
        "large_cpu": round(large.cpu, 2),
        "peak_mib": large.peak >> 20,
        "load": round(measure.load(), 1),
    }


def _report(found: dict[str, list[dict[str, float]]]) -> None:
    for name, figures in found.items():
        rate = statistics.median(f["rate"] for f in figures) / 1e6
        cpu = statistics.median(f["cpu_rate"] for f in figures) / 1e6
        start = statistics.median(f["start"] for f in figures)
        print(f"{name:16} {rate:6.2f} M tokens/s  {cpu:6.2f} M per CPU-s  start {start:.1f} s")
    for name in [n for n in found if n.startswith("tokenmill")]:
        for peer in ("bare-fast", *SLOW):
            if found.get(name) and found.get(peer):
                pairs = list(zip(found[name], found[peer], strict=True))
                for what in ("rate", "cpu_rate") + (("whole",) if peer == "bare-fast" else ()):
                    ratio = measure.spread([a[what] / b[what] for a, b in pairs])
                    print(f"{name} / {peer}, {what}: {ratio}")


if __name__ == "__main__":
    main()
