"""`tokenmill decode`: a store's tokens back as files, on a real run of pictures and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import tokenmill
from tests.pipelines.test_run import LOCAL, cli
from tests.workers import bpe_files
from tests.workers.bpe_image.hostile import hostile
from tests.workers.bpe_image.vectors import weights
from tokenmill.pipelines.cli import app
from tokenmill.pipelines.decode import Wanted, decode_sample, write
from tokenmill.schemas.errors import JobError, SourceError, TokenizerError
from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene

JOB = """\
name: pictures
store: store
policy: {{quarantine_share: 1}}
pipelines:
  pairs:
    source: {{uri: in, format: files}}
    streams:
      image:
        {{tokenizer: bpe-image, checkpoint: {vq}, fields: {{image: png}}, config: {{size: 64}}}}
      moving:
        {{tokenizer: bpe-image, checkpoint: {vq}, field: gif, config: {{size: 32, frames: all}}}}
      caption: {{tokenizer: bpe, checkpoint: {bpe}, field: txt}}
"""
CAPTION = "waves in the sun – 天地"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with captions, an animation, and hostile files, tokenized by the local
    executor."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "in").mkdir()
    named = {
        "wave.png": saved(scene(100, 70, 1), "PNG"),
        "wave.txt": CAPTION.encode(),
        "tall.png": saved(scene(50, 90, 2), "PNG"),
        "clip.gif": saved(scene(40, 40, 3), "GIF", save_all=True, append_images=[scene(40, 40, 4)]),
        "bomb.png": hostile()["bomb.png"][0],
        "bomb.txt": b"a bomb",
    }
    for name, raw in named.items():
        (folder / "in" / name).write_bytes(raw)
    job = folder / "job.yaml"
    job.write_text(JOB.format(vq=weights("taming_attn_tiny"), bpe=bpe_files.fitted()))
    cli("run", job, *LOCAL)
    cli("verify", folder / "store")
    return folder / "store"


def test_pictures_and_captions_stand_in_one_sample(store: Path) -> None:
    """G1, G8: the hostile picture has a reason, its caption its tokens."""
    rows = {row.key: row for row in tokenmill.open(str(store))}
    assert {key: row.streams for key, row in rows.items()} == {
        "bomb": ("caption",),
        "clip": ("moving",),
        "tall": ("image",),
        "wave": ("caption", "image"),
    }
    assert rows["wave"].shape("image") == (32, 32)
    assert rows["clip"].shape("moving") == (2, 16, 16)
    assert rows["wave"].decode("caption") == CAPTION
    assert "too-many-pixels" in cli("quarantine", store)


def test_a_picture_comes_back_as_a_file(store: Path, tmp_path: Path) -> None:
    said = cli("decode", store, "--key", "wave", "-o", tmp_path / "out.png")
    assert "stream image, 32x32 tokens" in said
    with Image.open(tmp_path / "out.png") as image:
        found = np.asarray(image)
    [row] = [r for r in tokenmill.open(str(store)) if r.key == "wave"]
    np.testing.assert_array_equal(found, row.decode("image"))


def test_compare_puts_what_the_encoder_saw_beside_it(store: Path) -> None:
    wanted = Wanted(store=str(store), key="tall")
    [one] = decode_sample(wanted, suffix=".png", compare=True)
    [alone] = decode_sample(wanted, suffix=".png")
    assert one.media.shape == (64, 64 + 8 + 64, 3)
    np.testing.assert_array_equal(one.media[:, 72:], alone.media)
    picture = scene(50, 90, 2)
    crop = picture.resize((64, round(64 / 50 * 90)), Image.Resampling.LANCZOS)
    top = (crop.height - 64) // 2
    np.testing.assert_array_equal(one.media[:, :64], np.asarray(crop)[top : top + 64])


def test_texts_are_printed_and_compared(store: Path) -> None:
    done = CliRunner().invoke(app, ["decode", str(store), "--key", "wave"])
    assert done.stdout == CAPTION + "\n"
    [one] = decode_sample(Wanted(store=str(store), key="wave"), suffix=".txt", compare=True)
    assert one.media == f"{CAPTION}\n--- decoded ---\n{CAPTION}"


def test_an_animation_is_written_with_its_frames(store: Path, tmp_path: Path) -> None:
    wanted = Wanted(store=str(store), key="clip")
    [one] = decode_sample(wanted, suffix=".gif", compare=True)
    write(one, tmp_path / "out.gif")
    with Image.open(tmp_path / "out.gif") as image:
        assert (image.n_frames, image.size) == (2, (32 + 8 + 32, 32))  # type: ignore[attr-defined]
    [one] = decode_sample(wanted, suffix=".png")
    write(one, tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as image:
        assert image.size == (72, 32)


def test_a_sample_by_its_id(store: Path) -> None:
    [row] = [r for r in tokenmill.open(str(store)) if r.key == "tall"]
    [one] = decode_sample(Wanted(store=str(store), id=row.id.hex()), suffix=".png")
    assert one.key == "tall"


@pytest.mark.parametrize(
    ("more", "suffix", "said"),
    [
        ({"key": "waves"}, ".png", "did you mean 'wave'"),
        ({"key": "bomb"}, ".png", "0 streams of 'bomb' can be a .png file"),
        ({"key": "bomb", "stream": "image"}, ".png", "no tokens in stream 'image'"),
        ({"key": "tall"}, None, "text on the screen"),
        ({"key": "tall"}, ".xyz", "can be a .xyz file"),
    ],
)
def test_what_cannot_be_shown_is_said(
    store: Path, more: dict[str, str], suffix: str | None, said: str
) -> None:
    with pytest.raises(JobError, match=said):
        decode_sample(Wanted(store=str(store), **more), suffix=suffix)


def test_nothing_is_left_behind_by_a_folder_that_is_not_there(store: Path, tmp_path: Path) -> None:
    [one] = decode_sample(Wanted(store=str(store), key="tall"), suffix=".png")
    with pytest.raises(JobError, match="cannot be written"):
        write(one, tmp_path / "no" / "out.png")
    with pytest.raises(JobError, match="which sample"):
        CliRunner().invoke(app, ["decode", str(store)], catch_exceptions=False)


def test_a_changed_original_is_not_shown_as_if_it_were_the_one(store: Path) -> None:
    """G7's sibling: last, since it changes the source."""
    picture = store.parent / "in" / "tall.png"
    picture.write_bytes(saved(scene(50, 90, 9), "PNG"))
    with pytest.raises(SourceError):
        decode_sample(Wanted(store=str(store), key="tall"), suffix=".png", compare=True)
    picture.unlink()
    with pytest.raises((SourceError, TokenizerError)):
        decode_sample(Wanted(store=str(store), key="tall"), suffix=".png", compare=True)
