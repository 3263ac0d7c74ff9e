"""The contract between tokenmill and a tokenizer plug-in. Protocols and plain records only.

A plug-in is a class named by an entry point of the group `tokenmill.tokenizers`:

    descriptor = Tokenizer.describe(config)            before any weights are read
    tokenizer = Tokenizer.load(checkpoint, config)     in the worker: Tokenizer is its own factory
    preparer = tokenizer.preparer()                    picklable, no GPU library: runs in a child
    windows = preparer.prepare(fields, rng)            one sample -> one or many windows
    pieces = tokenizer.encode(windows)                 a budgeted batch, on the device
    encoding = tokenizer.join(pieces)                  the pieces of one sample, in window order
    media = tokenizer.decode(encoding)                 optional

A tokenizer whose samples are one field, one window and one sequence each (text) offers
`encode_flat` beside these: whole batches in, one flat buffer out, no object per sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import json_hash, recipe_hash

Modality = Literal["text", "image", "video", "audio", "3d"]
Ids = NDArray[np.unsignedinteger[Any]]
Fields = Mapping[str, Any]  # a sample's fields by the names that the descriptor asks for


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSpec:
    """One token sequence that a tokenizer can make; a job stream takes exactly one output."""

    name: str = "ids"
    dtype: Literal["uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32"] = (
        "uint32"
    )
    axes: tuple[str, ...] = ("T",)  # ("T",) | ("T","H","W") | ("codebook","frame") | ("scale",)
    codebook_sizes: tuple[int, ...] = ()  # per codebook; one for most
    rate: Fraction | None = None  # positions along the first axis per second of media
    nested: bool = False  # a prefix of the ids is itself a coarser encoding
    ordered: bool = True  # False for a set
    continuous: bool = False
    prefix_cut: bool = False  # a reader may cut the sequence anywhere
    pads: bool = False  # media are padded to a length that fits: encodings say `media_valid`


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """What a plug-in is, before its weights are read."""

    name: str
    modality: Modality
    ids_revision: int  # raised by the plug-in whenever the same input gives other ids
    fields: tuple[str, ...]  # the roles `prepare` wants: ("text",), ("image",), ("video",)
    outputs: tuple[OutputSpec, ...]
    conditions: tuple[str, ...] = ()  # other fields that change the ids
    parent: str | None = None  # an output whose tokens it reads instead of media
    parent_axes: tuple[str, ...] = ()  # with `parent`: the axes of its ids, () for any
    parent_codebooks: tuple[int, ...] = ()  # with `parent`: sizes of its codebooks, () for any
    parent_space: str | None = None  # with `parent`: the only space whose ids it understands
    device: Literal["cpu", "cuda", "any"] = "cpu"
    prepare_in: Literal["worker", "child"] = "child"  # media decoding runs in a killable child
    memory_bytes: int = 0  # ceiling on the device, 0 unknown
    licence_code: str = ""
    licence_weights: str = ""
    use_policy: Literal["permissive", "non-commercial", "restricted", "unknown"] = "unknown"

    def output(self, name: str | None) -> OutputSpec:
        """The output called `name`, or the only one. Raises KeyError."""
        if name is None:
            if len(self.outputs) != 1:
                raise KeyError(
                    f"{self.name} has the outputs {[o.name for o in self.outputs]}: name one"
                )
            return self.outputs[0]
        for output in self.outputs:
            if output.name == name:
                return output
        raise KeyError(f"{self.name} has no output {name!r}, only {[o.name for o in self.outputs]}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerIdentity:
    """The three identities of a loaded tokenizer.

    space: 64 hex digits; weights, codebooks, what an id means. Readers enforce it.
    parts: everything else that may change an id: ids_revision, configuration, preparation,
        precision, chunking, batch policy, decoder family (JSON values). Their hash is the recipe.
    provenance: versions and devices: recorded, in no hash.
    """

    name: str
    space: str
    parts: Mapping[str, Any]
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        return recipe_hash(self.space, self.parts)

    def child_of(self, space: str, recipe: str) -> TokenizerIdentity:
        """The identity of a stream that reads another's tokens: theirs is part of its own."""
        parent = {"space": space, "recipe": recipe}
        return replace(
            self,
            space=json_hash({"space": self.space, "parent": space}),
            parts={**self.parts, "parent": parent},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Where the weights are. `sha256` is checked after fetching and before parsing."""

    uri: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFacts:
    """What a worker found its stream's tokenizer to be: the probe's answer, for plan and ledger."""

    stream: str
    identity: TokenizerIdentity
    descriptor: Descriptor
    output: OutputSpec
    checkpoint: str | None  # as the job names it, without secrets
    checkpoint_sha256: str | None
    config: Mapping[str, Any]
    modality: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A piece of one sample, ready for the device.

    arrays: name -> numpy array (or str, for text); crosses from the child in a memfd buffer.
    cost: what the batch budget counts (frames x height x width, samples of audio, characters).
    bucket: windows of one batch share it (usually the array shape).
    valid: length along the first axis that is not padding.
    carry: for models that go on where a sample's window before left off: that window's
        `Piece.carry`. None at index 0, and where that window stands right before in the batch.
    """

    arrays: Mapping[str, Any]
    index: int = 0
    last: bool = True
    overlap: int = 0
    valid: int | None = None
    cost: int = 1
    bucket: tuple[Any, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    carry: Any = None  # never crosses from a child


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What `encode` made of one window: output name -> ids of that window (any shape).

    carry: whatever the sample's next window needs of this one (device tensors, say); it is handed
    over in order and dropped with the sample, so a tokenizer object holds no sample's state.
    """

    ids: Mapping[str, NDArray[Any]]
    index: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    carry: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One stream of one sample. `ids` is C-ordered and flattened; `shape` gives it back its axes.

    n_valid: how much of the first axis is not padding; media_valid: how many frames or samples of
    the media that were (those that decoding should give back), where padding could hide it.
    scales: lengths of consecutive runs of `ids` (multi-scale), segments: named boundaries.
    """

    ids: NDArray[Any]
    shape: tuple[int, ...]
    n_valid: int | None = None
    media_valid: int | None = None
    scales: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()


Encoding = Mapping[str, Encoded]  # output name -> its sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatEncoding:
    """A batch of one-dimensional sequences: sample i has values[offsets[i]:offsets[i + 1]].

    values: the narrowest unsigned dtype that holds the codebook; offsets: int64[n + 1].
    faults: position -> SampleError, for samples that get no tokens (their length is 0).
    """

    values: Ids
    offsets: NDArray[np.int64]
    faults: Mapping[int, SampleError] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchBudget:
    """How windows are batched; part of the recipe, since batching may change float results."""

    cost: int = 1
    windows: int = 1


class Preparer(Protocol):
    """Pure, picklable, on the CPU; imports no GPU library unless it needs one."""

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]: ...


class Tokenizer(Protocol):
    """A loaded tokenizer. `encode` may keep no state between calls but what windows carry."""

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor: ...

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Tokenizer:
        """Raises TokenizerError where checkpoint or configuration cannot be used."""
        ...

    @property
    def descriptor(self) -> Descriptor: ...

    def identity(self) -> TokenizerIdentity: ...

    @property
    def budget(self) -> BatchBudget: ...

    def preparer(self) -> Preparer: ...

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]: ...

    def join(self, pieces: Sequence[Piece]) -> Encoding: ...


