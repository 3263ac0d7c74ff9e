"""By hand: `PYTHONPATH=.:tests python -m sim --schedules 100000`, or `--seed N` to look at one."""

from __future__ import annotations

import argparse
import sys

from sim.many import explain, many


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=None, help="processes; all cores by default")
    parser.add_argument("--seed", type=int, default=None, help="replay and shrink this one")
    asked = parser.parse_args()
    if asked.seed is not None:
        text = explain(asked.seed)
        print(text)
        return int("everything held" not in text)
    summary = many(asked.first, asked.schedules, jobs=asked.jobs)
    print(summary)
    for seed, error in list(summary.failed.items())[:5]:
        print(f"seed {seed}: {error}")
    return int(bool(summary.failed))


if __name__ == "__main__":
    sys.exit(main())
