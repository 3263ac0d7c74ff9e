"""The run lease: one holder by the store's clock, and the second is told who."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tokenmill.schemas.errors import LeaseHeld, StoreUnavailable
from tokenmill.store.access import Access
from tokenmill.store.lease import Lease, this_process

HOLDER = {"host": "node7", "pid": 4711, "run": "r-1", "started": "2026-01-02T03:04:05Z"}


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(str(tmp_path / "store"))


def age(access: Access, seconds: float) -> None:
    """As if the holder had fallen silent so long ago."""
    path = Path(access.full("leases/clips.json"))
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_second_run_is_told_who_holds_it(access: Access) -> None:
    Lease.acquire(access, "clips", HOLDER)
    with pytest.raises(LeaseHeld) as raised:
        Lease.acquire(access, "clips", {"host": "other"})
    text = str(raised.value)
    for said in ("node7", "4711", "r-1", "2026-01-02T03:04:05Z", "s ago", "--no-lease"):
        assert said in text
    Lease.acquire(access, "other-pipeline", HOLDER)


def test_released_lease_is_free_at_once(access: Access) -> None:
    first = Lease.acquire(access, "clips", HOLDER)
    first.release()
    assert first.lost
    Lease.acquire(access, "clips", HOLDER)


def test_silent_holder_loses_it_by_the_stores_clock(access: Access) -> None:
    first = Lease.acquire(access, "clips", HOLDER)
    age(access, 59)
    with pytest.raises(LeaseHeld, match="another run of clips"):
        Lease.acquire(access, "clips", HOLDER)
    age(access, 61)
    second = Lease.acquire(access, "clips", HOLDER)
    assert first.renew() is False
    assert first.lost
    assert second.renew() is True
    first.release()  # of no effect on the one who holds it now
    assert second.renew() is True


def test_renewal_keeps_it(access: Access) -> None:
    lease = Lease.acquire(access, "clips", HOLDER)
    age(access, 61)
    lease = Lease.acquire(access, "clips", HOLDER)
    assert lease.renew()
    with pytest.raises(LeaseHeld):
        Lease.acquire(access, "clips", HOLDER)


def test_only_one_of_many_gets_it(access: Access) -> None:
    def attempt(_: int) -> bool:
        try:
            Lease.acquire(access, "clips", HOLDER)
        except LeaseHeld:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
        age(access, 100)
        assert sum(pool.map(attempt, range(8))) == 1


def test_held_as_a_context_it_renews_itself_and_is_given_back(access: Access) -> None:
    renewed = threading.Event()

    class Watched(Access):
        def replace(self, path: str, data: bytes, version: str) -> str | None:
            result = super().replace(path, data, version)
            if json.loads(data)["renewals"] >= 2:
                renewed.set()
            return result

    watched = Watched(access.uri)
    with Lease.acquire(watched, "clips", HOLDER, ttl=0.2) as lease:
        assert renewed.wait(20)
        assert not lease.lost
    Lease.acquire(access, "clips", HOLDER)


def test_answer_lost_on_renewal_is_no_loss_of_the_lease(access: Access) -> None:
    class Deaf(Access):
        deaf = False

        def replace(self, path: str, data: bytes, version: str) -> str | None:
            result = super().replace(path, data, version)
            return None if self.deaf else result

    deaf = Deaf(access.uri)
    lease = Lease.acquire(deaf, "clips", HOLDER)
    deaf.deaf = True
    assert lease.renew() is True
    deaf.deaf = False
    assert lease.renew() is True
    assert not lease.lost


def test_holder_that_cannot_renew_knows_that_it_may_have_lost_it(access: Access) -> None:
    class Cut(Access):
        cut = False

        def replace(self, path: str, data: bytes, version: str) -> str | None:
            if self.cut:
                raise StoreUnavailable("no route to host")
            return super().replace(path, data, version)

    cut = Cut(access.uri)
    with Lease.acquire(cut, "clips", HOLDER, ttl=0.0) as lease:
        cut.cut = True
        assert lease.lost


def test_unreadable_lease_lapses_like_any_other(access: Access) -> None:
    access.create("leases/clips.json", b"garbage")
    with pytest.raises(LeaseHeld, match="does not say who"):
        Lease.acquire(access, "clips", HOLDER)
    age(access, 61)
    Lease.acquire(access, "clips", HOLDER)


@pytest.mark.s3
def test_lease_on_s3(s3: Callable[[], str]) -> None:
    access = Access(s3())
    lease = Lease.acquire(access, "clips", HOLDER)
    with pytest.raises(LeaseHeld, match="node7"):
        Lease.acquire(access, "clips", HOLDER)
    assert lease.renew()
    lease.release()
    Lease.acquire(access, "clips", HOLDER)


def test_a_holder_that_was_killed_on_this_machine_holds_nothing(tmp_path: Path) -> None:
    access = Access(str(tmp_path))
    code = (
        "import os, signal, sys; from tokenmill.store.access import Access;"
        "from tokenmill.store.lease import Lease, this_process;"
        "Lease.acquire(Access(sys.argv[1]), 'p', this_process());"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    Lease.acquire(access, "p", this_process())
    with pytest.raises(LeaseHeld):
        Lease.acquire(access, "p", {"host": "elsewhere"})  # we live