@runtime_checkable
class FlatTokenizer(Protocol):
    """Beside `Tokenizer`: whole batches of one field at once."""

    def encode_flat(self, values: Sequence[str | bytes]) -> FlatEncoding: ...


@runtime_checkable
class UnitChecker(Protocol):
    """Beside `Tokenizer`: a fast engine is compared with the reference one as the unit goes by."""

    def start_unit(self, unit: bytes) -> None: ...

    def notes(self) -> tuple[str, ...]:
        """What the run should record, such as why the fast engine was dropped."""
        ...


class EngineMismatch(Exception):
    """A fast engine gave other ids than the reference one, found while a unit went by.

    Raised by `encode_flat` or `encode` after the tokenizer has switched itself to the reference
    engine for good: the worker drops what the task wrote and runs it again from its beginning,
    with the same tokenizer object. No verdict, no attempt; `notes()` says why.
    """


def parent_mismatch(
    child: Descriptor, axes: tuple[str, ...], codebooks: tuple[int, ...], space: str
) -> str | None:
    """Why tokens of these axes, codebooks and this space are not what the child reads, or None."""
    if child.parent_axes and child.parent_axes != axes:
        return f"it reads ids with the axes {child.parent_axes}, the parent's have {axes}"
    if child.parent_codebooks and child.parent_codebooks != codebooks:
        return (
            f"it reads ids of the codebooks {child.parent_codebooks}, the parent's are {codebooks}"
        )
    if child.parent_space not in (None, space):
        return (
            f"it was made for ids of the space {child.parent_space}, the parent's is {space}: the "
            "same number means another thing"
        )
    return None


@runtime_checkable
class Decodes(Protocol):
    """Beside `Tokenizer`: tokens back to media (numpy, or str for text).

    One that reads a parent's tokens gives back those, with their axes.
    """

    def decode(self, encoding: Encoding, conditions: Fields | None = None) -> Any: ...


@runtime_checkable
class ClaimsLossless(Protocol):
    """Beside `Decodes`: whether decode(encode(x)) == x for every sample that gets tokens."""

    @property
    def lossless(self) -> bool: ...


@runtime_checkable
class HasOracle(Protocol):
    """Beside `Tokenizer`: golden ids by an independent implementation, for the conformance suite.

    None where the independent implementation refuses the sample.
    """

    def oracle(self, fields: Fields) -> Encoding | None: ...


@runtime_checkable
class Fits(Protocol):
    """Beside `Tokenizer`: learns an artefact (merges, codebooks, weights) from samples."""

    @classmethod
    def fit(
        cls, samples: Iterator[Fields], out: str, config: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Write the artefact to the local file `out`; return its lineage (JSON values)."""
        ...


@runtime_checkable
class Conforms(Protocol):
    """Beside `Tokenizer`: what the conformance suite feeds it."""

    @classmethod
    def examples(cls) -> Sequence[Fields]:
        """Samples of every kind it must take: short, long, empty where allowed, odd."""
        ...
