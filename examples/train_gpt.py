"""A small GPT learns captions and pictures from one stream of tokens, on the CPU.

    python examples/train_gpt.py --folder gpt            # pictures, store, 300 steps
    python examples/train_gpt.py --folder gpt --check    # killed at 60 %, resumed, compared

It makes captioned pictures, tokenizes both with `tokenmill run` (text by a vocabulary learnt from
the captions, pictures by examples/palette.py), and trains on a mixture: two thirds captioned
pictures, one third captions alone. The loader's state lies in the checkpoint; killed and started
again, the run gives the same losses, digit by digit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import tokenmill

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"red": (220, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (230,) * 3}
PLACES = {"left": (0, 32), "right": (32, 0), "above": (0, 0), "below": (32, 32)}
LENGTH, BATCH, WIDTH, LAYERS, HEADS = 128, 16, 64, 2, 4
SAVE_EVERY = 20

JOB = """\
name: pictures
store: tokens
pipelines:
  pictures:
    source: {uri: pictures, format: files}
    streams:
      image: {fields: {image: png}, tokenizer: "examples.palette:Palette", output: vq}
      text: {field: txt, tokenizer: bpe, checkpoint: tokenizer.json}
"""


# -- the store


def make_store(folder: Path, count: int) -> str:
    """Captioned pictures, tokenized. -> the store"""
    if not (folder / "tokens" / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "pictures").mkdir(parents=True)
        state = np.random.RandomState(0)
        for number in range(count):
            _picture(folder / "pictures" / f"{number:05d}", state)
        (folder / "job.yaml").write_text(JOB)
        fit = [
            "tokenizers",
            "fit",
            "bpe",
            "--job",
            "job.yaml",
            "--out",
            "tokenizer.json",
            "--field",
            "txt",
        ]
        _tokenmill(folder, *fit, "--set", "vocab_size=300")
        _tokenmill(folder, "run", "job.yaml", "--executor", "local")
        (folder / "tokens" / "done").touch()
    return str(folder / "tokens")


def _picture(stem: Path, state: np.random.RandomState) -> None:
    colour, ground = state.permutation(list(COLOURS))[:2]
    place = str(state.permutation(list(PLACES))[0])
    pixels = np.empty((64, 64, 3), np.uint8)
    pixels[:] = COLOURS[ground]
    x, y = PLACES[place]
    pixels[y : y + 32, x : x + 32] = COLOURS[colour]
    noisy = np.clip(pixels + state.normal(0, 9, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(stem.with_suffix(".png"))
    stem.with_suffix(".txt").write_text(f"a {colour} square {place} on {ground} ground")


def _tokenmill(folder: Path, *arguments: str) -> None:
    code = "from tokenmill.pipelines.cli import main; main()"
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        check=True,
    )


# -- the model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        split = self.project(self.before(x)).view(rows, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.after(x))))


class Gpt(nn.Module):
    """Tokens, their place in the document and their modality in; logits out."""

    def __init__(self, vocabulary: int, modalities: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.place, self.kind = nn.Embedding(LENGTH, WIDTH), nn.Embedding(modalities, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)

    def forward(self, batch: Any) -> Tensor:
        # documents of a sequence do not see each other: positions begin anew in each
        document = (batch.positions == 0).cumsum(dim=1)
        same = document[:, :, None] == document[:, None, :]
        mask = (same & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())[:, None]
        x = self.token(batch.tokens) + self.place(batch.positions) + self.kind(batch.modality.int())
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


# -- the run


def make_loader(store: str, steps: int) -> Any:
    dataset = tokenmill.open(store)
    return dataset.loader(
        parts=[
            tokenmill.Part(streams=("text", "image"), weight=2, name="pictures"),
            tokenmill.Part(streams="text", weight=1, name="captions"),
        ],
        batch=BATCH,
        sequence=LENGTH,
        packing="whole",
        vocabulary=dataset.vocabulary(["text", "image"]),
        eos="<|eos|>",
        seed=1,
        steps=steps,
        tensors="torch",
        fields=("positions", "labels", "modality"),
    )


def train(store: str, run: Path, steps: int, kill_at: int | None) -> None:
    """Train to the last step, from the run's checkpoint if there is one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loader = make_loader(store, steps)
    model = Gpt(loader.vocabulary.size, len(loader.codes) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    run.mkdir(parents=True, exist_ok=True)
    saved = run / "checkpoint.pt"
    if saved.exists():
        found = torch.load(saved, weights_only=True)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        loader.load_state_dict(json.loads(found["loader"]))
    with (run / "losses.jsonl").open("a") as log:
        for batch in loader:
            logits = model(batch)
            loss = functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            log.write(json.dumps({"step": batch.step, "loss": loss.item()}) + "\n")
            log.flush()
            if batch.step % 50 == 0:
                print(f"step {batch.step}: loss {loss.item():.4f}", flush=True)
            if (batch.step + 1) % SAVE_EVERY == 0:
                _save(saved, model, optimizer, loader.state_dict())
            if batch.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def _save(path: Path, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    found = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loader": json.dumps(state),
    }
    torch.save(found, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def losses(run: Path) -> dict[int, float]:
    """By step; of a step that was done twice, the later."""
    rows = [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def check(folder: Path, store: str, steps: int) -> int:
    """One run undisturbed, one killed with SIGKILL and started again: are the losses the same?"""
    for name in ("whole", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    arguments = [sys.executable, __file__, "--folder", str(folder), "--steps", str(steps)]
    subprocess.run([*arguments, "--run", "whole"], check=True)
    kill = [*arguments, "--run", "killed", "--kill-at", str(int(steps * 0.6))]
    killed = subprocess.run(kill, check=False)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([*arguments, "--run", "killed"], check=True)
    whole, again = losses(folder / "whole"), losses(folder / "killed")
    first, last = (
        np.mean([whole[s] for s in part]) for part in (range(10), range(steps - 10, steps))
    )
    print(f"{steps} steps: loss {first:.3f} to {last:.3f}; killed and resumed: ", end="")
    print("the same losses" if whole == again else "OTHER LOSSES")
    return int(whole != again or last >= first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "gpt")
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--run", default="run", help="name of the folder of checkpoint and losses")
    parser.add_argument("--kill-at", type=int, help="SIGKILL after this step")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    store = make_store(folder, asked.pictures)
    if asked.check:
        return check(folder, store, asked.steps)
    train(store, folder / asked.run, asked.steps, asked.kill_at)
    return 0


if __name__ == "__main__":
    sys.exit(main())
