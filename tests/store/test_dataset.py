from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.built import Builder, doc, input_, space_of
from tokenmill.schemas.errors import (
    CorruptStore,
    JobError,
    SpaceMismatch,
    StoreError,
    TokenizerError,
)
from tokenmill.schemas.identity import sample_ids
from tokenmill.schemas.shard import Verdict
from tokenmill.store.dataset import MixedRecipes, open_store
from tokenmill.store.decoding import StreamTokenizer
from tokenmill.store.snapshot import take_snapshot

A, B = input_("a.tar"), input_("b.tar")
CONTENT = {
    A: [
        doc("a/0", text=[1, 2, 3], image=range(6), shape=(2, 3)),
        doc("a/1", text=None, image=range(4), shape=(2, 2)),
        doc("a/2", text="invalid-utf8", image="decoder-refused"),
    ],
    B: [doc("b/0", text=[], image=range(2), shape=(1, 2)), doc("b/1", text=[9], image=None)],
}


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    return Builder(str(tmp_path / "store"))


def seen(dataset: Any, *streams: str) -> list[tuple[Any, ...]]:
    """(key, ids per stream) of all rows; ids as lists."""
    rows = []
    for row in dataset:
        ids = [row.get(s) for s in streams]
        rows.append((row.key, *(None if i is None else i.tolist() for i in ids)))
    return rows


