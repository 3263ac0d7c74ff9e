"""`make demo`: the standard library's sources become committed token shards, on Ray."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
TOKENMILL = str(Path(sys.executable).parent / "tokenmill")

JOB = f"""\
# Written by `make demo`: the Python standard library, one sample per file.
name: demo
store: tokens
pipelines:
  python:
    source:
      uri: {sysconfig.get_path("stdlib")!r}
      format: text
      include: ["**/*.py"]
      exclude: ["**/site-packages/**", "site-packages/**"]
    streams:
      text: {{tokenizer: bpe, checkpoint: tokenizer.json}}
"""


def main() -> int:
    DEMO.mkdir(exist_ok=True)
    job = DEMO / "job.yaml"
    job.write_text(JOB, encoding="utf-8")
    vocabulary = DEMO / "tokenizer.json"
    if not vocabulary.exists():
        print("learning a vocabulary of 8,000 from the standard library ...", flush=True)
        fit = [TOKENMILL, "tokenizers", "fit", "bpe", "--job", str(job), "--out", str(vocabulary)]
        subprocess.run([*fit, "--set", "vocab_size=8000"], check=True, stdout=subprocess.DEVNULL)
    print(f"tokenmill run {job.relative_to(ROOT)}", flush=True)
    return subprocess.run([TOKENMILL, "run", str(job)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
