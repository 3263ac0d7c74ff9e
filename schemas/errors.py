"""Every error that tokenmill raises on purpose.

TokenmillError
├── JobError          the job file or the command line asks for something that cannot be      exit 2
├── SourceError       an input cannot be listed or opened                                     exit 3
│   └── InputChanged  an input is no longer the version that was planned: plan it again       exit 3
├── SampleError       one sample's verdict; never ends a run
├── TokenizerError    a checkpoint or plug-in cannot do what the job asks                     exit 2
├── StoreError        the store refuses, is full, or is not one we may write to               exit 3
│   ├── StoreUnavailable  timeouts, 5xx, expired credentials, no space: wait, then go on      exit 3
│   └── CorruptStore      a file of the store is not what its hash or schema says             exit 3
├── LeaseHeld         another run of the same pipeline is at work                             exit 3
└── SpaceMismatch     tokens of another space than the reader asked for                       exit 2

Anything else that escapes is a fault of ours: exit 70.
"""

from __future__ import annotations

from typing import Any, ClassVar


class TokenmillError(Exception):
    """What went wrong, where (file, field, key), why, and the remedy.

    Picklable, since it crosses process boundaries.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.what]
        parts += [f"  {name}: {text}" for name, text in self._details() if text]
        return "\n".join(parts)

    def _details(self) -> tuple[tuple[str, str | None], ...]:
        return (("where", self.where), ("why", self.why), ("remedy", self.remedy))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[TokenmillError], args: tuple[Any, ...], state: dict[str, Any]
) -> TokenmillError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class JobError(TokenmillError):
    exit_code = 2


class SourceError(TokenmillError):
    exit_code = 3


class InputChanged(SourceError):
    """`uri` no longer has the version that was planned; the unit goes back to planning."""

    def __init__(self, what: str, *, uri: str, **details: str | None) -> None:
        super().__init__(what, **details)
        self.uri = uri


class SampleError(TokenmillError):
    """One sample's verdict: it is quarantined with `reason` and the run goes on.

    `reason` is a short kebab-case code that people group by: invalid-utf8, invalid-json,
    missing-field, too-large, special-token, truncated, unsafe-member, decoder-refused,
    process-died, timeout, ...
    """

    def __init__(self, reason: str, what: str, **details: str | None) -> None:
        super().__init__(what, **details)
        self.reason = reason


class TokenizerError(TokenmillError):
    exit_code = 2


class StoreError(TokenmillError):
    exit_code = 3


class StoreUnavailable(StoreError):
    """Timeouts, 5xx, expired credentials, no space: pause with back-off, never a verdict."""


class CorruptStore(StoreError):
    """A shard, snapshot or ledger is not what its hash, version or schema says."""


class LeaseHeld(TokenmillError):
    exit_code = 3


class SpaceMismatch(TokenmillError):
    exit_code = 2
