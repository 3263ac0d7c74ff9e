"""The main job over videos through the command line: run, verify, read, decode (G1, G3, G6)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'tokenmill[video]'")

import tokenmill
from tests.workers.media.made import video
from tests.workers.vidtok.vectors import weights_file
from tokenmill.store.access import Access
from tokenmill.store.ledger import Ledger
from tokenmill.store.verify import verify
from tokenmill.workers.media.video import VideoReader

JOB = """
name: clips
store: tokens
pipelines:
  clips:
    source: {{uri: in, format: files, clips: {{field: mp4, frames: 17, size: [32, 48]}}}}
    streams:
      video:
        tokenizer: vidtok
        checkpoint: {ids}
        config: {{size: [32, 48], device: cpu}}
  whole:
    source: {{uri: in, format: files}}
    streams:
      latents:
        field: mp4
        tokenizer: vidtok:kl_causal_288_8chn_v1_1
        checkpoint: {latents}
        config: {{size: [32, 48], device: cpu}}
"""


def cli(*arguments: object, expect: int = 0) -> str:
    code = "from tokenmill.pipelines.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "in").mkdir()
    (folder / "in" / "a.mp4").write_bytes(video(frames=40))
    (folder / "in" / "b.mp4").write_bytes(b"no video")
    files = {
        "ids": weights_file("v1_1_fsq_causal_488_32768"),
        "latents": weights_file("v1_1_kl_causal_288_8chn"),
    }
    (folder / "job.yaml").write_text(JOB.format(**files))
    return folder


def test_run_verify_read_and_decode(store: Path) -> None:
    job, tokens = store / "job.yaml", store / "tokens"
    # one of four samples is no video: more than the five in a hundred tolerated
    cli("run", job, "--executor", "local", "--workers", "1", expect=1)
    assert "Nothing new" in cli("run", job, "--executor", "local")  # G3
    access = Access(str(tokens))
    assert verify(access, Ledger.open(access)).ok

    rows = {row.key: row for row in tokenmill.open(str(tokens))}
    clip = rows["a@0.680-1.360"]
    assert clip.span == "0.680/1.360" and clip.shape("video") == (5, 4, 6)
    assert clip.decode("video").shape == (17, 32, 48, 3)
    whole = rows["a"]
    latents = whole["latents"]
    assert latents is not None and latents.dtype == np.float32
    assert whole.shape("latents") == (21, 4, 6, 8)  # 40 frames, padded to 41
    assert whole.decode("latents").shape == (40, 32, 48, 3)
    refused = cli("quarantine", tokens, "--rows", "--format", "json")
    assert {row["reason"] for row in json.loads(refused)} == {"not-video"}

    out = store / "clip.mp4"
    cli("decode", tokens, "--key", clip.key, "--stream", "video", "-o", out, "--compare")
    with VideoReader(out) as opened:
        assert (opened.facts.height, opened.facts.width) == (32, 48 + 8 + 48)
        assert len(list(opened.frames())) == 17

    # latents that are no numbers do not pass for good ones
    (shard,) = (tokens / "shards" / "whole" / "latents").glob("*.arrow")
    data = bytearray(shard.read_bytes())
    at = data.index(latents[:16].tobytes())
    data[at : at + 4] = np.float32("nan").tobytes()
    shard.write_bytes(data)
    said = [p.what for p in verify(access, Ledger.open(access)).problems]
    assert "1 values are not finite" in said
