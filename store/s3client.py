"""The S3 client of this process: settings from the environment, errors in our words, retries.

botocore directly, below s3fs: its clients are synchronous and shared by threads, and each answer
keeps its status code, on which the meaning of a lost conditional write hangs (s3fs reports it as
FileExistsError from one server and OSError EINVAL from another). Its own retries are off: a retry
that we do not see could make our own write look like somebody else's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as Urllib3Error

from tokenmill.schemas.errors import StoreError, StoreUnavailable
from tokenmill.store.paths import without_secrets
from tokenmill.store.retry import attempts

T = TypeVar("T")

# Whatever of these changes, a new client is made: tests and rotating credentials both do that.
SETTINGS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_PASSING = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "InternalError",
    "ServiceUnavailable",
    # two conditional writes of one key at the same moment: S3 asks to try again
    "ConditionalRequestConflict",
    "OperationAborted",
}
_BROKEN = (
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    ResponseParserError,
    Urllib3Error,
    ConnectionError,
    TimeoutError,
)
_ABSENT = {"NoSuchKey", "404", "NotFound"}


class Refused(Exception):
    """A condition (If-Match, If-None-Match) did not hold.

    `unsure`: an earlier try of the same request may have been carried out without our hearing of
    it, so the one who was first may have been ourselves.
    """

    def __init__(self, *, unsure: bool) -> None:
        super().__init__()
        self.unsure = unsure


def endpoint() -> str | None:
    """The S3 endpoint that the environment names, None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


_lock = threading.Lock()
_clients: dict[tuple[Any, ...], tuple[Any, Any]] = {}
# A lock that another thread held at the fork would stay held for ever in the child.
os.register_at_fork(after_in_child=lambda: _forget_all())


def _forget_all() -> None:
    global _lock
    _lock = threading.Lock()
    _clients.clear()  # sockets must not be shared with the parent


def _key() -> tuple[Any, ...]:
    return tuple(os.environ.get(name) for name in SETTINGS)


def client() -> Any:
    """The botocore client of this process for the environment as it is now.

    Raises StoreError where the environment names a profile that does not exist.
    """
    return _current()[1]


def _current() -> tuple[Any, Any]:
    """(session, client), made once: the session's credentials renew themselves."""
    key = _key()
    with _lock:
        if key not in _clients:
            _clients.clear()
            session = botocore.session.Session(profile=os.environ.get("AWS_PROFILE") or None)
            _clients[key] = session, _make(session)
        return _clients[key]


def _make(session: Any) -> Any:
    url = endpoint()
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
        tcp_keepalive=True,
        # look-alikes rarely know virtual hosts or the newer trailing checksums
        s3={"addressing_style": "path" if url else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return session.create_client(
            "s3", endpoint_url=url, region_name=_region(session), config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise _setup_error(error) from error


def _region(session: Any) -> str:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if os.environ.get(name):
            return os.environ[name]
    # an endpoint of one's own does not care, but a region must be signed
    return str(session.get_config_variable("region") or "us-east-1")


def region_name() -> str:
    """AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1."""
    return _region(_current()[0])


def credentials() -> Mapping[str, str]:
    """Key, secret and token as environment names, for deltalake, which knows no profiles.

    Valid now, perhaps not in an hour: ask again for each use. Empty where there are none.
    """
    try:
        found = _current()[0].get_credentials()
        frozen = found and found.get_frozen_credentials()
    except BotoCoreError as error:
        raise _setup_error(error) from error
    if not frozen:
        return {}
    named = {
        "AWS_ACCESS_KEY_ID": frozen.access_key,
        "AWS_SECRET_ACCESS_KEY": frozen.secret_key,
        "AWS_SESSION_TOKEN": frozen.token,
    }
    return {name: value for name, value in named.items() if value}


def call(attempt: Callable[[Any], T], where: str, doing: str) -> T:
    """`attempt(client)`, again with back-off while the fault may pass.

    Raises FileNotFoundError, Refused, StoreError, or StoreUnavailable when patience ends.
    """
    unsure = False
    last: Exception | None = None
    for _ in attempts():
        try:
            return attempt(client())
        except ClientError as error:
            status, code = _status(error)
            if status == 412 or code == "PreconditionFailed":
                raise Refused(unsure=unsure) from error
            if not _passes(status, code):
                raise _final(error, status, code, where, doing) from error
            if code in _EXPIRED:
                _forget_all()  # read the environment and the profile anew
            unsure = unsure or status >= 500
            last = error
        except _BROKEN as error:
            unsure = True
            last = error
        except BotoCoreError as error:
            raise _setup_error(error, where) from error
    raise _gave_up(last, where, doing)


def _status(error: ClientError) -> tuple[int, str]:
    response = error.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(response.get("Error", {}).get("Code", ""))


def _passes(status: int, code: str) -> bool:
    return (
        code in _PASSING or code in _EXPIRED or status == 429 or (status >= 500 and status != 501)
    )


def _gave_up(last: Exception | None, where: str, doing: str) -> StoreUnavailable:
    expired = isinstance(last, ClientError) and _status(last)[1] in _EXPIRED
    return StoreUnavailable(
        f"the object store does not let us {doing}" if expired else f"cannot {doing}: no answer",
        where=where,
        why=without_secrets(str(last)),
        remedy="renew the credentials" if expired else f"check the network and {_endpoint_words()}",
    )


def _final(
    error: ClientError, status: int, code: str, where: str, doing: str
) -> StoreError | FileNotFoundError:
    why = without_secrets(str(error))
    if code == "NoSuchBucket":
        return StoreError(
            "there is no such bucket",
            where=where,
            why=why,
            remedy=f"create the bucket, or check its name and {_endpoint_words()}",
        )
    if status == 404 or code in _ABSENT:
        return FileNotFoundError(2, "no such object", where)
    if status in (401, 403):
        return StoreError(
            f"not allowed to {doing}",
            where=where,
            why=why,
            remedy="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and the "
            "bucket's policy (a clock that is wrong also looks like this)",
        )
    return StoreError(f"cannot {doing}", where=where, why=why)


def _setup_error(error: Exception, where: str | None = None) -> StoreError:
    missing = isinstance(
        error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError
    )
    return StoreError(
        "no S3 credentials" if missing else "the S3 settings cannot be used",
        where=where,
        why=without_secrets(str(error)),
        remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and "
        "AWS_ENDPOINT_URL for a server other than AWS",
    )


def _endpoint_words() -> str:
    url = endpoint()
    return f"AWS_ENDPOINT_URL ({without_secrets(url)})" if url else "AWS_ENDPOINT_URL (not set)"
