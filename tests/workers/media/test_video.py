"""Videos of many kinds to upright RGB frames with true times, or a verdict (G9)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: pip install 'tokenmill[video]'")

from tests.workers.media.made import number_of, picture, sound_file, still, turned, video
from tokenmill.schemas.errors import SampleError
from tokenmill.workers.media.video import Media, Reader, VideoReader

KINDS = {
    "h264-mp4": {"codec": "libx264"},
    "h264-mkv": {"codec": "libx264", "container": "matroska"},
    "hevc": {"codec": "libx265"},
    "vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "av1": {"codec": "libsvtav1"},
    "mpeg4-avi": {"codec": "mpeg4", "container": "avi"},
    "h264-avi": {"codec": "libx264", "container": "avi"},
    "ten-bit": {"codec": "libx265", "pixels": "yuv420p10le"},
    "no-subsampling": {"codec": "libx264", "pixels": "yuv444p"},
}


def read(media: Media, reader: Reader = "auto") -> tuple[list[np.ndarray], list[float], str]:
    with VideoReader(media, reader=reader) as opened:
        frames = [(frame.rgb(), frame.time) for frame in opened.frames()]
        return [f for f, _ in frames], [t for _, t in frames], opened.facts.reader


READERS = [
    "auto",
    pytest.param("decord", marks=pytest.mark.skipif(not find_spec("decord"), reason="no wheel")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_all_frames_in_order_with_their_times(kind: str) -> None:
    frames, times, _ = read(video(**KINDS[kind]))  # type: ignore[arg-type]
    assert [number_of(f) for f in frames] == list(range(12))
    assert np.allclose(times, np.arange(12) / 25, atol=2e-3)
    assert frames[0].dtype == np.uint8 and frames[0].shape == (96, 128, 3)


@pytest.mark.parametrize("kind", ["h264-mp4", "h264-mkv", "hevc", "vp9"])
def test_both_readers_give_the_same_bytes_and_times(kind: str) -> None:
    pytest.importorskip("decord", reason="decord has no wheel here")
    media = video(**KINDS[kind])  # type: ignore[arg-type]
    by_decord, times, reader = read(media, "decord")
    by_auto, same_times, other = read(media)
    assert (reader, other) == ("decord", "pyav")
    assert np.array_equal(by_decord, by_auto) and np.allclose(times, same_times)


@pytest.mark.parametrize("kind", ["av1", "narrow"])
def test_what_decord_cannot_do_is_refused_and_auto_does_it(kind: str) -> None:
    """decord 0.6 has no AV1, and gives (48, 48, 4) for a frame of 48 x 48."""
    pytest.importorskip("decord", reason="decord has no wheel here")
    media = video(size=(48, 48)) if kind == "narrow" else video(**KINDS[kind])  # type: ignore[arg-type]
    assert len(read(media)[0]) == 12
    with pytest.raises(SampleError, match="decord") as error:
        read(media, "decord")
    assert error.value.reason == "decoder-refused"


@pytest.mark.parametrize(
    "colours",
    [
        {},
        {"matrix": 1},
        {"full_range": True, "pixels": "yuvj420p"},
        {"pixels": "yuv420p10le", "codec": "libx265"},
        {"pixels": "yuv422p"},
    ],
    ids=["bt601", "bt709", "full-range", "ten-bit", "4:2:2"],
)
@pytest.mark.parametrize("reader", READERS)
def test_range_matrix_and_pixel_format_are_read_from_the_file(
    colours: dict[str, object], reader: Reader
) -> None:
    frame = read(video(frames=2, **colours), reader)[0][0]  # type: ignore[arg-type]
    for y, x in ((12, 12), (12, 32), (32, 12), (32, 32), (24, 120)):
        off = np.abs(frame[y, x].astype(int) - picture(0)[y, x]).max()
        assert off <= 12, (y, x, frame[y, x], picture(0)[y, x])


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("reader", READERS)
def test_rotation_is_applied_once_by_either_reader(degrees: int, reader: Reader) -> None:
    plain = video(frames=3)
    upright = np.rot90(read(plain, "pyav")[0][1], -degrees // 90)
    with VideoReader(turned(plain, degrees), reader=reader) as opened:
        assert (opened.facts.height, opened.facts.width) == upright.shape[:2]
        frame = [f.rgb() for f in opened.frames()][1]
    assert np.array_equal(frame, upright)


@pytest.mark.parametrize("reader", READERS)
def test_variable_rate_keeps_each_frames_own_time(reader: Reader) -> None:
    stamps = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61, 70]
    _, times, _ = read(video(stamps=stamps), reader)
    assert np.allclose(times, np.array(stamps) / 25, atol=2e-3)


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (b"", "not-video"),
        (b"once upon a time " * 50, "not-video"),
        (sound_file(), "not-video"),
    ],
    ids=["empty", "text", "sound"],
)
def test_what_is_no_video_is_refused_with_a_reason(media: bytes, reason: str) -> None:
    with pytest.raises(SampleError) as error:
        read(media)
    assert error.value.reason == reason


def test_still_image_is_no_video() -> None:
    with pytest.raises(SampleError, match="still"):
        read(still())


@pytest.mark.parametrize("kind", ["h264-mp4", "av1", "mpeg4-avi"])
def test_damaged_bytes_are_a_verdict_not_frames(kind: str) -> None:
    media = bytearray(video(frames=40, **KINDS[kind]))  # type: ignore[arg-type]
    middle = len(media) // 2
    media[middle : middle + 300] = np.random.default_rng(1).bytes(300)
    with pytest.raises(SampleError) as error:
        read(bytes(media))
    assert error.value.reason == "damaged"


@pytest.mark.parametrize("reader", READERS)
def test_truncated_files_are_noticed(reader: Reader) -> None:
    whole = video(frames=60, moov_first=True)
    with pytest.raises(SampleError) as error:
        read(whole[: len(whole) * 2 // 3], reader)
    assert error.value.reason in ("truncated", "damaged", "decoder-refused")
    cut_between_packets = video("libvpx-vp9", "webm", frames=60)
    with pytest.raises(SampleError, match="declared") as error:
        read(cut_between_packets[: len(cut_between_packets) // 2])
    assert error.value.reason == "truncated"
    headless = video(frames=60)
    with pytest.raises(SampleError, match="does not open"):
        read(headless[: len(headless) // 2], reader)


def test_a_wrong_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_bytes(video("libvpx-vp9", "webm"))
    assert len(read(path)[0]) == 12


def test_frames_made_to_exhaust_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill.workers.media.video_pyav.MAX_PIXELS", 96 * 128 - 1)
    with pytest.raises(SampleError, match="128 x 96") as error:
        read(video(frames=1))
    assert error.value.reason == "too-large"
