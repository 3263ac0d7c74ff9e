"""How we show a Ray cluster who we are: an explicit token, or explicitly none.

Ray 2.60 turns token authentication on by itself wherever a file `~/.ray/auth_token` was left, so a
local run can make a later command talk in tokens that nobody asked for. We therefore never leave
the mode unset: the token is what the environment or an option names, and without one it is off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.schemas.errors import JobError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DEFAULT_PATH = Path(".ray") / "auth_token"  # below the home folder: Ray's own default
_SAFE = frozenset(map(chr, range(33, 127)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Auth:
    """token: None for a cluster without. `came_from` is for messages; the token never is."""

    token: str | None = field(default=None, repr=False)
    came_from: str = "nowhere"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def export(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Tell Ray in this process and its children: the mode, and the token where there is one."""
        environment[MODE] = "token" if self.token else "disabled"
        if self.token:
            environment[TOKEN] = self.token


def find_auth(
    token_file: str | None = None,
    environment: Mapping[str, str] = os.environ,
    home: Path | None = None,
) -> Auth:
    """In this order: `token_file`, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, and, only where
    RAY_AUTH_MODE=token says so, `~/.ray/auth_token`. Raises JobError."""
    mode = environment.get(MODE, "").lower()
    if mode not in ("", "disabled", "token", "k8s"):
        raise JobError(f"{MODE}={mode!r} is not known", remedy="token or disabled")
    if token_file:
        return _read(Path(token_file), "--token-file")
    if mode == "disabled":
        return Auth(came_from=f"{MODE}=disabled")
    if environment.get(TOKEN):
        return _checked(environment[TOKEN], TOKEN)
    if environment.get(TOKEN_PATH):
        return _read(Path(environment[TOKEN_PATH]), TOKEN_PATH)
    if mode in ("token", "k8s"):
        return _read((home or Path.home()) / DEFAULT_PATH, f"{MODE}={mode}")
    return Auth()


def _read(path: Path, asked_by: str) -> Auth:
    try:
        text = path.expanduser().read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(
            "the cluster's token cannot be read",
            where=str(path),
            why=f"{asked_by} asks for it: {error}",
            remedy="`ray get-auth-token` on the head prints it; or set RAY_AUTH_MODE=disabled",
        ) from None
    return _checked(text, f"{asked_by} ({path})")


def _checked(text: str, came_from: str) -> Auth:
    token = text.strip()
    if not token or not set(token) <= _SAFE:
        raise JobError("this is no authentication token", where=came_from, why="empty or not ASCII")
    return Auth(token=token, came_from=came_from)
