"""Clips: cut once, at the source; the same spans for every stream (G1, G8, G9)."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="PyAV is not installed: pip install 'tokenmill[video]'")

from tests.workers.media.made import number_of, video
from tests.workers.vidtok.vectors import weights_file
from tokenmill.schemas.errors import InputChanged, JobError
from tokenmill.schemas.job import Job, Source, parse_job
from tokenmill.schemas.samples import SampleBatch, SpanDone
from tokenmill.schemas.work import Span, Task, TaskResult, WorkUnit
from tokenmill.store.access import Access
from tokenmill.store.shards import ShardReader
from tokenmill.workers.media.clips import Shot, cut
from tokenmill.workers.media.video import VideoReader
from tokenmill.workers.sources import open_source
from tokenmill.workers.worker import StreamWorker


def source_of(folder: Path, *, format_: str = "files", **clips: Any) -> Any:
    clips = {"field": "mp4", "frames": 5, **clips}
    return open_source(Source(uri=str(folder), format=format_, clips=clips))  # type: ignore[arg-type]


def read(source: Any, *fields: str) -> list[dict[str, Any]]:
    spans = [Span(input=i, start=0, end=i.extent) for i in source.list()]
    found, ended = [], 0
    for event in source.read(spans, fields):
        if isinstance(event, SpanDone):
            ended += 1
            continue
        assert isinstance(event, SampleBatch) and event.span == ended
        for n in range(len(event)):
            row = {name: values[n] for name, values in event.fields.items()}
            spans_ = event.spans or [None] * len(event)
            row |= {"id": event.ids[n], "key": event.keys[n], "span": spans_[n]}
            found.append(row | {"fault": event.faults.get(n)})
    assert ended == len(spans)
    return found


def numbers(media: bytes) -> list[int]:
    with VideoReader(media) as opened:
        return [number_of(frame.rgb()) for frame in opened.frames()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").write_bytes(video(frames=17, audio=True))
    (tmp_path / "a.txt").write_text("a bar grows brighter")
    return tmp_path


def test_clips_have_stable_keys_spans_and_the_right_frames(folder: Path) -> None:
    rows = read(source_of(folder), "video", "txt")
    assert [r["key"] for r in rows] == ["a@0.000-0.200", "a@0.200-0.400", "a@0.400-0.600"]
    assert [r["span"] for r in rows] == ["0.000/0.200", "0.200/0.400", "0.400/0.600"]
    assert [numbers(r["video"]) for r in rows] == [list(range(n, n + 5)) for n in (0, 5, 10)]
    assert {r["txt"] for r in rows} == {b"a bar grows brighter"}
    assert len({r["id"] for r in rows}) == 3
    again = read(source_of(folder), "video")
    assert [r["id"] for r in again] == [r["id"] for r in rows]


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ({"stride": 3}, [[0, 5], [3, 8], [6, 11], [9, 14], [12, 17]]),
        ({"stride": 8}, [[0, 5], [8, 13]]),
        ({"tail": "keep"}, [[0, 5], [5, 10], [10, 15], [15, 17]]),
        ({"max_clips": 2}, [[0, 5], [5, 10]]),
        ({"fps": 12.5}, None),
        ({"bounds": "keyframe"}, [[0, 5], [6, 11], [12, 17]]),  # a key frame every six
    ],
)
def test_length_stride_rate_tail_and_bounds(
    folder: Path, clips: dict[str, Any], expected: list[list[int]] | None
) -> None:
    found = [numbers(r["video"]) for r in read(source_of(folder, **clips), "video")]
    assert found == ([list(range(*e)) for e in expected] if expected else [[0, 2, 4, 6, 8]])


def test_scene_bounds_begin_where_the_picture_changes(tmp_path: Path) -> None:
    import av  # noqa: PLC0415 - after importorskip

    def paint(n: int) -> np.ndarray:
        colour = (200, 30, 30) if n < 7 else (20, 40, 220)
        return np.full((96, 128, 3), colour, np.uint8)

    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream: Any = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for n in range(14):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(paint(n), format="rgb24")))
        file.mux(stream.encode())
    rows = read(source_of(tmp_path, bounds="scene"), "video")
    assert [r["span"] for r in rows] == ["0.000/0.200", "0.280/0.480"]


def test_sound_is_that_of_the_clips_span(folder: Path) -> None:
    rows = read(source_of(folder), "audio")
    assert [r["span"] for r in rows] == ["0.000/0.200", "0.200/0.400", "0.400/0.600"]
    for row in rows:
        data = row["audio"]
        assert data[:4] == b"RIFF" and data[20:22] == b"\x03\x00"  # 32-bit floats
        samples = np.frombuffer(data[-3200 * 4 :], "<f4")  # 0.2 s of 16 kHz
        assert len(data) - 3200 * 4 < 100
        middle = samples[400:-400]
        assert 0.2 < np.abs(middle).mean() < 0.45  # a tone of amplitude 0.5
        crossings = int((np.diff(np.sign(middle)) != 0).sum())
        assert abs(crossings / 2 / (len(middle) / 16000) - 440) < 10


def test_sound_is_in_step_with_its_picture(tmp_path: Path) -> None:
    """Taken span by span it is the same sound as taken at once."""
    (tmp_path / "a.mp4").write_bytes(video(frames=30, audio=True))
    (whole,) = read(source_of(tmp_path, frames=20), "audio")
    parts = read(source_of(tmp_path), "audio")[:4]
    one = np.frombuffer(whole["audio"][-12800 * 4 :], "<f4")
    joined = np.concatenate([np.frombuffer(p["audio"][-3200 * 4 :], "<f4") for p in parts])
    assert np.array_equal(one, joined)


def test_all_streams_see_the_same_samples(folder: Path) -> None:
    """Whatever the fields: the ids of every task of a unit agree (G1)."""
    (folder / "b.mp4").write_bytes(video(frames=11))  # without sound
    source = source_of(folder, bounds="keyframe", tail="keep")
    by_fields = [read(source, *f) for f in (("video",), ("audio",), ("txt",), ())]
    ids = [[r["id"] for r in rows] for rows in by_fields]
    assert ids[0] == ids[1] == ids[2] == ids[3] and len(ids[0]) == 8
    silent = [r["audio"] for r in by_fields[1] if r["key"].startswith("b")]
    assert silent == [None] * 3


def test_clips_before_damage_are_kept_and_the_rest_is_one_fault(tmp_path: Path) -> None:
    media = bytearray(video(frames=60, gop=10))
    at = len(media) * 2 // 3
    media[at : at + 400] = np.random.default_rng(2).bytes(400)
    (tmp_path / "a.mp4").write_bytes(media)
    (tmp_path / "b.mp4").write_bytes(b"no video at all")
    *good, damaged, refused = read(source_of(tmp_path), "video")
    assert len(good) >= 4 and all(r["fault"] is None for r in good)
    assert damaged["key"] == "a@damage" and damaged["fault"].reason == "damaged"
    assert refused["key"] == "b@damage" and refused["fault"].reason == "not-video"


def test_clips_out_of_an_archive_carry_its_other_fields(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            ("0001.mp4", video(frames=10)),
            ("0001.txt", b"first"),
            ("0002.txt", b"no video"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = read(source_of(tmp_path, format_="webdataset"), "video", "txt")
    assert [(r["key"], r["txt"]) for r in rows] == [
        ("0001@0.000-0.200", b"first"),
        ("0001@0.200-0.400", b"first"),
        ("0002", b"no video"),
    ]
    assert numbers(rows[1]["video"]) == [5, 6, 7, 8, 9] and rows[2]["video"] is None


def test_file_that_changes_while_it_is_cut_is_planned_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmill.workers.sources.clips.BATCH_BYTES", 1)  # hand out at once
    source = source_of(folder)
    spans = [Span(input=i, start=0, end=i.extent) for i in source.list()]
    with pytest.raises(InputChanged):
        for _ in source.read(spans, ["video"]):
            (folder / "a.mp4").write_bytes(video(frames=9))


def test_videos_larger_than_max_sample_bytes_are_cut_all_the_same(folder: Path) -> None:
    config = Source(uri=str(folder), format="files", max_sample_bytes=100,
                    clips={"field": "mp4", "frames": 5})  # type: ignore[arg-type]  # fmt: skip
    assert len(read(open_source(config), "video")) == 3


@settings(deadline=None)
@given(
    scenes=st.lists(st.integers(1, 30), max_size=5),
    frames=st.integers(1, 8),
    stride=st.integers(1, 12),
    keep=st.booleans(),
)
def test_every_clip_is_whole_within_its_segment(
    scenes: list[int], frames: int, stride: int, keep: bool
) -> None:
    shots = [Shot(n, None, s) for s, count in enumerate(scenes) for n in range(count)]
    found = [c for c in cut(shots, frames, stride, keep_tail=keep) if c is not None]
    for clip in found:
        assert len({shot.segment for shot in clip}) == 1
        assert [shot.time for shot in clip] == [clip[0].time + i for i in range(len(clip))]
        assert clip[0].time % stride == 0 and (len(clip) == frames or keep)
    for s, count in enumerate(scenes):
        starts = [c[0].time for c in found if c[0].segment == s and len(c) == frames]
        assert starts == [n for n in range(0, count, stride) if n + frames <= count]
        seen = {shot.time for c in found if c[0].segment == s for shot in c}
        if keep and stride <= frames:
            assert seen == set(range(count))


def _job(folder: Path, **clips: Any) -> Job:
    return Job.model_validate(
        {
            "name": "clips",
            "store": str(folder / "store"),
            "pipelines": {
                "clips": {
                    "source": {
                        "uri": str(folder / "*.mp4"),
                        "format": "files",
                        "clips": {"field": "mp4", "size": [32, 48], **clips},
                    },
                    "streams": {
                        "video": {
                            "tokenizer": "vidtok",
                            "checkpoint": str(weights_file("v1_1_fsq_causal_488_32768")),
                            "config": {"size": [32, 48], "device": "cpu"},
                        }
                    },
                }
            },
        }
    )


def test_shards_tell_the_span_of_every_clip(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video(frames=40))
    job = _job(tmp_path)
    source = open_source(job.pipelines["clips"].source)
    spans = tuple(Span(input=i, start=0, end=i.extent) for i in source.list())
    worker = StreamWorker(job, "clips", "video")
    try:
        recipe = worker.facts().identity.recipe
        unit = WorkUnit(pipeline="clips", spans=spans)
        result = worker.run(Task(unit=unit, stream="video", recipe=recipe, attempt=0, run="r"))
    finally:
        worker.close()
    assert isinstance(result, TaskResult) and result.with_tokens == 2
    with ShardReader(Access(job.store), result.shards[0].path) as reader:
        rows = [reader.row(n) for n in range(2)]
    assert [r.span for r in rows] == ["0.000/0.680", "0.680/1.360"]
    assert [r.shape for r in rows] == [(5, 4, 6)] * 2
    other = StreamWorker(_job(tmp_path, fps=5), "clips", "video")
    other.close()
    assert other.facts().identity.recipe != recipe
    assert other.facts().identity.space == worker.facts().identity.space


@pytest.mark.parametrize(
    ("clips", "said"),
    [("strid: 3", "did you mean 'stride'"), ("bounds: keyframe, reader: decord", "key frames")],
)
def test_clips_that_cannot_be_are_named(clips: str, said: str) -> None:
    text = f"""
name: x
store: s
pipelines:
  p:
    source: {{uri: a, format: files, clips: {{field: mp4, {clips}}}}}
    streams: {{video: {{tokenizer: vidtok}}}}
"""
    with pytest.raises(JobError, match=said):
        parse_job(text, name="job.yaml", folder="/")


def test_no_frame_is_shown_beyond_the_videos_end(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video(frames=6))  # 0.24 s: ticks of 0.1 s at 0, 0.1, 0.2
    (row,) = read(source_of(tmp_path, fps=10, frames=5, tail="keep"), "video")
    assert numbers(row["video"]) == [0, 2, 5]


def test_clips_open_like_any_media_file(folder: Path) -> None:
    import av  # noqa: PLC0415 - after importorskip

    row = read(source_of(folder), "video", "audio")[1]
    with av.open(io.BytesIO(row["audio"])) as file:
        samples = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], axis=1)
    assert np.array_equal(samples.ravel(), np.frombuffer(row["audio"][-3200 * 4 :], "<f4"))
    with av.open(io.BytesIO(row["video"])) as file:
        assert file.streams.video[0].average_rate == 25
        assert len(list(file.decode(video=0))) == 5
