"""A tokenizer whose tokens say where and when they were made: JSON as bytes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import numpy as np

from tests.workers.toy import Bytes, BytesPreparer
from tokenmill.schemas.tokenizer import Fields, Window


class PlacePreparer(BytesPreparer):
    """The field's text is how many seconds the sample takes."""

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        began = time.time()
        text = fields["text"]
        time.sleep(float(text if isinstance(text, str) else text.decode()))
        said = json.dumps(
            {
                "pid": os.getpid(),
                "raylet": os.environ.get("RAY_RAYLET_PID"),
                "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
                "began": began,
                "ended": time.time(),
            }
        )
        yield Window(
            arrays={"bytes": np.frombuffer(said.encode(), dtype=np.uint8)}, index=0, last=True
        )


class Place(Bytes):
    def preparer(self) -> PlacePreparer:
        return PlacePreparer(1 << 16)
