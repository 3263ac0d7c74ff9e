"""What a loader must remember: where it is, and what the numbers were that fix the order.

A few integers and hashes, JSON values all. `next slot` is enough: everything else is arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.schemas.errors import JobError

STATE_FORMAT = 1

_FIXED = {
    "seed": "the seed",
    "batch": "the global batch size",
    "sequence": "the sequence length",
    "vocabulary": "the vocabulary",
    "schedule": "the weights and their schedule",
    "order": "parts, shuffling, packing, split or tail",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Era:
    """From `slot` on, sequences come from `snapshot` (64 hex digits); selection: hash of the
    shards that the parts' filters chose in it."""

    slot: int
    snapshot: str
    selection: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """slot: the first that was not delivered. sequence: tokens, None for whole samples.
    vocabulary, schedule, order: hashes. eras: snapshots in use so far, the last one now."""

    slot: int
    seed: int
    batch: int
    sequence: int | None
    vocabulary: str | None
    schedule: str
    order: str
    eras: tuple[Era, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"format": STATE_FORMAT, **asdict(self), "eras": [asdict(e) for e in self.eras]}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> LoaderState:
        """Raises JobError for what is no state of this format."""
        try:
            if found["format"] != STATE_FORMAT:
                raise JobError(
                    f"a loader state of format {found['format']}",
                    why=f"this tokenmill reads format {STATE_FORMAT}",
                    remedy="resume with the tokenmill that saved it",
                )
            return cls(
                slot=int(found["slot"]),
                seed=int(found["seed"]),
                batch=int(found["batch"]),
                sequence=None if found["sequence"] is None else int(found["sequence"]),
                vocabulary=found["vocabulary"],
                schedule=str(found["schedule"]),
                order=str(found["order"]),
                eras=tuple(
                    Era(
                        slot=int(e["slot"]),
                        snapshot=str(e["snapshot"]),
                        selection=str(e["selection"]),
                    )
                    for e in found["eras"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise JobError("this is not the state of a loader", why=repr(error)) from error

    def check_continues(self, now: LoaderState) -> None:
        """Raises JobError where a loader with state `now` would give another sequence.

        The world size, workers and threads are free to differ; what is in the state is not.
        """
        different = [
            f"{name} ({getattr(self, key)} then, {getattr(now, key)} now)"
            for key, name in _FIXED.items()
            if getattr(self, key) != getattr(now, key)
        ]
        if different:
            raise JobError(
                "this loader would not continue the saved sequence",
                why="; ".join(different),
                remedy="make the loader with the arguments it was saved with; the number of "
                "ranks, workers and threads may change",
            )
