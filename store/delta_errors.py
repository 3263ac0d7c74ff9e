"""What deltalake says when something is wrong, as errors of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from deltalake.exceptions import CommitFailedError, DeltaError

from tokenmill.schemas.errors import CorruptStore, StoreError, StoreUnavailable

_NOISE = re.compile(r"\x1b\[[0-9;]*m|↳")


def first_line(error: BaseException) -> str:
    """deltalake's messages carry colours, trees and native backtraces."""
    lines = [line.strip() for line in _NOISE.sub("", str(error)).splitlines()]
    text = " ".join(line for line in lines if line and not re.match(r"\d+: |at ", line))
    code = re.search(r"<Code>(\w+)</Code>", text)
    text = text.split("<?xml")[0].strip()
    return f"{text[:400]} ({code[1]})" if code else text[:400]


def refused(error: BaseException) -> bool:
    """Whether trying again is of no use. Expired credentials come back: they are not refused."""
    text = str(error)
    if "ExpiredToken" in text or "RequestTimeTooSkewed" in text:
        return False
    return isinstance(error, PermissionError) or "403 Forbidden" in text or "privileges" in text


@contextmanager
def delta_errors(where: str, *, commits: bool = False) -> Iterator[None]:
    """Raises StoreError, StoreUnavailable or CorruptStore; CommitFailedError with `commits`."""
    try:
        yield
    except CommitFailedError as error:
        if commits:
            raise
        raise StoreUnavailable("the ledger is busy", where=where, why=first_line(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if "NoSuchBucket" in str(error):
            raise StoreError(
                "no such bucket",
                where=where,
                remedy="check the name and the endpoint (AWS_ENDPOINT_URL), or make the bucket",
            ) from error
        if refused(error):
            raise StoreError(
                "the ledger may not be read or written",
                where=where,
                why=first_line(error),
                remedy="check the permissions, or the credentials (AWS_ACCESS_KEY_ID, …)",
            ) from error
        raise StoreUnavailable(
            "the ledger does not answer",
            where=where,
            why=first_line(error),
            remedy="check the endpoint, the network and the credentials (AWS_*), then run again",
        ) from error
    except DeltaError as error:
        raise CorruptStore(
            "the ledger cannot be read",
            where=where,
            why=first_line(error),
            remedy="restore ledger/ from a backup; tokens in shards/ are not touched",
        ) from error
