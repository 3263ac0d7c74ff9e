"""The model against numbers of the official code: ids exactly, floats within its own spread."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.workers.vidtok.vectors import (
    CASES,
    CHUNKED,
    DATA,
    clip,
    model_of,
    sampled,
    tensors,
    variant_of,
    video,
)
from tokenmill.workers.tokenizers.vidtok.model import VidTok
from tokenmill.workers.tokenizers.vidtok.quantizers import FiniteScalar, moments
from tokenmill.workers.tokenizers.vidtok.variants import PUBLISHED

LONG = load_file(DATA / "long_33frames.safetensors")
DEFAULT = "v1_1_fsq_causal_488_32768"


def test_every_published_key_list_matches_both_ways() -> None:
    published = json.loads(gzip.decompress((DATA / "keys.json.gz").read_bytes()))
    assert {f"vidtok_{name}" for name in PUBLISHED} == set(published) and len(published) == 23
    for name, variant in PUBLISHED.items():
        with torch.device("meta"):
            ours = VidTok(variant).state_dict()
        assert {k: list(v.shape) for k, v in ours.items()} == published[f"vidtok_{name}"], name


@pytest.mark.parametrize("case", CASES)
def test_model_equals_the_official_one(case: str) -> None:
    model, known = model_of(case), tensors(case)
    latent = model.encode(clip(case))
    torch.testing.assert_close(latent, known["encoder_out"], atol=3e-4, rtol=0)
    if model.quantizer is None:
        codes = moments(latent)[0]
    else:
        codes = model.quantizer.codes(latent)
        ids = model.quantizer.ids(latent)
        assert torch.equal(ids.int(), known["indices"])
        assert torch.equal(model.quantizer.from_ids(ids), codes)
    decoded = sampled(model.decode(codes))
    torch.testing.assert_close(decoded, known["decoded_sampled"], atol=5e-3, rtol=0)
    assert (decoded - known["decoded_sampled"]).abs().mean() < 5e-5


@pytest.mark.parametrize(
    ("weights", "arithmetic"),
    [
        ("v1_0_fsq_causal_488_32768", "v1_1_fsq_causal_488_32768"),
        ("v1_1_fsq_causal_488_32768", "v1_0_fsq_causal_488_32768"),
    ],
)
def test_weights_in_the_other_versions_arithmetic_load_and_are_wrong(
    weights: str, arithmetic: str
) -> None:
    wrong = VidTok(variant_of(arithmetic)).eval()
    wrong.load_state_dict(model_of(weights).state_dict(), strict=True)
    assert wrong.quantizer is not None
    with torch.inference_mode():
        ids = wrong.quantizer.ids(wrong.encode(clip(weights)))
    assert (ids != tensors(weights)["indices"]).float().mean() > 0.9


def test_frame_counts_and_their_ids_are_the_official_ones() -> None:
    known = load_file(DATA / "frame_counts.safetensors")
    rows = json.loads((DATA / "frame_counts.json").read_text())
    compared = 0
    for row in rows:
        case, frames = str(row["case"]), int(row["T_in"])
        if row["tiled"] or case not in CASES:
            continue
        model = model_of(case)
        inputs = video()[None, :, :frames, :16, :24]
        if "error" in row:
            with pytest.raises(ValueError, match="no latent"):
                model.encode(inputs)
            continue
        assert model.variant.latents(frames) == row["T_latent"]
        found = known.get(f"{case}.T{frames}.untiled.indices")
        if found is not None and model.quantizer is not None:
            codes = model.encode(inputs)
            assert torch.equal(model.quantizer.ids(codes).int(), found), row
            compared += 1
            if frames in (2, 18):
                assert model.decode(codes).shape[2] == row["T_decoded_raw"]
    assert compared >= 30


@pytest.mark.parametrize("bounds", [(1, 17, 33), (17, 25, 33)])
@pytest.mark.parametrize("case", CHUNKED)
def test_chunks_give_the_ids_of_the_whole_clip(case: str, bounds: tuple[int, ...]) -> None:
    model, past, start, parts = model_of(case), None, 0, []
    for end in bounds:
        latent, past = model.encode_chunk(video()[None, :, start:end], past)
        parts.append(latent)
        start = end
    latent = torch.cat(parts, dim=2)
    whole = model.encode(video()[None, :, :33])
    torch.testing.assert_close(latent, whole, atol=2e-5, rtol=0)
    if model.quantizer is not None:
        known = LONG[f"{case}.indices"]
        assert torch.equal(model.quantizer.ids(latent).int(), known)


def test_state_of_two_clips_does_not_mix() -> None:
    """One model object, two clips, their chunks in turn."""
    model = model_of(DEFAULT)
    assert model.quantizer is not None
    clips = [video()[None, :, :33], video().flip(1)[None, :, :33]]
    pasts, found = [None, None], [[], []]  # type: ignore[var-annotated]
    for start, end in ((0, 17), (17, 33)):
        for n, frames in enumerate(clips):
            latent, pasts[n] = model.encode_chunk(frames[:, :, start:end], pasts[n])
            found[n].append(model.quantizer.ids(latent))
    for frames, parts in zip(clips, found, strict=True):
        whole = model.quantizer.ids(model.encode(frames))
        assert torch.equal(torch.cat(parts, dim=1), whole)


def test_long_decode_whole_and_in_chunks_equal_their_own_vectors() -> None:
    model = model_of(DEFAULT)
    assert model.quantizer is not None
    codes = model.quantizer.from_ids(LONG[f"{DEFAULT}.indices"])
    whole = model.decode(codes)
    chunks, smaller = (torch.cat(list(model.decode_chunks(codes, n)), dim=2) for n in (4, 2))
    for found, name in ((whole, "untiled"), (chunks, "tiled16_overlap")):
        known = LONG[f"{DEFAULT}.decoded_{name}_sampled"]
        torch.testing.assert_close(sampled(found), known, atol=5e-3, rtol=0)
    torch.testing.assert_close(smaller, chunks, atol=5e-3, rtol=0)


def test_quantizer_equals_the_unit_vectors() -> None:
    known = load_file(DATA / "fsq_unit.safetensors")
    for name in {key.split(".")[0] for key in known}:
        fsq = FiniteScalar(tuple(int(n) for n in name.split("x")))
        z = known[f"{name}.z"]
        bound = fsq.bound(z)
        torch.testing.assert_close(bound, known[f"{name}.bound"], atol=1e-5, rtol=0)
        sure = ((bound - bound.floor() - 0.5).abs() >= 1e-5).all(1)
        assert sure.float().mean() > 0.99
        assert torch.equal(fsq.codes(z)[sure], known[f"{name}.codes"][sure])
        assert torch.equal(fsq.ids(z)[sure].int(), known[f"{name}.indices"][sure].int())
        first = known[f"{name}.first_codes"]
        assert torch.equal(fsq.from_ids(torch.arange(len(first))), first)


@settings(deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.integers(0, 10**9))
def test_ids_and_codes_are_one_to_one(levels: list[int], seed: int) -> None:
    fsq = FiniteScalar(tuple(levels))
    size = int(torch.tensor(levels).prod())
    ids = torch.randint(0, size, (50,), generator=torch.Generator().manual_seed(seed))
    digits = torch.round(fsq.from_ids(ids) * fsq._width) + fsq._width
    assert torch.equal((digits.long() * fsq._basis).sum(1), ids)
