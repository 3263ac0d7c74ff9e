"""`tokenmill.load_tokenizer`: media in memory get the ids that a run gives them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import tokenmill
from tests.workers import bpe_files as files
from tests.workers.bpe_image.vectors import arrays, weights
from tests.workers.jobs import TOY, make_job, rows, run, write
from tokenmill.workers.tokenizers.bpe_image.examples import saved, scene


def test_texts_come_back_as_they_were():
    tokenizer = tokenmill.load_tokenizer("bpe", checkpoint=files.fitted())
    texts = ["def f(x): return x", "", "Füße"]
    encodings = tokenizer.encode_samples(texts)
    assert [tokenizer.decode(e) for e in encodings] == texts
    assert encodings[0]["ids"].shape == (len(encodings[0]["ids"].ids),)


def test_pictures_get_the_reference_ids_and_come_back_as_pictures():
    vectors = arrays("taming_attn_tiny")
    tokenizer = tokenmill.load_tokenizer(
        "bpe-image", checkpoint=str(weights("taming_attn_tiny")), size=64
    )
    picture = vectors["pixel_u8"][0].transpose(1, 2, 0)
    tall = np.asarray(scene(50, 90))
    first, other, again = tokenizer.encode_samples([picture, tall, {"image": picture}])
    assert first["vq"].shape == (32, 32)
    np.testing.assert_array_equal(first["vq"].ids.reshape(32, 32), vectors["indices"][0])
    np.testing.assert_array_equal(first["vq"].ids, again["vq"].ids)
    assert (other["vq"].ids != first["vq"].ids).any()
    back = tokenizer.decode(first)
    assert back.dtype == np.uint8 and back.shape == (64, 64, 3)
    [from_file] = tokenizer.encode_samples([saved(scene(50, 90), "PNG")])
    np.testing.assert_array_equal(from_file["vq"].ids, other["vq"].ids)


def test_a_sample_that_gets_no_tokens_is_named():
    tokenizer = tokenmill.load_tokenizer(
        "bpe-image", checkpoint=str(weights("taming_attn_tiny")), size=32
    )
    picture = np.asarray(scene(40, 40))
    with pytest.raises(tokenmill.SampleError, match="sample 1: no picture format") as caught:
        tokenizer.encode_samples([picture, b"junk", picture])
    assert caught.value.reason == "not-an-image"
    text = tokenmill.load_tokenizer("bpe", checkpoint=files.fitted())
    with pytest.raises(tokenmill.SampleError, match="sample 2"):
        text.encode_samples(["a", "b", b"\xff"])


def test_windows_batches_and_seeds_are_those_of_a_run(tmp_path):
    """G6: these ids are drawn from the seed, so one made in another way would show."""
    texts = [str(n) * (1 + n * 7 % 50) for n in range(12)]
    write(tmp_path, texts)
    job = make_job(tmp_path, tokenizer="Noisy")
    wanted = rows(job, run(job))
    made = tokenmill.load_tokenizer(f"{TOY}:Noisy").encode_samples(texts)
    assert [next(iter(e.values())).ids.astype(np.uint8).tobytes() for e in made] == wanted


def test_what_the_plug_in_offers_is_still_there():
    tokenizer = tokenmill.load_tokenizer("bpe", checkpoint=files.fitted())
    assert tokenizer.encode_flat(["a"]).offsets.tolist() == [0, 1]
    assert tokenizer.identity().space[:12] in repr(tokenizer)
    with pytest.raises(AttributeError, match="no_such"):
        _ = tokenizer.no_such
    copy = pickle.loads(pickle.dumps(tokenmill.load_tokenizer(f"{TOY}:Bytes")))
    assert copy.descriptor.name == "toy-bytes"
