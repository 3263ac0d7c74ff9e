"""Latents, indices and reconstructions of the reference vectors, from every kind of file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.bpe_image.vectors import DATA, TINY, arrays, key_shapes, weights
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image.exact import exact
from tokenmill.workers.tokenizers.bpe_image.families import recognise
from tokenmill.workers.tokenizers.bpe_image.quantizer import nearest
from tokenmill.workers.tokenizers.bpe_image.vq import empty, load_vq

REAL = sorted(path.stem for path in (DATA / "keys").glob("*.json"))


def indices(path, name="chameleon_tiny"):
    pixels = torch.from_numpy(arrays(name)["pixel_u8"][:1]).float() / 255 * 2 - 1
    with exact(1):
        return load_vq(path, str(path)).model.encode(pixels).numpy()


@pytest.mark.parametrize("name", TINY)
def test_latents_indices_and_reconstructions_are_those_of_the_published_code(name):
    vectors, model = arrays(name), load_vq(weights(name), name).model
    pixels = torch.from_numpy(vectors["pixel_u8"]).float() / 255 * 2 - 1
    with exact(1):
        latents = model.latents(pixels).numpy()
        found = model.encode(pixels).numpy()
        decoded = model.decode(torch.from_numpy(vectors["indices"].astype(np.int64))).numpy()
    np.testing.assert_allclose(latents, vectors["latent"], atol=3e-4)
    assert (found == vectors["indices"]).all()
    np.testing.assert_allclose(decoded[:, :, ::4, ::4], vectors["decoded_every_4th"], atol=5e-4)


@pytest.mark.parametrize("name", REAL)
def test_every_key_of_the_public_checkpoints_has_its_place(name):
    shapes = key_shapes(name)
    found = recognise(shapes, where=name)
    wanted = {key: tuple(tensor.shape) for key, tensor in empty(found.layout).state_dict().items()}
    assert wanted == {key: shapes[own] for key, own in found.names.items()}
    dropped = shapes.keys() - set(found.names.values())
    assert dropped <= {"quantize.codebook_used"}
    assert found.family == ("llamagen" if name.startswith("llamagen") else "taming")
    assert found.layout.factor == (8 if name.endswith("vq8") else 16)


@pytest.mark.parametrize("name", ["chameleon_vqgan", "llamagen_vq16"])
@pytest.mark.parametrize("prefix", ["model.vqmodel.", "gen_vision_model."])
def test_the_tokenizer_is_found_inside_a_whole_model(name, prefix):
    shapes = {prefix + key: shape for key, shape in key_shapes(name).items()}
    shapes |= {"model.embed_tokens.weight": (9, 9), "loss.discriminator.weight": (1,)}
    alone = recognise(key_shapes(name), where=name)
    inside = recognise(shapes, where=name)
    assert inside.layout == alone.layout
    assert inside.names == {key: prefix + own for key, own in alone.names.items()}


def test_an_encode_only_file_gives_the_same_indices_and_space_and_says_that_it_cannot_decode(
    tmp_path,
):
    path = tmp_path / "encoder.safetensors"
    state = load_file(weights("chameleon_tiny"))
    kept = {k: v for k, v in state.items() if "decoder" not in k and "post_quant" not in k}
    save_file({f"model.vqmodel.{k}": v for k, v in kept.items()}, path)
    whole = load_vq(weights("chameleon_tiny"), "whole")
    half = load_vq(path, "half")
    assert half.space == whole.space
    assert (indices(path) == arrays("chameleon_tiny")["indices"][:1]).all()
    with pytest.raises(TokenizerError, match="no decoder"):
        half.model.decode(torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize("container", ["state_dict", "model", "ema", None])
def test_torch_files_are_read_as_tensors_only(tmp_path, container):
    path = tmp_path / "vqgan.ckpt"
    state = dict(load_file(weights("chameleon_tiny")))
    junk = {"loss.perceptual.weight": torch.ones(3)}
    torch.save({container: state | junk, "epoch": 3} if container else state | junk, path)
    assert (indices(path) == arrays("chameleon_tiny")["indices"][:1]).all()


def test_averaged_weights_come_before_plain_ones(tmp_path):
    path = tmp_path / "vq.pt"
    state = load_file(weights("chameleon_tiny"))
    torch.save({"model": {k: v * 0.5 for k, v in state.items()}, "ema": dict(state)}, path)
    assert load_vq(path, "ema").space == load_vq(weights("chameleon_tiny"), "x").space


def test_a_transformers_folder_is_read_through_its_index(tmp_path):
    state = load_file(weights("chameleon_tiny"))
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({f"model.vqmodel.{k}": state[k] for k in keys}, tmp_path / file)
    save_file({"model.vqmodel.quantize.embedding.weight": torch.zeros(2, 2)},
              tmp_path / "stray.safetensors")  # fmt: skip
    weight_map = {f"model.vqmodel.{k}": file for file, keys in halves.items() for k in keys}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert (indices(tmp_path) == arrays("chameleon_tiny")["indices"][:1]).all()
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(TokenizerError, match="outside the folder"):
        load_vq(tmp_path, "folder")


class Evil:
    def __reduce__(self):
        return print, ("run by a pickle",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"model": dict(load_file(weights("taming_attn_tiny"))), "extra": Evil()}, path)
    with pytest.raises(TokenizerError, match="more than tensors"):
        load_vq(path, "evil")
    assert "run by" not in capsys.readouterr().out


def test_torchscript_is_refused_as_a_program(tmp_path):
    path = tmp_path / "model.jit"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(TokenizerError, match="TorchScript"):
        load_vq(path, "jit")


@pytest.mark.parametrize(
    "bytes_", [b"", b"junk" * 100, b"\x10\x00\x00\x00\x00\x00\x00\x00{not json}"]
)
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path, bytes_):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes_)
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_vq(path, "x")


def broken(change):
    state = dict(load_file(weights("taming_attn_tiny")))
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("encoder.mid.attn_1.q.weight"), "no encoder.mid.attn_1.q.weight"),
        (lambda s: s.pop("decoder.conv_out.bias"), "no decoder.conv_out.bias"),
        (lambda s: s.pop("post_quant_conv.weight"), "no post_quant_conv.weight"),
        (lambda s: s.update({"encoder.extra": torch.ones(2)}), "unknown encoder.extra"),
        (lambda s: s.update({"quant_conv.bias": torch.ones(2)}), "quant_conv.bias has the shape"),
        (lambda s: s["quantize.embedding.weight"].fill_(float("nan")), "no finite numbers"),
        (lambda s: s["quantize.embedding.weight"].zero_(), "all zero"),
    ],
)
def test_a_checkpoint_that_is_not_whole_names_what_is_wrong(tmp_path, change, said):
    path = tmp_path / "broken.safetensors"
    save_file(broken(change), path)
    with pytest.raises(TokenizerError, match=said):
        load_vq(path, "broken")


def test_ties_go_to_the_lowest_index_whatever_the_chunk():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    latents = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).T.reshape(1, 2, 1, 2)
    assert nearest(latents, table, normalised=False).tolist() == [[[0, 1]]]
