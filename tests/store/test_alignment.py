from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.store.alignment import FileRows, plan_pipeline, subtract

RANGES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda t: (t[0], t[0] + t[1])),
    max_size=6,
)


def rows_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {row for start, stop in ranges for row in range(start, stop)}


def file(
    stream: str,
    first: int,
    rows: int,
    *,
    unit: bytes = b"u",
    order: bytes = b"o",
    exclude: tuple[tuple[int, int], ...] = (),
) -> FileRows:
    return FileRows(
        pipeline="p",
        stream=stream,
        unit=unit,
        path=f"{unit.hex()}-{stream}-{first}",
        first_row=first,
        rows=rows,
        order_hash=order,
        space="s",
        recipe="r",
        tokenizer="t",
        exclude=exclude,
    )


@given(RANGES, RANGES)
def test_subtracting_ranges_leaves_exactly_the_rows_outside_them(
    ranges: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> None:
    left = subtract(ranges, holes)
    assert rows_of(left) == rows_of(ranges) - rows_of(holes)
    assert all(a < b for a, b in left)
    assert all(left[i][1] < left[i + 1][0] for i in range(len(left) - 1))


@given(
    st.dictionaries(
        st.sampled_from(["audio", "text", "video"]), st.tuples(RANGES, RANGES), min_size=1
    )
)
def test_every_visible_row_of_every_stream_lies_in_exactly_one_piece(
    streams: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]]]],
) -> None:
    files = [
        file(stream, start, stop - start, exclude=tuple(holes))
        for stream, (ranges, holes) in streams.items()
        for start, stop in subtract(ranges, [])
    ]
    seen: dict[str, list[int]] = {stream: [] for stream in streams}
    for piece in plan_pipeline("p", files).pieces:
        for stream in piece.streams:
            seen[stream] += range(piece.start, piece.stop)
    for stream, (ranges, holes) in streams.items():
        assert sorted(seen[stream]) == sorted(rows_of(ranges) - rows_of(holes))


def test_streams_of_one_cut_are_one_piece_per_unit_in_the_order_of_units() -> None:
    files = [file(s, 0, 9, unit=u) for u in (b"b", b"a") for s in ("text", "image")]
    plan = plan_pipeline("p", files)
    assert [(p.unit, p.start, p.stop, p.streams) for p in plan.pieces] == [
        (b"a", 0, 9, {"text", "image"}),
        (b"b", 0, 9, {"text", "image"}),
    ]
    assert plan.partial == ()


def test_a_stream_that_nowhere_stands_alone_needs_no_join() -> None:
    plan = plan_pipeline(
        "p", [file("text", 0, 9), file("image", 0, 9), file("text", 0, 5, unit=b"v")]
    )
    assert plan.partial == ()


def test_streams_cut_differently_are_to_be_joined() -> None:
    plan = plan_pipeline("p", [file("text", 0, 9), file("image", 0, 9, unit=b"v", order=b"q")])
    assert plan.partial == (0, 1)


def test_a_stream_of_another_order_is_not_aligned_by_row() -> None:
    plan = plan_pipeline("p", [file("text", 0, 9), file("image", 0, 9, order=b"other")])
    assert sorted(sorted(p.streams) for p in plan.pieces) == [["image"], ["text"]]
    assert plan.partial == (0, 1)
