"""Checkpoints of other families are refused by name, from their keys alone."""

from __future__ import annotations

import pytest

from tests.workers.bpe_image.vectors import key_shapes
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image.families import recognise

BOOK = {"quantize.embedding.weight": (64, 8)}
STEM = {"encoder.down.0.block.0.conv1.weight": (32, 32, 3, 3)}
FOREIGN = {
    "VAR": {**BOOK, **STEM, "quantize.quant_resi.qresi_ls.0.weight": (8, 8, 3, 3)},
    "diffusers": {**BOOK, "encoder.down_blocks.0.resnets.0.conv1.weight": (32, 32, 3, 3)},
    "KL autoencoder": {f"first_stage_model.{k}": v for k, v in STEM.items()},
    "MoVQ": {**BOOK, **STEM, "decoder.up.0.block.0.norm1.norm_layer.weight": (32,)},
    "VidTok": {"encoder.down.0.block.0.conv1.conv.weight": (4, 4, 1, 3, 3)},
    "TiTok": {**BOOK, "latent_tokens": (32, 8)},
    "RQ-VAE": {"quantizer.codebooks.0.weight": (64, 8)},
    "audio codec": {"quantizer.quantizers.0.codebook.weight": (64, 8)},
    "dVAE": {"encoder.blocks.group_1.block_1.res_path.conv_1.w": (1,)},
    "ViT tokenizer": {**BOOK, "encoder.transformer.0.weight": (8, 8)},
    "speech encoder": {"feature_extractor.conv_layers.0.conv.weight": (8, 1, 10)},
    "CLIP": {"vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4)},
    "language model": {"model.embed_tokens.weight": (64, 8), "lm_head.weight": (64, 8)},
    "unknown family": {"layers.0.weight": (8, 8)},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_family_is_refused_with_its_name(name):
    with pytest.raises(TokenizerError, match=name):
        recognise(FOREIGN[name], where="file")


def test_the_transformers_port_of_janus_is_not_taken_for_taming():
    """Same names, but its decoder counts levels the other way round, and its search differs."""
    shapes = key_shapes("taming_imagenet_f16_1024")
    port = {}
    for name, shape in shapes.items():
        steps = name.split(".")
        if steps[:2] == ["decoder", "up"]:
            steps[2] = str(4 - int(steps[2]))
        port["model.vqmodel." + ".".join(steps)] = shape
    with pytest.raises(TokenizerError, match="port of Janus"):
        recognise(port, where="janus")


def test_two_codebooks_are_ambiguous():
    shapes = key_shapes("chameleon_vqgan")
    both = {**{f"a.{k}": v for k, v in shapes.items()}, **{f"b.{k}": v for k, v in shapes.items()}}
    with pytest.raises(TokenizerError, match="2 codebooks"):
        recognise(both, where="both")


@pytest.mark.parametrize("shape", [(1 << 20, 32, 3, 3), (33, 32, 3, 3), (0, 32, 3, 3)])
def test_absurd_widths_are_refused_before_anything_is_built(shape):
    shapes = key_shapes("chameleon_vqgan") | {"encoder.down.0.block.0.conv1.weight": shape}
    with pytest.raises(TokenizerError, match="no VQ-GAN"):
        recognise(shapes, where="absurd")
