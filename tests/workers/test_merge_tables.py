"""Merge tables from strangers, their files, and the plug-in that puts them to work."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tokenmill.schemas.errors import SampleError, TokenizerError
from tokenmill.schemas.tokenizer import Checkpoint, Encoded, parent_mismatch
from tokenmill.workers.conformance import check
from tokenmill.workers.tokenizers.bpe_image_merges.codec import MergeCodec
from tokenmill.workers.tokenizers.bpe_image_merges.grids import Grids
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import (
    METADATA,
    MergeTable,
    read_table,
    write_table,
)
from tokenmill.workers.tokenizers.bpe_image_merges.pickled import read_pickled
from tokenmill.workers.tokenizers.bpe_image_merges.tokenizer import MergesTokenizer

VECTORS = Path(__file__).resolve().parents[1] / "data" / "merges"


def vector(name: str):
    return np.load(VECTORS / f"{name}.npz", allow_pickle=False)


def table(mode="region2d", vocab=4, rules=((0, 1, 0, 1), (4, 4, 1, 0)), **more) -> MergeTable:
    rows = np.array(rules, np.int32)
    counts = np.arange(len(rows), 0, -1, dtype=np.int64)
    return MergeTable(mode=mode, vocab=vocab, rules=rows, counts=counts, **more)


# -- the released code's pickle --------------------------------------------------------------


def test_the_released_pickle_gives_its_rules():
    path = VECTORS / "official_16x16_v64.pkl"
    found = read_table(path, where="x")
    assert (found.mode, found.vocab) == ("being-vl-0.5", 64)
    assert np.array_equal(found.rules, vector("official_16x16_v64")["merges"][:, :2])
    codec = MergeCodec(found)
    ids, _ = codec.encode(Grids.of(list(vector("official_16x16_v64")["heldout_codes"])))
    assert np.array_equal(ids, vector("official_16x16_v64")["heldout_tokens"])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=300),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
    st.integers(1, 1 << 20),
)
def test_every_pickle_protocol_of_plain_rules_is_read(pairs, protocol, vocab):
    rules = [(pair, vocab + n) for n, pair in enumerate(pairs)]
    found, rows = read_pickled(pickle.dumps(rules, protocol), where="x")
    assert found == vocab and rows.tolist() == [list(p) for p in pairs]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/tokenmill-was-here",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_with_a_global_is_refused_and_nothing_runs(protocol):
    """G9."""
    marker = Path("/tmp/tokenmill-was-here")
    marker.unlink(missing_ok=True)
    for value in ([((0, 1), 2), Evil()], [((0, 1), np.int64(2))], Evil):
        with pytest.raises(TokenizerError, match="opcode"):
            read_pickled(pickle.dumps(value, protocol), where="x")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x04]\x94(e.",
        pickle.dumps([]),
        pickle.dumps({1: 2}),
        pickle.dumps([((0, 1), 2), ((0, 1), 9)]),  # ids with a gap
        pickle.dumps([((0, -1), 2)]),
        pickle.dumps([((0, 1.5), 2)]),
        pickle.dumps([((0, 1), 1 << 40)]),
        pickle.dumps([[[0, 1], 2]]),
        b"\x80\x04]\x94r\xff\xff\xff\xff.",  # a memo index of 2^32 - 1: 32 GiB in the C unpickler
        b"\x80\x04K\x01K\x02a.",
        b"\x80\x04(((((((t.",
        b"P0\n.",
        b"\x80\x04\x8a\xff" + b"\xff" * 10,
    ],
)
def test_a_pickle_that_is_no_list_of_rules_is_a_message(data):
    """G9."""
    with pytest.raises(TokenizerError, match="not a merge table"):
        read_pickled(data, where="x")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_a_message(data):
    """G9."""
    with pytest.raises(TokenizerError):
        read_pickled(b"\x80\x04" + data, where="x")


# -- our own files ---------------------------------------------------------------------------


def test_a_table_comes_back_from_its_file_byte_for_byte(tmp_path):
    one = table(lineage={"codes_space": "ab" * 32, "grids": 3})
    digest = write_table(one, str(tmp_path / "a.safetensors"))
    assert write_table(one, str(tmp_path / "b.safetensors")) == digest
    back = read_table(tmp_path / "a.safetensors", where="x")
    assert np.array_equal(back.rules, one.rules) and np.array_equal(back.counts, one.counts)
    assert (back.mode, back.vocab, back.lineage) == (one.mode, one.vocab, one.lineage)
    assert back.space() == one.space() and back.codes_space == "ab" * 32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_what_an_id_means_follows_codes_rules_and_mode():
    spaces = {
        table().space(),
        table(vocab=5).space(),
        table(rules=((0, 1, 0, 1), (4, 4, 1, 1))).space(),
        table(mode="priority", rules=((0, 1), (4, 4))).space(),
        table(mode="being-vl-0.5", rules=((0, 1), (4, 4))).space(),
    }
    assert len(spaces) == 5


def broken_files():
    good = table()
    head = {"format": 1, "mode": "region2d", "vocab": 4, "lineage": {}}

    def file(tensors=None, **changes):
        text = {METADATA: json.dumps({**head, **changes})}
        return save(tensors or {"rules": good.rules, "counts": good.counts}, text)

    yield "newer format", file(format=2)
    yield "unknown mode", file(mode="spiral")
    yield "no vocab", file(vocab=0)
    yield "vocab no number", file(vocab="many")
    yield "two columns", file({"rules": good.rules[:, :2].copy(), "counts": good.counts})
    yield "other dtype", file({"rules": good.rules.astype(np.int64), "counts": good.counts})
    yield "counts missing", file({"rules": good.rules})
    yield "counts too short", file({"rules": good.rules, "counts": good.counts[:1].copy()})
    yield "no metadata", save({"rules": good.rules, "counts": good.counts})
    yield "cut short", file()[:-5]
    yield "huge header", struct.pack("<Q", 1 << 60) + b"{" + b" " * 64
    yield "lists for metadata", save({"rules": good.rules}, {METADATA: "[" * 5000})


@pytest.mark.parametrize(
    ("kind", "data"), broken_files(), ids=lambda v: v if type(v) is str else ""
)
def test_a_broken_file_is_a_message(tmp_path, kind, data):
    """G9."""
    (tmp_path / "t.safetensors").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"cannot be read"):
        read_table(tmp_path / "t.safetensors", where="t")


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([(0, 4, 0, 1)], "only ids below 4 exist"),
        ([(0, -1, 0, 1)], "only ids below 4 exist"),
        ([(0, 1, 0, 0)], "raster order"),
        ([(0, 1, 0, -1)], "raster order"),
        ([(0, 1, 2, 0)], "do not touch"),
        ([(0, 1, 1, 1)], "do not touch"),
        ([(0, 1, 0, 1), (0, 1, 0, 1)], "stands twice"),
        ([(0, 1, 0, 1), (4, 1, 0, 1)], "overlap"),
        ([(0, 1, 5000, 0)], "raster order"),
        ([(4 + n - 1 if n else 0, 4 + n - 1 if n else 0, 0, 1 << n) for n in range(30)], "cells"),
    ],
)
def test_a_table_whose_rules_lie_is_refused(rules, why):
    """G9: no memory bomb, no overlapping cells, no id from the future."""
    with pytest.raises(TokenizerError, match=why):
        MergeCodec(table(rules=rules))


def test_pairs_from_the_future_are_refused():
    with pytest.raises(TokenizerError, match="does not exist before it"):
        MergeCodec(table(mode="being-vl-0.5", rules=[(0, 1), (0, 5)]))


# -- the plug-in -----------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    found = vector("region2d_9x13_v24")
    made = MergeTable(
        mode="region2d", vocab=24, rules=found["merges"], counts=found["freqs"].astype(np.int64)
    )
    write_table(made, str(tmp_path / "m.safetensors"))
    return Checkpoint(uri=str(tmp_path / "m.safetensors"))


def one(tokenizer, grid):
    flat = tokenizer.encode_flat([grid])
    for fault in flat.faults.values():
        raise fault
    return flat.values


def decoded(tokenizer, ids):
    return tokenizer.decode({"merged": Encoded(ids=ids, shape=ids.shape)})


def test_the_plug_in_conforms(checkpoint):
    report = check("bpe-image-merges", checkpoint)
    assert report.ok, [c for c in report.checks if c.verdict == "fail"]
    assert sum(c.verdict == "pass" for c in report.checks) > 4


def test_ids_alone_give_back_grids_of_any_shape(checkpoint):
    tokenizer = MergesTokenizer.load(checkpoint, {})
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (1, 128), (128, 1), (9, 13), (20, 30)):
        grid = rng.integers(0, 24, shape).astype(np.uint16)
        ids = one(tokenizer, grid)
        assert ids.dtype == np.uint16 and (ids[:2] - (24 + 60) + 1 == shape).all()
        assert np.array_equal(decoded(tokenizer, ids), grid)


def test_a_fixed_grid_costs_no_ids_and_they_are_the_vectors(checkpoint):
    found = vector("region2d_9x13_v24")
    tokenizer = MergesTokenizer.load(checkpoint, {"grid": [9, 13]})
    flat = tokenizer.encode_flat(list(found["heldout_codes"]))
    assert np.array_equal(flat.values, found["heldout_tokens"])
    assert np.array_equal(np.diff(flat.offsets), found["heldout_len"])
    assert np.array_equal(
        decoded(tokenizer, flat.values[: flat.offsets[1]]), found["heldout_codes"][0]
    )


def test_faults_of_a_block_leave_the_others_their_ids(checkpoint):
    tokenizer = MergesTokenizer.load(checkpoint, {"grid": [2, 2]})
    good = np.array([[1, 2], [3, 4]], np.uint16)
    values = [good, good + 50, b"text", good[:1], good, np.zeros((2, 2)), good[:0]]
    flat = tokenizer.encode_flat(values)
    assert {at: fault.reason for at, fault in flat.faults.items()} == {
        1: "code-out-of-range",
        2: "not-a-grid",
        3: "wrong-grid",
        5: "not-a-grid",
        6: "not-a-grid",
    }
    lengths = np.diff(flat.offsets)
    assert lengths.tolist() == [lengths[0], 0, 0, 0, lengths[0], 0, 0] and lengths[0] > 0
    with pytest.raises(SampleError, match="max_side"):
        one(MergesTokenizer.load(checkpoint, {"max_side": 4}), np.zeros((5, 1), np.uint16))


def test_every_setting_that_changes_ids_changes_the_recipe_and_none_other(checkpoint):
    def recipe(**config):
        return MergesTokenizer.load(checkpoint, config).identity().recipe

    different = [recipe(), recipe(grid=[9, 13]), recipe(grid="outside"), recipe(rules=10),
                 recipe(max_side=64), recipe(grid=[13, 9])]  # fmt: skip
    assert len(set(different)) == len(different)
    assert recipe(rules=60) == recipe()


def test_fewer_rules_are_the_same_family(checkpoint):
    few = MergesTokenizer.load(checkpoint, {"rules": 5, "grid": "outside"})
    assert few.descriptor.outputs[0].codebook_sizes == (29,)
    grid = vector("region2d_9x13_v24")["heldout_codes"][0]
    assert one(few, grid).max() < 29


def test_what_cannot_be_decoded_says_why(checkpoint, tmp_path):
    outside = MergesTokenizer.load(checkpoint, {"grid": "outside"})
    with pytest.raises(TokenizerError, match="do not say the size"):
        decoded(outside, np.zeros(4, np.uint16))
    assert not outside.lossless
    pickled = Checkpoint(uri=str(VECTORS / "official_16x16_v64.pkl"))
    with pytest.raises(TokenizerError, match="cannot be decoded"):
        decoded(MergesTokenizer.load(pickled, {}), np.zeros(4, np.uint16))
    sized = MergesTokenizer.load(checkpoint, {})
    for ids in ([], [1, 2, 3], [84, 84], [84, 84, 1, 1]):
        with pytest.raises(TokenizerError, match="no merged grid"):
            decoded(sized, np.array(ids, np.uint16))


def test_merges_are_for_the_codes_they_were_learnt_on(tmp_path):
    """G7."""
    write_table(table(lineage={"codes_space": "ab" * 32}), str(tmp_path / "m.safetensors"))
    tokenizer = MergesTokenizer.load(Checkpoint(uri=str(tmp_path / "m.safetensors")), {})
    descriptor = tokenizer.descriptor
    axes = ("H", "W")
    assert parent_mismatch(descriptor, axes, (4,), "ab" * 32) is None
    assert "space" in str(parent_mismatch(descriptor, axes, (4,), "cd" * 32))
    assert "codebooks" in str(parent_mismatch(descriptor, axes, (5,), "ab" * 32))
    assert "axes" in str(parent_mismatch(descriptor, ("T", *axes), (4,), "ab" * 32))


@pytest.mark.parametrize(
    ("config", "key"),
    [({"gird": [1, 2]}, "did you mean 'grid'"), ({"grid": [0, 2]}, "grid"), ({"grid": 4}, "grid"),
     ({"max_side": 0}, "max_side"), ({"rules": -1}, "rules"), ({"rules": True}, "rules")],
)  # fmt: skip
def test_a_wrong_setting_is_named(checkpoint, config, key):
    with pytest.raises(TokenizerError, match=key):
        MergesTokenizer.load(checkpoint, config)


# -- fit -------------------------------------------------------------------------------------


def fitted(folder, name, grids, **config):
    lineage = MergesTokenizer.fit(iter([{"vq": g} for g in grids]), str(folder / name), config)
    return lineage, (folder / name).read_bytes()


@pytest.mark.parametrize("mode", ["region2d", "being-vl-0.5"])
def test_fit_writes_the_same_file_with_one_two_and_three_workers(tmp_path, mode):
    rng = np.random.default_rng(9)
    grids = [rng.integers(0, 6, (rng.integers(1, 9), rng.integers(1, 9))) for _ in range(40)]
    files = set()
    for workers in (1, 2, 3):
        lineage, data = fitted(tmp_path, "m", grids, mode=mode, rules=30, workers=workers)
        files.add(data)
        assert (lineage["rules"], lineage["grids"], lineage["vocab"]) == (30, 40, 6)
    assert len(files) == 1


def test_fit_learns_the_vectors_table_and_says_where_it_came_from(tmp_path):
    found = vector("region2d_9x13_v24")
    lineage, _ = fitted(
        tmp_path,
        "m.safetensors",
        [*found["train_codes"], np.zeros((0, 3), np.uint16), np.zeros(3)],
        vocab=24,
        rules=60,
        max_cells=1024,
        lineage={"codes_space": "ab" * 32},
    )
    made = read_table(tmp_path / "m.safetensors", where="m")
    assert np.array_equal(made.rules, found["merges"])
    assert made.codes_space == "ab" * 32 and lineage["skipped"] == 2
    assert lineage["merges"] == int(found["applied"].sum())


def test_fit_refuses_what_gives_no_table(tmp_path):
    with pytest.raises(TokenizerError, match="no grid"):
        fitted(tmp_path, "m", [np.zeros(3)])
    with pytest.raises(TokenizerError, match=r"config\.vocab"):
        fitted(tmp_path, "m", [np.full((2, 2), 9)], vocab=9)
    with pytest.raises(TokenizerError, match="did you mean 'max_cells'"):
        fitted(tmp_path, "m", [np.zeros((2, 2), np.int32)], max_cell=9)
    with pytest.raises(TokenizerError, match="folder"):
        fitted(tmp_path / "gone", "m", [np.zeros((2, 2), np.int32)])
    fitted(tmp_path, "m", [np.zeros((2, 2), np.int32)] * 5, max_grids=2)
    lineage = read_table(tmp_path / "m", where="m").lineage
    assert (lineage["complete"], lineage["grids"]) == (False, 2)
