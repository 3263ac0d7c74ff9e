"""Runs in the CronJob's pod: creates the night's RayJob, waits for its end, retries, alerts.

Standard library only beside PyYAML, and the pod's service account. A pod that was drained is
replaced by Kubernetes: the new one finds the RayJob that is at work and waits for it.

    python -m tokenmill.pipelines.schedule.kube_runner /etc/tokenmill/rayjob.yaml --attempts 3
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from tokenmill.pipelines.schedule.alert import alert

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABEL = "tokenmill.job"
POLL_SECONDS = 15.0
# The API server may be away for so long (an upgrade of the control plane) before we give up.
PATIENCE_SECONDS = 900.0
# RayJobs that have ended, to look at.
KEPT = 5
_EXIT_CODE = re.compile(r"exit code (\d+)")
_FINAL = frozenset({"Complete", "Failed", "ValidationFailed"})


class Api(Protocol):
    def get(self, path: str) -> Any: ...

    def post(self, path: str, body: Mapping[str, Any]) -> Any: ...

    def delete(self, path: str) -> Any: ...


class ClusterApi:
    """The API server as a pod sees it. The token is read anew each time: it is rotated."""

    def __init__(self) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._base = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))

    def get(self, path: str) -> Any:
        return self._call(path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call(path, json.dumps(body).encode())

    def delete(self, path: str) -> Any:
        return self._call(path, None, "DELETE")

    def _call(self, path: str, data: bytes | None, method: str | None = None) -> Any:
        token = (ACCOUNT / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            self._base + path, data=data, headers=headers, method=method
        )
        with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
            return json.load(answer)


def run(
    api: Api,
    manifest: Mapping[str, Any],
    *,
    attempts: int,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """The exit code of the night: the last attempt's. One that is at work already counts as ours.

    Raises OSError where the API server refuses or stays away.
    """
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    code = 3
    for attempt in range(1, attempts + 1):
        found = _patiently(lambda: _unfinished(api, path, name), now, sleep)
        if found is None:
            found = f"{name}-{int(now())}"[-63:].lstrip("-")
            body = {**manifest, "metadata": {**manifest["metadata"], "name": found}}
            _patiently(lambda body=body: _create(api, path, body), now, sleep)  # type: ignore[misc]
            _say(f"attempt {attempt} of {attempts}: RayJob {found}")
        else:
            _say(f"RayJob {found} is at work already: waiting for it")
        code = _await(api, f"{path}/{found}", now, sleep)
        _say(f"RayJob {found} ended with exit code {code}")
        if code != 3:
            break
        if attempt < attempts:
            sleep(60.0 * attempt)
    return code


def tidy(api: Api, manifest: Mapping[str, Any]) -> None:
    """Delete the RayJobs of earlier nights, but for the last few: their clusters are gone already.

    Raises OSError.
    """
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    ended = [
        (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"])
        for item in api.get(f"{path}?labelSelector={LABEL}%3D{name}")["items"]
        if item.get("status", {}).get("jobDeploymentStatus") in _FINAL
    ]
    for _, old in sorted(ended)[:-KEPT]:
        api.delete(f"{path}/{old}")


def _create(api: Api, path: str, body: Mapping[str, Any]) -> None:
    try:
        api.post(path, body)
    except urllib.error.HTTPError as error:
        if error.code != 409:  # it is there: the answer to our first call was lost
            raise


def _unfinished(api: Api, path: str, name: str) -> str | None:
    for item in api.get(f"{path}?labelSelector={LABEL}%3D{name}")["items"]:
        if item.get("status", {}).get("jobDeploymentStatus") not in _FINAL:
            return str(item["metadata"]["name"])
    return None


def _await(api: Api, path: str, now: Callable[[], float], sleep: Callable[[float], None]) -> int:
    while True:
        status = _patiently(lambda: api.get(path), now, sleep).get("status", {})
        if status.get("jobDeploymentStatus") in _FINAL:
            return exit_code(status)
        sleep(POLL_SECONDS)


def exit_code(status: Mapping[str, Any]) -> int:
    """A RayJob's status as one of our exit codes: 3 where the driver said none."""
    if status.get("jobStatus") == "SUCCEEDED":
        return 0
    if status.get("jobStatus") == "STOPPED":
        return 4
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return 2
    said = _EXIT_CODE.search(str(status.get("message", "")))
    code = int(said[1]) if said else 3
    return code if code in (1, 2, 3, 4, 70) else 3


def _patiently(
    call: Callable[[], Any], now: Callable[[], float], sleep: Callable[[float], None]
) -> Any:
    since = now()
    while True:
        try:
            return call()
        except OSError as error:  # HTTPError and URLError are OSErrors
            refused = isinstance(error, urllib.error.HTTPError) and error.code in (
                400, 401, 403, 404, 422
            )  # fmt: skip
            if refused or now() - since > PATIENCE_SECONDS:
                raise
            _say(f"the API server does not answer: {error}")
            sleep(POLL_SECONDS)


def _say(text: str) -> None:
    print(json.dumps({"event": "note", "message": text}), file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kube_runner")
    parser.add_argument("manifest")
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--alert")
    given = parser.parse_args(words)
    manifest = yaml.safe_load(Path(given.manifest).read_text(encoding="utf-8"))
    api = ClusterApi()
    try:
        code = run(api, manifest, attempts=given.attempts)
    except OSError as error:
        _say(f"gave up: {error}")
        code = 3
    try:
        tidy(api, manifest)
    except OSError as error:
        _say(f"earlier RayJobs were not deleted: {error}")
    if given.alert and code not in (0, 4):
        alert(given.alert, manifest["metadata"]["name"], str(code))
    return 0 if code == 4 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
