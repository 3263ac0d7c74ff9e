"""A plug-in under test, its samples, and how encodings are compared with each other and a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.tokenizer import (
    Checkpoint,
    Descriptor,
    Encoded,
    Encoding,
    Fields,
    OutputSpec,
    Tokenizer,
)


class Broken(Exception):
    """A check failed: the message says on which sample and how."""


class NotApplicable(Exception):
    """The plug-in does not claim what the check is about."""


@dataclass(kw_only=True)
class Subject:
    """A loaded plug-in and its samples, with the encodings that several checks look at."""

    cls: type[Tokenizer]
    checkpoint: Checkpoint | None
    config: Mapping[str, Any]
    samples: list[Fields]
    tokenizer: Tokenizer
    described: Descriptor

    @cached_property
    def results(self) -> list[Encoding | SampleError]:
        """Every sample alone, by the generic path."""
        return [encode_one(self.tokenizer, fields) for fields in self.samples]

    @property
    def encoded(self) -> list[tuple[int, Encoding]]:
        return [(n, r) for n, r in enumerate(self.results) if not isinstance(r, SampleError)]

    def name(self, n: int) -> str:
        shown = repr(dict(self.samples[n]))
        return f"sample {n} ({shown if len(shown) < 70 else shown[:67] + '...'})"


def encode_one(tokenizer: Tokenizer, fields: Fields) -> Encoding | SampleError:
    """One sample by prepare, encode and join; a refusal is its verdict."""
    try:
        windows = list(tokenizer.preparer().prepare(fields, np.random.default_rng(0)))
        return tokenizer.join(tokenizer.encode(windows))
    except SampleError as fault:
        return fault


def same(a: Encoding | SampleError, b: Encoding | SampleError) -> bool:
    """Equal ids, dtypes and shapes, or the same reason for a refusal.

    Continuous latents may differ by what a batch's arithmetic order does to floats.
    """
    if isinstance(a, SampleError) or isinstance(b, SampleError):
        both = isinstance(a, SampleError) and isinstance(b, SampleError)
        return both and a.reason == b.reason  # type: ignore[union-attr]
    return a.keys() == b.keys() and all(
        a[k].shape == b[k].shape and a[k].ids.dtype == b[k].ids.dtype and _equal(a[k].ids, b[k].ids)
        for k in a
    )


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=1e-3, atol=1e-4))
    return np.array_equal(a, b)


def output_fault(one: Encoded, spec: OutputSpec) -> str | None:
    """What of an encoding is not as its OutputSpec says, or None."""
    if spec.dtype != "bfloat16" and one.ids.dtype != np.dtype(spec.dtype):
        return f"dtype {one.ids.dtype}, declared {spec.dtype}"
    if len(one.shape) != len(spec.axes):
        return f"shape {one.shape}, declared axes {spec.axes}"
    if one.ids.ndim != 1 or one.ids.size != int(np.prod(one.shape)):
        return f"{one.ids.shape} ids for the shape {one.shape}: they must be flat, in C order"
    if one.n_valid is not None and not 0 <= one.n_valid <= one.shape[0]:
        return f"n_valid {one.n_valid} outside the first axis {one.shape[0]}"
    if spec.continuous or not spec.codebook_sizes or not one.ids.size:
        return None
    return _range_fault(one, spec)


def _range_fault(one: Encoded, spec: OutputSpec) -> str | None:
    sizes = spec.codebook_sizes
    columns = [one.ids]
    if len(sizes) > 1 and "codebook" in spec.axes:
        grid = np.moveaxis(one.ids.reshape(one.shape), spec.axes.index("codebook"), 0)
        columns = list(grid.reshape(len(grid), -1))
        if len(columns) > len(sizes):
            return f"{len(columns)} codebooks, {len(sizes)} declared"
    for k, column in enumerate(columns):
        size = sizes[k] if len(sizes) > 1 and len(columns) > 1 else max(sizes)
        if int(column.max(initial=0)) >= size:
            return f"id {int(column.max())} in codebook {k} of size {size}"
    return None
