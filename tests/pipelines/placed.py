"""A tokenizer whose tokens say where and when they were made: JSON as bytes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.workers.toy import Bytes, BytesPreparer
from tokenmill.schemas.tokenizer import Fields, Window


class PlacePreparer(BytesPreparer):
    """The field's text is how many seconds the sample takes, or less: with a log (which it writes
    a line to at its beginning) only as long as a file `LOG.hold` is there."""

    def prepare(self, fields: Fields, rng: np.random.Generator) -> Iterator[Window]:
        here = {
            "pid": os.getpid(),
            "raylet": os.environ.get("RAY_RAYLET_PID"),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "began": time.time(),
        }
        self._note(json.dumps(here))
        text = fields["text"]
        until = time.time() + float(text if isinstance(text, str) else text.decode())
        while time.time() < until and (self.log is None or Path(f"{self.log}.hold").exists()):
            time.sleep(0.02)
        said = json.dumps({**here, "ended": time.time()})
        yield Window(
            arrays={"bytes": np.frombuffer(said.encode(), dtype=np.uint8)}, index=0, last=True
        )

    def _note(self, line: str) -> None:
        if self.log is not None:
            with Path(self.log).open("a") as file:
                file.write(line + "\n")


class Place(Bytes):
    def preparer(self) -> PlacePreparer:
        return PlacePreparer(1 << 16, self.config.get("log"))
