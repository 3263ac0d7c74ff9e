"""The plug-in: settings, windows, carried state, what a job makes of videos (G1, G6, G9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="PyAV is not installed: pip install 'tokenmill[video]'")

from tests.workers.media.made import sound_file, video
from tests.workers.vidtok.vectors import model_of, weights_file
from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.job import Job
from tokenmill.schemas.tokenizer import Encoded, Window
from tokenmill.schemas.work import Span, Task, TaskResult, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader
from tokenmill.workers import registry
from tokenmill.workers.carrying import encode_carrying
from tokenmill.workers.conformance import check
from tokenmill.workers.sources import open_source
from tokenmill.workers.tokenizers.vidtok.cutting import Cut
from tokenmill.workers.worker import StreamWorker

V11 = str(weights_file("v1_1_fsq_causal_488_32768"))
KL = str(weights_file("v1_1_kl_causal_288_8chn"))
WEIGHTS = {
    "fsq_causal_488_32768_v1_1": V11,
    "fsq_causal_888_32768_v1_1": str(weights_file("v1_1_fsq_causal_888_32768")),
    "fsq_causal_488_32768": str(weights_file("v1_0_fsq_causal_488_32768")),
    "fsq_noncausal_488_262144": str(weights_file("v1_0_fsq_noncausal_488_262144")),
    "kl_causal_288_8chn_v1_1": KL,
}
SMALL = {"size": [32, 48], "device": "cpu"}


def moving(frames: int) -> np.ndarray:
    t, y, x = np.ogrid[:frames, :32, :48]
    planes = (x * 4 + t * 7, y * 7 + t * 3, (x * y + t * 11) // 3)
    shape = (frames, 32, 48)
    return np.stack([np.broadcast_to(p, shape) % 256 for p in planes], -1).astype(np.uint8)


def encode(tokenizer: Any, media: Any) -> Encoded:
    windows = list(tokenizer.preparer().prepare({"video": media}, np.random.default_rng(0)))
    (found,) = tokenizer.join(tokenizer.encode(windows)).values()
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", ["fsq_causal_488_32768_v1_1", "fsq_noncausal_488_262144"])
def test_plug_in_conforms(variant: str) -> None:
    report = check(f"vidtok:{variant}", WEIGHTS[variant], SMALL)
    assert report.ok, [c for c in report.checks if c.verdict == "fail"]


@pytest.mark.parametrize("window", [4, 8, 16])
@pytest.mark.parametrize("variant", ["fsq_causal_488_32768_v1_1", "fsq_causal_888_32768_v1_1"])
def test_windows_of_any_size_give_the_ids_of_the_whole_clip(variant: str, window: int) -> None:
    if variant.startswith("fsq_causal_888") and window == 4:
        pytest.skip("not a multiple of eight frames")
    config = {**SMALL, "variant": variant, "window": window}
    found = encode(registry.load("vidtok", WEIGHTS[variant], config), moving(41))
    whole = encode(registry.load("vidtok", WEIGHTS[variant], {**config, "window": 96}), moving(41))
    assert found.shape == whole.shape and np.array_equal(found.ids, whole.ids)


def test_state_belongs_to_the_sample_whatever_shares_its_batches() -> None:
    """Windows of three samples one by one, and two and three together, in turn (G6, G8)."""
    tokenizer = registry.load("vidtok", V11, {**SMALL, "window": 8})
    media = {0: moving(25), 1: moving(33)[::-1].copy(), 2: moving(17)[:, ::-1].copy()}
    alone = {n: encode(tokenizer, one).ids for n, one in media.items()}
    windows: dict[int, list[Window]] = {
        n: list(tokenizer.preparer().prepare({"video": one}, np.random.default_rng(0)))
        for n, one in media.items()
    }
    in_turn = [(n, w[i]) for i in range(5) for n, w in windows.items() if i < len(w)]
    for size in (1, 2, 3):
        carries: dict[int, Any] = {}
        pieces: dict[int, list[Any]] = {n: [] for n in media}
        for at in range(0, len(in_turn), size):
            part = in_turn[at : at + size]
            for (n, _), piece in zip(
                part, encode_carrying(tokenizer.encode, part, carries), strict=True
            ):
                assert piece.carry is None
                pieces[n].append(piece)
        assert not carries  # nothing is kept of samples that are done
        for n in media:
            (joined,) = tokenizer.join(pieces[n]).values()
            assert np.array_equal(joined.ids, alone[n]), (n, size)


def test_window_without_the_one_before_it_is_refused() -> None:
    tokenizer = registry.load("vidtok", V11, {**SMALL, "window": 8})
    windows = list(tokenizer.preparer().prepare({"video": moving(25)}, np.random.default_rng(0)))
    with pytest.raises(SampleError) as error:
        tokenizer.encode(windows[1:2])
    assert error.value.reason == "window-lost"


@settings(deadline=None)
@given(
    frames=st.integers(1, 80),
    window=st.integers(1, 4),
    factor=st.sampled_from([2, 4, 8]),
    kind=st.sampled_from(["chunks", "clips", "noncausal"]),
    tail=st.sampled_from(["pad", "trim", "drop"]),
)
def test_windows_fit_the_model_and_lose_nothing_unsaid(
    frames: int, window: int, factor: int, kind: str, tail: Any
) -> None:
    causal, alone = kind != "noncausal", kind != "chunks"
    first, later = int(causal) + window * factor, int(causal and alone) + window * factor
    cut = Cut(first=first, later=later, factor=factor, causal=causal, alone=alone, tail=tail)
    try:
        found = list(cut.windows(range(frames)))
    except SampleError as error:
        least = {"pad": 1, "trim": 1 if causal else factor, "drop": first}[tail]
        assert error.reason == "too-short" and frames < least
        return
    assert [last for *_, last in found] == [False] * (len(found) - 1) + [True]
    seen = [n for held, valid, _ in found for n in held[:valid]]
    assert seen == list(range(len(seen)))
    assert len(seen) == frames if tail == "pad" else len(seen) <= frames
    if tail == "trim" and not alone:
        assert frames - len(seen) < factor
    for index, (held, valid, last) in enumerate(found):
        full = first if alone or not index else later
        assert len(held) <= full and (last or valid == len(held) == full)
        rest = int(causal and (alone or not index))
        assert len(held) % factor == rest % factor
        assert held[valid:] == [held[valid - 1]] * (len(held) - valid)


@pytest.mark.parametrize(
    ("tail", "latents", "valid"), [("pad", 6, 18), ("trim", 5, 17), ("drop", 5, 17)]
)
def test_frame_count_policy_and_what_is_stored_of_it(tail: str, latents: int, valid: int) -> None:
    tokenizer = registry.load("vidtok", V11, {**SMALL, "tail": tail})
    found = encode(tokenizer, moving(18))
    assert found.shape == (latents, 4, 6) and found.media_valid == valid
    assert tokenizer.decode({"ids": found}).shape == (valid, 32, 48, 3)  # type: ignore[attr-defined]
    others = {registry.load("vidtok", V11, {**SMALL, "tail": t}).identity().recipe
              for t in ("pad", "trim", "drop")}  # fmt: skip
    assert len(others) == 3


def test_clips_of_a_model_without_state_are_padded_to_the_length_it_was_made_for() -> None:
    name = "fsq_causal_488_32768"
    tokenizer = registry.load(f"vidtok:{name}", WEIGHTS[name], SMALL)
    found = encode(tokenizer, moving(20))
    assert found.shape == (10, 4, 6) and found.media_valid == 20
    assert found.n_valid == 7  # 5 of the first clip; of the second one of 1 and one of 4 frames
    first = encode(tokenizer, moving(17))
    assert np.array_equal(found.ids[: first.ids.size], first.ids)
    assert tokenizer.decode({"ids": found}).shape[0] == 20  # type: ignore[attr-defined]


def test_decoded_video_is_the_models_own_reconstruction() -> None:
    tokenizer = registry.load("vidtok", V11, SMALL)
    found = encode(tokenizer, moving(17))
    model = model_of("v1_1_fsq_causal_488_32768")
    import torch  # noqa: PLC0415 - after importorskip

    ids = torch.from_numpy(found.ids.astype(np.int64)).reshape(1, *found.shape)
    assert model.quantizer is not None
    known = model.decode(model.quantizer.from_ids(ids))[0, :, -17:].clamp(-1, 1)
    pixels = ((known + 1) / 2 * 255).permute(1, 2, 3, 0).numpy()
    assert np.abs(tokenizer.decode({"ids": found}).astype(int) - pixels).max() <= 1.01  # type: ignore[attr-defined]


def test_id_outside_the_codebook_is_not_decoded() -> None:
    tokenizer: Any = registry.load("vidtok", V11, SMALL)
    ids = np.full(24, 40_000, np.uint16)
    with pytest.raises(TokenizerError, match="id 40000 in a codebook of 32768"):
        tokenizer.decode({"ids": Encoded(ids=ids, shape=(1, 4, 6))})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"variant": "fsq_causal_488_32767"}, "did you mean"),
        ({"siz": 64}, "did you mean 'size'"),
        ({"size": 100}, "multiples of 8"),
        ({"size": [64, 0]}, "number of pixels"),
        ({"window": 6}, "multiple of 4"),
        ({"variant": "fsq_causal_488_32768", "window": 16}, "1 more than a multiple of 4"),
        ({"fps": -1}, "above 0"),
        ({"tail": "loop"}, "tail"),
        ({"device": "cuda:77"}, "not there"),
    ],
)
def test_settings_that_cannot_be_are_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        registry.load("vidtok", V11, config)


def test_variant_may_be_part_of_the_name_but_named_once() -> None:
    config = {"variant": "kl_causal_288_8chn_v1_1"}
    one = registry.load("vidtok:kl_causal_288_8chn_v1_1", KL, SMALL).identity()
    assert one == registry.load("vidtok", KL, {**SMALL, **config}).identity()
    with pytest.raises(TokenizerError, match=r"config\.variant"):
        registry.load("vidtok:fsq_causal_488_4096", KL, config)


def _job(folder: Path, **stream: Any) -> Job:
    return Job.model_validate(
        {
            "name": "clips",
            "store": str(folder / "store"),
            "pipelines": {
                "clips": {
                    "source": {"uri": str(folder / "in"), "format": "files"},
                    "streams": {"video": {"field": "mp4", "tokenizer": "vidtok", **stream}},
                }
            },
        }
    )


def _run(job: Job) -> TaskResult:
    source = open_source(job.pipelines["clips"].source)
    spans = tuple(Span(input=i, start=0, end=i.extent) for i in source.list())
    worker = StreamWorker(job, "clips", "video")
    try:
        recipe = worker.facts().identity.recipe
        unit = WorkUnit(pipeline="clips", spans=spans)
        result = worker.run(Task(unit=unit, stream="video", recipe=recipe, attempt=0, run="r"))
    finally:
        worker.close()
    assert isinstance(result, TaskResult), result
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    damaged = bytearray(video(frames=40))
    damaged[len(damaged) // 2 :][:300] = b""
    media = {
        "a-h264": video(frames=18),
        "b-vp9-in-mp4-name": video("libvpx-vp9", "webm", frames=33),
        "c-sound": sound_file(),
        "d-cut": video(frames=30)[:2000],
        "e-long": video("libx265", frames=60),
    }
    for name, data in media.items():
        (tmp_path / "in" / f"{name}.mp4").write_bytes(data)
    return tmp_path


def test_job_gives_every_video_tokens_or_a_reason(folder: Path) -> None:
    """Real children, real shards; a bad file costs its own verdict and no more (G1, G9)."""
    job = _job(folder, checkpoint=V11, config=SMALL)
    result = _run(job)
    assert (result.enumerated, result.with_tokens) == (5, 3)
    assert [(q.key, q.reason) for q in result.quarantined] == [
        ("c-sound", "not-video"),
        ("d-cut", "not-video"),
    ]
    tokenizer = registry.load("vidtok", V11, SMALL)
    with ShardReader(Access(job.store), result.shards[0].path) as reader:
        for n, frames in ((0, 18), (1, 33), (4, 60)):
            row = reader.row(n)
            alone = encode(tokenizer, (folder / "in" / f"{row.key}.mp4").read_bytes())
            assert row.ids is not None and row.ids.dtype == np.uint16
            assert np.array_equal(row.ids, alone.ids) and row.shape == alone.shape
            assert row.media_valid == frames
    assert _run(job).shards[0].content_hash == result.shards[0].content_hash


@pytest.mark.parametrize(
    ("config", "dtype", "channels"),
    [
        ({}, "float32", 8),
        ({"latent_dtype": "float16"}, "float16", 8),
        ({"latent": "moments"}, "float32", 16),
    ],
)
def test_continuous_latents_lie_in_shards_and_verify(
    folder: Path, config: dict[str, Any], dtype: str, channels: int
) -> None:
    config = {**SMALL, "variant": "kl_causal_288_8chn_v1_1", **config}
    job = _job(folder, checkpoint=KL, config=config)
    result = _run(job)
    with ShardReader(Access(job.store), result.shards[0].path) as reader:
        assert reader.meta.dtype == dtype
        row = reader.row(0)
        assert row.ids is not None and row.ids.dtype == np.dtype(dtype)
        assert row.shape == (10, 4, 6, channels)  # 18 frames, padded to 19
        alone = encode(
            registry.load("vidtok", KL, config), (folder / "in" / "a-h264.mp4").read_bytes()
        )
        assert np.allclose(row.ids, alone.ids, rtol=1e-3, atol=1e-4)
