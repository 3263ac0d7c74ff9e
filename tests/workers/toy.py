"""Real little tokenizers that misbehave on markers in their input: `tokenizer: "…toy:Bytes"`."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.schemas.errors import SampleError
from tokenmill.schemas.identity import json_hash
from tokenmill.schemas.tokenizer import (
    BatchBudget,
    Checkpoint,
    Descriptor,
    Encoded,
    Fields,
    FlatEncoding,
    OutputSpec,
    Piece,
    TokenizerIdentity,
    Window,
)


class OutOfMemoryError(RuntimeError):
    """Named as torch.cuda's, which may not be imported here."""


def hold_the_gil() -> None:
    """Native code that never returns nor lets go of the GIL."""
    ctypes.PyDLL(None).pause()


def misbehave(text: str) -> None:
    if "<crash>" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "<segv>" in text:
        ctypes.string_at(0)
    if "<exit>" in text:
        os._exit(7)
    if "<hang>" in text:
        hold_the_gil()
    if "<spin>" in text:
        re.match(r"(a+)+$", "a" * 64 + "b")  # holds the GIL, burns the CPU
    if "<eat>" in text:
        bytearray(64 << 30)
    if "<fill>" in text:
        with Path("/tmp/tokenmill-toy-fill").open("wb") as file:
            Path(file.name).unlink()
            for _ in range(1 << 20):
                file.write(bytes(1 << 20))
    if "<raise>" in text:
        raise ValueError("as told")
    if "<eof>" in text:
        raise EOFError("a decoder's own")
    if "<refuse>" in text:
        raise SampleError("toy-refused", "as told")
    if "<odd>" in text:
        raise AssertionError("unreachable: <odd> is for windows")


class BytesPreparer:
    """Windows of at most `window` bytes."""

    def __init__(self, window: int, log: str | None = None) -> None:
        self.window = window
        self.log = log

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        text = fields["text"]
        raw = text.encode() if isinstance(text, str) else text
        misbehave(raw[:64].decode(errors="replace"))
        if b"<pids>" in raw and self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()} {os.getppid()}\n")
        if b"<env>" in raw:
            raw = "\n".join(sorted(os.environ)).encode()
        starts = range(0, max(len(raw), 1), self.window)
        for index, start in enumerate(starts):
            cut = np.frombuffer(raw[start : start + self.window], dtype=np.uint8)
            if b"<slow>" in raw:
                time.sleep(0.05)
            if b"<late>" in raw and index == 1:
                raise ValueError("half-way")
            extra: dict[str, Any] = {"object": object()} if b"<object>" in raw else {}
            yield Window(
                arrays={"bytes": cut},
                index=index,
                last=index == len(starts) - 1,
                cost=np.int64(len(cut)),  # numpy integers, as shapes often are
                bucket=(np.int64(len(cut)),),
                meta={"noise": int(rng.integers(1 << 30)), **extra},
            )


class Bytes:
    """A byte tokenizer by windows; misbehaves in prepare, or in encode where `in: encode`."""

    roles: tuple[str, ...] = ("text",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self.batches: list[list[bytes]] = []

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Descriptor:
        return Descriptor(
            name="toy-bytes",
            modality="text",
            ids_revision=1,
            fields=cls.roles,
            outputs=(
                OutputSpec(
                    dtype="uint8",
                    axes=("T", "one") if config.get("grid") else ("T",),
                    codebook_sizes=tuple(config.get("codebooks", (256,))),
                ),
            ),
            prepare_in="child" if config.get("child") else "worker",
            use_policy=config.get("use_policy", "permissive"),
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint | None, config: Mapping[str, Any]) -> Bytes:
        return cls(config)

    @property
    def descriptor(self) -> Descriptor:
        return self.describe(self.config)

    def identity(self) -> TokenizerIdentity:
        return TokenizerIdentity(
            name="toy-bytes",
            space=json_hash("toy-bytes"),
            parts={"ids_revision": 1, "window": self.config.get("window", 16)},
        )

    @property
    def budget(self) -> BatchBudget:
        return BatchBudget(cost=1 << 20, windows=self.config.get("windows", 8))

    def preparer(self) -> BytesPreparer:
        return BytesPreparer(self.config.get("window", 16), self.config.get("log"))

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        raws = [w.arrays["bytes"].tobytes() for w in windows]
        self.batches.append(raws)
        for raw in raws:
            if b"<enc-crash>" in raw:
                os.kill(os.getpid(), signal.SIGKILL)
            if b"<enc-hang>" in raw:
                hold_the_gil()
            if b"<enc-eat>" in raw:
                bytearray(1 << 62)
            if b"<enc-refuse>" in raw:
                raise SampleError("toy-refused", "in encode")
            if b"<enc-raise>" in raw:
                raise ZeroDivisionError("a bug")
        if sum(map(len, raws)) > self.config.get("memory", 1 << 30):
            raise OutOfMemoryError("CUDA out of memory")
        return [
            Piece(ids={"ids": np.frombuffer(raw, dtype=np.uint8)}, index=w.index)
            for raw, w in zip(raws, windows, strict=True)
        ]

    def join(self, pieces: Sequence[Piece]) -> Mapping[str, Encoded]:
        ids = np.concatenate([p.ids["ids"] for p in pieces])
        if b"<join-refuse>" in ids.tobytes():
            raise SampleError("toy-refused", "in join")
        shape = (len(ids), 1) if self.config.get("grid") else (len(ids),)
        return {"ids": Encoded(ids=ids, shape=shape)}


class Flat(Bytes):
    """The same ids by whole batches."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.calls: list[int] = []
        self.switched = False

    def encode_flat(self, values: Sequence[str | bytes]) -> FlatEncoding:
        raws = [v.encode() if isinstance(v, str) else bytes(v) for v in values]
        self.calls.append(len(raws))
        faults = {}
        for at, raw in enumerate(raws):
            if b"<crash>" in raw:
                os.kill(os.getpid(), signal.SIGKILL)
            if b"<refuse>" in raw:
                raise SampleError("toy-refused", "the whole call")
            if b"<raise>" in raw:
                raise ZeroDivisionError("a bug")
            if b"<flat-hang>" in raw:
                hold_the_gil()
            if b"<fault>" in raw and not self.config.get("mended"):
                faults[at] = SampleError("toy-fault", "just this one")
                raws[at] = b""
        if sum(map(len, raws)) > self.config.get("memory", 1 << 30):
            raise OutOfMemoryError("CUDA out of memory")
        lengths = [len(raw) for raw in raws]
        return FlatEncoding(
            values=np.frombuffer(b"".join(raws), dtype=np.uint8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            faults=faults,
        )


class Broken(Bytes):
    """Its preparer is found in the worker and not in the child."""

    def preparer(self) -> BytesPreparer:
        module = type(sys)("nowhere_else")

        class Local(BytesPreparer):
            pass

        Local.__module__, Local.__qualname__ = "nowhere_else", "Local"
        module.Local = Local  # type: ignore[attr-defined]
        sys.modules["nowhere_else"] = module
        return Local(16)


class Noisy(Bytes):
    """One id per window: the noise that `prepare` drew from its seed."""

    def encode(self, windows: Sequence[Window]) -> Sequence[Piece]:
        drawn = [np.array([w.meta["noise"] % 256], dtype=np.uint8) for w in windows]
        return [
            Piece(ids={"ids": ids}, index=w.index) for ids, w in zip(drawn, windows, strict=True)
        ]