def test_rows_hold_both_streams_of_a_sample_side_by_side(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", CONTENT)
    dataset = open_store(built.uri)
    assert seen(dataset, "text", "image") == [
        ("a/0", [1, 2, 3], [0, 1, 2, 3, 4, 5]),
        ("a/1", None, [0, 1, 2, 3]),
        ("a/2", None, None),
        ("b/0", [], [0, 1]),
        ("b/1", [9], None),
    ]
    assert len(dataset) == 5


def test_a_row_tells_who_it_is_and_why_it_has_no_tokens(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", CONTENT)
    first, second, third, *_ = open_store(built.uri)
    assert (first.id, first.key) == (sample_ids(A.uri)("a/0"), "a/0")
    assert (first.source, first.pipeline) == (A.uri, "docs")
    assert first.shape("image") == (2, 3) and first.shape("text") == (3,)
    assert first["image"].reshape(first.shape("image")).shape == (2, 3)
    assert first.streams == ("image", "text")
    assert second.verdict("text") is Verdict.ABSENT and second.shape("text") is None
    assert third.verdict("image") is Verdict.QUARANTINED
    with pytest.raises(KeyError, match="image, text"):
        first["imgae"]


def test_ids_are_read_only_views_of_the_shard_in_its_own_dtype(built: Builder) -> None:
    built.encode("docs", "text", {A: [doc("k", text=[5, 6])]})
    ids = next(iter(open_store(built.uri)))["text"]
    assert ids.dtype == np.uint16 and not ids.flags.writeable and not ids.flags.owndata
    with pytest.raises(ValueError):
        ids[0] = 1


def test_rows_stay_valid_after_their_file_is_closed(built: Builder) -> None:
    built.encode("docs", "text", {A: [doc(str(i), text=[i] * 50) for i in range(3000)]})
    rows = list(open_store(built.uri))
    assert all(row["text"].tolist() == [i] * 50 for i, row in enumerate(rows))


def test_a_stream_that_is_not_committed_yet_is_none_without_a_verdict(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "text", {input_("c.tar"): [doc("c/0", text=[7])]})
    built.encode("docs", "image", CONTENT)
    late = next(row for row in open_store(built.uri) if row.key == "c/0")
    assert late["image"] is None and late.verdict("image") is None and late.shape("image") is None
    assert late["text"].tolist() == [7]


def test_streams_with_other_batches_and_other_files_stay_aligned(built: Builder) -> None:
    docs = [
        doc(f"{i}", text=[i % 7] * (i % 50), image=[i % 60_000] * 4, shape=(2, 2))
        for i in range(5000)
    ]
    built.encode("docs", "text", {A: docs}, encoding="zstd", roll_bytes=20_000)
    built.encode("docs", "image", {A: docs})
    dataset = open_store(built.uri)
    assert dataset.sql("select count(*) n from shards where stream = 'text'")["n"][0].as_py() > 1
    for i, row in enumerate(dataset):
        assert row.key == str(i)
        assert len(row["text"]) == i % 50 and row["image"][0] == i % 60_000


def test_a_newer_version_of_an_input_replaces_its_rows_alone(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    newer = input_("a.tar", version="v2")
    built.encode("docs", "text", {newer: [doc("a/0", text=[4, 4])]}, run="run-2")
    dataset = open_store(built.uri)
    assert sorted(seen(dataset, "text")) == [("a/0", [4, 4]), ("b/0", []), ("b/1", [9])]
    assert len(dataset) == 3


def test_streams_cut_into_other_units_are_joined_by_sample_id(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", {B: CONTENT[B]})
    built.encode("docs", "image", {A: CONTENT[A]})
    dataset = open_store(built.uri)
    assert sorted(seen(dataset, "text", "image"), key=lambda r: r[0]) == [
        ("a/0", [1, 2, 3], [0, 1, 2, 3, 4, 5]),
        ("a/1", None, [0, 1, 2, 3]),
        ("a/2", None, None),
        ("b/0", [], [0, 1]),
        ("b/1", [9], None),
    ]
    joined = {row.key: row for row in dataset}
    assert joined["a/0"].shape("image") == (2, 3)
    assert joined["a/2"].verdict("image") is Verdict.QUARANTINED
    assert joined["b/1"].verdict("image") is Verdict.ABSENT
    assert joined["b/0"].source == B.uri
    assert len(dataset) == 5


def test_the_same_samples_in_another_order_are_joined_by_sample_id(built: Builder) -> None:
    docs = [doc(str(i), text=[i], image=[i], shape=(1, 1)) for i in range(300)]
    built.encode("docs", "text", {A: docs})
    built.encode("docs", "image", {A: docs[::-1]})
    rows = list(open_store(built.uri))
    assert len(rows) == 300
    assert all(int(row["text"][0]) == int(row["image"][0]) == int(row.key) for row in rows)


def test_g8_the_old_version_of_a_sample_is_never_paired_with_the_new_one(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", CONTENT)
    newer = input_("a.tar", version="v2")
    built.encode("docs", "text", {newer: [doc("a/0", text=[4, 4])]}, run="run-2")
    dataset = open_store(built.uri)
    rows = {row.key: row for row in dataset}
    assert rows["a/0"]["text"].tolist() == [4, 4]
    assert rows["a/0"]["image"] is None and rows["a/0"].verdict("image") is None
    assert rows["b/0"]["text"] is not None and rows["b/0"]["image"].tolist() == [0, 1]
    assert set(rows) == {"a/0", "b/0", "b/1"} and len(list(dataset)) == len(dataset) == 3
    assert len(list(dataset.rows(["image"]))) == 5
    built.encode("docs", "image", {newer: [doc("a/0", image=[8], shape=(1, 1))]}, run="run-2")
    assert sorted(seen(open_store(built.uri), "text", "image")) == [
        ("a/0", [4, 4], [8]),
        ("b/0", [], [0, 1]),
        ("b/1", [9], None),
    ]


INPUTS = [input_(f"{n}.tar") for n in range(4)]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_the_cuts_each_sample_comes_once_with_all_its_streams(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    built = Builder(str(tmp_path_factory.mktemp("store")))
    content = {
        each: [doc(f"{n}/{i}", text=[n, i], image=[i, n], shape=(1, 2)) for i in range(3)]
        for n, each in enumerate(INPUTS)
    }
    expected: dict[str, set[str]] = {}
    for stream in ("text", "image"):
        order = data.draw(st.permutations(INPUTS))
        taken = data.draw(st.integers(0, len(INPUTS)))
        cuts = data.draw(st.sets(st.integers(1, 3)))
        groups = np.split(np.arange(taken), sorted(c for c in cuts if c < taken))
        for group in groups:
            if len(group):
                built.encode("p", stream, {order[g]: content[order[g]] for g in group})
        for each in order[:taken]:
            for made in content[each]:
                expected.setdefault(made.key, set()).add(stream)
    dataset = open_store(built.uri)
    rows = {row.key: row for row in dataset}
    assert len(rows) == len(list(dataset)) == len(dataset)
    assert {key: set(row.streams) for key, row in rows.items()} == expected
    for key, row in rows.items():
        n, i = map(int, key.split("/"))
        assert row.get("text", np.array([n, i])).tolist() == [n, i]
        assert row.get("image", np.array([i, n])).tolist() == [i, n]


def test_the_order_of_rows_depends_on_the_snapshot_alone(built: Builder) -> None:
    for n in range(6):
        built.encode(
            f"p{n % 2}", "text", {input_(f"{n}"): [doc(f"{n}/{i}", text=[i]) for i in (1, 2)]}
        )
    dataset = open_store(built.uri)
    keys = [row.key for row in dataset]
    assert [row.pipeline for row in dataset] == ["p0"] * 6 + ["p1"] * 6
    assert keys == [row.key for row in open_store(built.uri, snapshot=dataset.snapshot)]
    assert [row.key for row in dataset.take(3)] == keys[:3]


def test_a_pinned_snapshot_reads_the_same_rows_after_the_store_has_grown(built: Builder) -> None:
    built.encode("docs", "text", {A: [doc("a", text=[1])]})
    pinned = open_store(built.uri).snapshot
    built.encode("docs", "text", {B: [doc("b", text=[2])]})
    assert len(open_store(built.uri)) == 2
    assert [r.key for r in open_store(built.uri, snapshot=pinned)] == ["a"]
    assert [r.key for r in open_store(built.uri, snapshot=pinned[:12])] == ["a"]
    with pytest.raises(StoreError, match="no snapshots begin with 'ffff"):
        open_store(built.uri, snapshot="ffff" if not pinned.startswith("ffff") else "0000")


def test_what_is_not_there_is_refused_by_name(built: Builder, tmp_path: Path) -> None:
    built.encode("docs", "text", CONTENT)
    with pytest.raises(StoreError):
        open_store(str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match="no tag 'v1'"):
        open_store(built.uri, tag="v1")
    with pytest.raises(JobError, match="did you mean 'docs'"):
        open_store(built.uri, pipeline="doc")
    with pytest.raises(JobError, match="did you mean 'text'"):
        open_store(built.uri).columns("txt")


def test_an_empty_store_has_no_rows(built: Builder) -> None:
    dataset = open_store(built.uri)
    assert (len(dataset), list(dataset), dataset.streams) == (0, [], ())


def test_g7_a_reader_that_asks_for_another_space_is_refused(built: Builder) -> None:
    built.encode("docs", "text", CONTENT, space="one")
    assert open_store(built.uri, spaces={"text": space_of("one")}).spaces == {
        "text": (space_of("one"),)
    }
    with pytest.raises(SpaceMismatch) as refused:
        open_store(built.uri, spaces={"text": space_of("two")})
    assert space_of("one") in str(refused.value) and space_of("two") in str(refused.value)


def test_g7_two_spaces_in_one_stream_are_not_read_together(built: Builder) -> None:
    built.encode("old", "text", CONTENT, space="one")
    built.encode("new", "text", CONTENT, space="two")
    dataset = open_store(built.uri)
    for read in (dataset.rows, dataset.batches, lambda: dataset.columns("text"), dataset.__iter__):
        with pytest.raises(SpaceMismatch) as refused:
            read()
        assert space_of("one") in str(refused.value) and space_of("two") in str(refused.value)
    assert len(list(dataset.select(pipeline="new"))) == 5
    assert len(list(open_store(built.uri, pipeline="old"))) == 5


def test_g7_a_mix_of_recipes_in_one_space_is_read_and_reported(built: Builder) -> None:
    built.encode("docs", "text", {A: CONTENT[A]}, revision=1)
    built.encode("docs", "text", {B: CONTENT[B]}, revision=2)
    dataset = open_store(built.uri)
    assert len(dataset.recipes["text"]) == 2
    with pytest.warns(MixedRecipes, match="2 recipes"):
        assert len(list(dataset)) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(open_store(built.uri, snapshot=dataset.snapshot).select(streams=()).rows())


def test_batches_give_flat_values_and_offsets(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", CONTENT)
    (batch,) = open_store(built.uri).batches(["text"])
    column = batch["text"]
    assert column.values.tolist() == [1, 2, 3, 9] and column.values.dtype == np.uint16
    assert column.offsets.tolist() == [0, 3, 3, 3, 3, 4]
    assert column.verdicts.tolist() == [0, 2, 1, 0, 0]
    assert batch.id_array.shape == (5, 16) and bytes(batch.id_array[0]) == sample_ids(A.uri)("a/0")
    assert set(batch.columns) == {"text"}
    (image,) = open_store(built.uri).columns("image")
    assert image.shapes.tolist() == [[2, 3], [2, 2], [0, 0], [1, 2], [0, 0]]


def test_a_batch_becomes_a_jagged_tensor_in_two_lines(built: Builder) -> None:
    torch = pytest.importorskip("torch")
    built.encode("docs", "text", CONTENT)
    (column,) = open_store(built.uri).columns("text")
    ids = torch.from_numpy(column.values.astype(np.int64))
    jagged = torch.nested.nested_tensor_from_jagged(ids, torch.tensor(column.offsets))
    assert [each.tolist() for each in jagged.unbind()] == [[1, 2, 3], [], [], [], [9]]


def test_reading_one_stream_leaves_out_samples_that_have_no_verdict_in_it(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", {A: CONTENT[A]})
    assert [row.key for row in open_store(built.uri).rows(["image"])] == ["a/0", "a/1", "a/2"]


def test_a_dataset_that_was_pickled_reads_the_same(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    dataset = open_store(built.uri)
    dataset.sql("select 1")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.snapshot == dataset.snapshot and seen(copy, "text") == seen(dataset, "text")


def test_a_shard_that_lost_rows_is_named(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "text", {input_("c"): [doc("c", text=[1])]})
    long, short = sorted(Path(built.uri).rglob("*.arrow"), key=lambda p: -p.stat().st_size)[:2]
    assert long.parent.name == "text"
    dataset = open_store(built.uri)
    long.write_bytes(short.read_bytes())
    with pytest.raises(CorruptStore, match=long.name):
        list(dataset)


def test_decode_hands_the_recorded_tokenizer_to_the_decoder_once(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    asked: list[StreamTokenizer] = []

    def decoder(tokenizer: StreamTokenizer) -> Any:
        asked.append(tokenizer)
        return lambda ids, shape: (ids.tolist(), shape)

    dataset = open_store(built.uri, decoder=decoder)
    rows = list(dataset)
    assert dataset.decode(rows[0], "text") == ([1, 2, 3], (3,))
    assert dataset.decode(rows[1], "text") is None
    assert rows[4].decode("text") == ([9], (1,))
    (tokenizer,) = asked
    assert (tokenizer.tokenizer, tokenizer.checkpoint) == ("bpe", "/weights/tokenizer.json")
    assert tokenizer.checkpoint_sha256 == "ab" * 32 and tokenizer.config == {"bos": True}
    assert tokenizer.space == space_of("one")


def test_decode_without_a_decoder_or_a_tokenizer_row_says_so(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    dataset = open_store(built.uri)
    with pytest.raises(JobError, match="no decoder"):
        dataset.decode(next(iter(dataset)), "text")
    with pytest.raises(TokenizerError):
        dataset.tokenizer("docs", "text", "0" * 64)


def test_joined_rows_decode_with_the_recipe_that_made_them(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", {A: CONTENT[A]}, revision=1)
    built.encode("docs", "image", {B: CONTENT[B]}, revision=2)

    def decoder(tokenizer: StreamTokenizer) -> Any:
        return lambda ids, shape: tokenizer.descriptor["ids_revision"]

    with pytest.warns(MixedRecipes):
        rows = {row.key: row for row in open_store(built.uri, decoder=decoder)}
    assert rows["a/0"].decode("image") == 1 and rows["b/0"].decode("image") == 2


def test_a_store_that_may_not_be_written_is_read_with_a_warning(
    built: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.encode("docs", "text", CONTENT)

    def refuse(self: object, path: str, data: bytes) -> bool:
        raise StoreError("read-only", where=path)

    # root, who runs these tests, may write into read-only folders
    monkeypatch.setattr("tokenmill.store.access.Access.create", refuse)
    with pytest.warns(UserWarning, match="may not be written"):
        dataset = open_store(built.uri)
    assert len(list(dataset)) == 5


@pytest.mark.s3
def test_a_store_in_s3_is_read_the_same(s3: Any) -> None:
    built = Builder(s3())
    built.encode("docs", "text", CONTENT)
    built.encode("docs", "image", {B: CONTENT[B]})
    built.encode("docs", "image", {A: CONTENT[A]})
    dataset = open_store(built.uri)
    assert sorted(seen(dataset, "text", "image"), key=lambda r: r[0])[0] == (
        "a/0",
        [1, 2, 3],
        [0, 1, 2, 3, 4, 5],
    )
    assert dataset.sql("select sum(samples) n from shards where stream = 'text'")[
        "n"
    ].to_pylist() == [3]
    pinned = open_store(built.uri, snapshot=dataset.snapshot)
    assert len(pinned) == 5


def test_the_snapshot_of_a_dataset_is_the_current_one(built: Builder) -> None:
    built.encode("docs", "text", CONTENT)
    assert open_store(built.uri).snapshot == take_snapshot(built.access, built.ledger).hash


def test_spaces_may_be_given_by_their_beginning_but_not_by_nothing(built: Builder) -> None:
    built.encode("docs", "text", CONTENT, space="one")
    wanted: Mapping[str, str] = {"text": space_of("one")[:12]}
    assert len(open_store(built.uri, spaces=wanted)) == 5
    with pytest.raises(SpaceMismatch):
        open_store(built.uri, spaces={"text": ""})
