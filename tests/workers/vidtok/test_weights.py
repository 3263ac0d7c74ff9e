"""Checkpoints: what loads, what is dropped, what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.vidtok.vectors import model_of, variant_of, weights_file
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.vidtok.model import VidTok
from tokenmill.workers.tokenizers.vidtok.variants import VARIANTS
from tokenmill.workers.tokenizers.vidtok.weights import card_of, load_model, save, space_of

CASE = "v1_1_fsq_causal_888_32768"
VARIANT = VARIANTS["fsq_causal_888_32768_v1_1"]


def _load(path: Path) -> VidTok:
    return load_model(path, str(path), VARIANT)


@pytest.mark.parametrize("nested", [True, False])
def test_official_checkpoint_loads_without_its_loss_keys(tmp_path: Path, nested: bool) -> None:
    weights = load_file(weights_file(CASE))
    named = {k.replace("encoder.", "encoder._orig_mod."): v for k, v in weights.items()}
    named |= {"loss.logvar": torch.zeros(()), "loss.discriminator.n": torch.zeros((), dtype=int)}  # type: ignore[call-overload]
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": named, "epoch": 3} if nested else named, path)
    assert space_of(_load(path)) == space_of(model_of(CASE))


def test_checkpoint_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"encoder.x": Program()}}, path)
    with pytest.raises(TokenizerError, match="cannot be read"):
        _load(path)
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Program()))
    with pytest.raises(TokenizerError, match="cannot be read"):
        _load(tmp_path / "bare.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
    with pytest.raises(TokenizerError, match="cannot be read"):
        _load(path)


def test_missing_strange_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    weights = load_file(weights_file(CASE))
    path = tmp_path / "m.safetensors"
    save_file({k: v for k, v in weights.items() if k != "decoder.conv_out.conv.bias"}, path)
    with pytest.raises(TokenizerError, match=r"decoder\.conv_out\.conv\.bias"):
        _load(path)
    save_file(weights | {"classifier.weight": torch.zeros(1)}, path)
    with pytest.raises(TokenizerError, match=r"classifier\.weight"):
        _load(path)
    path.write_bytes(b"\x10")
    with pytest.raises(TokenizerError, match="cannot be read"):
        _load(path)


@pytest.mark.parametrize("by", ["name of the file", "header"])
def test_checkpoint_of_another_version_is_refused_by_name(tmp_path: Path, by: str) -> None:
    """The keys cannot tell: the wrong pairing would load and be wrong in 99 % of ids."""
    model = model_of("v1_0_fsq_causal_488_32768")
    path = tmp_path / "vidtok_fsq_causal_488_32768.ckpt"
    if by == "header":
        path = tmp_path / "mine.safetensors"
        save(model, path)
    else:
        torch.save(model.state_dict(), path)
    with pytest.raises(TokenizerError, match=r"fsq_causal_488_32768, the job says .*_v1_1"):
        load_model(path, str(path), VARIANTS["fsq_causal_488_32768_v1_1"])
    load_model(path, str(path), VARIANTS["fsq_causal_488_32768"])


def test_saved_model_and_card_come_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save(model_of(CASE), path, {"psnr": 20.5})
    assert space_of(_load(path)) == space_of(model_of(CASE))
    assert card_of(path) == {"psnr": 20.5} and card_of(weights_file(CASE)) == {}


def test_space_tells_weights_and_arithmetic_apart() -> None:
    one = model_of("v1_1_fsq_causal_488_32768")
    other = VidTok(variant_of("v1_0_fsq_causal_488_32768"))
    other.load_state_dict(one.state_dict())
    assert space_of(one) != space_of(other)
    changed = VidTok(one.variant)
    changed.load_state_dict(one.state_dict())
    with torch.no_grad():
        changed.decoder.conv_out.conv.bias[0] += 1  # type: ignore[union-attr,operator,index]
    assert space_of(changed) != space_of(one)
