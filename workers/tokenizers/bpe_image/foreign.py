"""Checkpoints that are something else: told by a tensor's name, so that the refusal can say what.

Order matters: the first rule that some name matches speaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_RULES: tuple[tuple[str, str], ...] = (
    (r"(^|\.)quantize\.quant_resi\.|(^|\.)quantize\.ema_vocab_hit_SV$", "VAR (multi-scale VQ-VAE)"),
    (r"(^|\.)gen_aligner\.|(^|\.)model\.generation_aligner\.", "Janus without its image tokenizer"),
    (r"(^|\.)encoder\.down_blocks?\.\d+\.resnets\.", "diffusers (AutoencoderKL or VQModel)"),
    (r"(^|\.)encoder\.time_res_stack\.|(^|\.)encoder\.time_conv", "Emu3 VisionVQ"),
    (r"(^|\.)decoder\..*\.norm_layer\.weight$", "MoVQ (Kandinsky, spatial norms)"),
    (r"(^|\.)encoder\.down\..*\.conv1\.conv\.|(^|\.)regularization\.", "VidTok"),
    (r"(^|\.)latent_tokens$", "TiTok (1-D tokens)"),
    (r"(^|\.)quantizer\.codebooks\.\d+\.weight", "RQ-VAE (residual quantizer)"),
    (r"(^|\.)quantizer\.(quantizers|vq\.layers|layers)\.\d+\.", "an audio codec (residual VQ)"),
    (r"(^|\.)encoder\.blocks\.group_\d+\.", "OpenAI dVAE (DALL-E)"),
    (r"(^|\.)encoder\.transformer\.|(^|\.)encoder\.layers\.\d+\.", "a ViT tokenizer"),
    (r"(^|\.)feature_extractor\.conv_layers\.", "a speech encoder (HuBERT, wav2vec 2.0)"),
    (r"(^|\.)vision_model\.|(^|\.)visual\.", "CLIP or SigLIP (no codes)"),
    (r"(^|\.)embed_tokens\.weight$|(^|\.)lm_head\.weight$", "a language model without a VQ-GAN"),
    (r"(^|\.)unet\.|(^|\.)diffusion_model\.", "a diffusion model"),
)
_COMPILED = tuple((re.compile(pattern), name) for pattern, name in _RULES)
_TAMING_ENCODER = re.compile(r"(^|\.)encoder\.down\.0\.block\.0\.conv1\.weight$")
_CODEBOOK = re.compile(r"(^|\.)quantize\.embedding\.weight$")


def foreign_family(names: Iterable[str]) -> str | None:
    """What the checkpoint with these tensors is, where bpe-image has no use for it."""
    names = list(names)
    for pattern, family in _COMPILED:
        if any(pattern.search(name) for name in names):
            return family
    if any(_TAMING_ENCODER.search(n) for n in names) and not any(map(_CODEBOOK.search, names)):
        return "a KL autoencoder or a lookup-free quantizer (no codebook)"
    return None


def janus_port(names: Iterable[str], levels: int) -> bool:
    """Whether taming-like names (below their prefix) are those of the transformers Janus port.

    It counts decoder levels the other way round, so its level 0 has the upsampling that a taming
    decoder's last-run level never has.
    """
    names = set(names)
    lowest = f"decoder.up.{levels - 1}.upsample.conv.weight"
    return "decoder.up.0.upsample.conv.weight" in names and lowest not in names
