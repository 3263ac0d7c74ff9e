"""Local ids among a language model's: the published layouts and the vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers.tokenizers.bpe_image_merges.llm_layout import LlmLayout, llm_layout
from tokenmill.workers.tokenizers.bpe_image_merges.merge_table import MergeTable

VECTORS = Path(__file__).resolve().parents[1] / "data" / "merges" / "official_32x32_v512.npz"
NAMES = ["being-vl-llama3", "being-vl-chameleon"]


@pytest.mark.parametrize("kind", ["llama3", "chameleon"])
def test_the_vectors_ids_of_both_models(kind):
    with np.load(VECTORS, allow_pickle=False) as vector:
        codes_at, merges_at = vector[f"llm_{kind}_pad_end"].tolist()
        layout = LlmLayout(
            codes_at=codes_at, codes=512, merges_at=merges_at, merges=256, size=merges_at + 256,
            specials={}, before=(), after=(),
        )  # fmt: skip
        assert np.array_equal(layout.to_llm(vector["heldout_tokens"]), vector[f"llm_{kind}"])
        assert np.array_equal(layout.to_local(vector[f"llm_{kind}"]), vector["heldout_tokens"])


def test_the_published_numbers():
    llama = llm_layout("being-vl-llama3")
    assert llama.to_llm(np.array([0, 8191, 8192, 16383])).tolist() == [
        128261, 136452, 136453, 144644,
    ]  # fmt: skip
    assert llama.size == 144645 and llama.text == (0, 128256)
    picture = llama.picture(np.array([3], np.uint16)).tolist()
    assert picture == [128000, 128260, 128264, 128258]
    chameleon = llm_layout("being-vl-chameleon")
    assert chameleon.to_llm(np.array([0, 8191, 8192, 16383])).tolist() == [4, 8195, 65536, 73727]
    assert chameleon.picture(np.array([0])).tolist() == [8197, 4, 8196]


@pytest.mark.parametrize("name", NAMES)
def test_no_two_things_have_one_id(name):
    layout = llm_layout(name)
    image = set(layout.to_llm(np.arange(layout.codes + layout.merges)).tolist())
    assert len(image) == layout.codes + layout.merges
    assert image.isdisjoint(layout.specials.values())
    assert max(image | set(layout.specials.values())) < layout.size
    if layout.text is not None:
        assert min(image) >= layout.text[1]


@given(st.sampled_from(NAMES), st.lists(st.integers(0, 16383), max_size=20))
def test_there_and_back(name, ids):
    layout = llm_layout(name)
    assert layout.to_local(layout.to_llm(np.array(ids, np.int64))).tolist() == ids


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_nothing_are_refused(name):
    layout = llm_layout(name)
    for wrong in (-1, 16384):
        with pytest.raises(ValueError, match="outside"):
            layout.to_llm(np.array([wrong]))
    for special in layout.specials.values():
        with pytest.raises(ValueError, match="no code"):
            layout.to_local(np.array([special]))


def test_a_table_must_fit():
    layout = llm_layout("being-vl-llama3")
    rules = np.zeros((100, 2), np.int32)
    small = MergeTable(mode="priority", vocab=8192, rules=rules, counts=np.zeros(100, np.int64))
    assert layout.fitted(small).size == 136453 + 100
    other = MergeTable(mode="priority", vocab=512, rules=rules, counts=np.zeros(100, np.int64))
    with pytest.raises(TokenizerError, match="do not fit"):
        layout.fitted(other)
    with pytest.raises(TokenizerError, match="did you mean 'being-vl-llama3'"):
        llm_layout("being-vl-lama3")
