"""`python -m tokenmill.pipelines.schedule.next_time CRON ZONE`: Slurm's --begin, as Unix seconds.

Also `… late CRON ZONE`: exit code 1 where the last time was longer ago than a run may be late.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

from tokenmill.pipelines.schedule.cron import parse_cron, zone_of
from tokenmill.pipelines.schedule.settings import GRACE_SECONDS


def begin(cron: str, zone: str, now: datetime) -> str:
    """`uuuu-mm-ddTHH:MM:SS` in the machine's own time zone, which is how Slurm reads it."""
    after = parse_cron(cron).after(now, zone_of(zone))
    return after.astimezone().strftime("%Y-%m-%dT%H:%M:%S")


def is_late(cron: str, zone: str, now: datetime) -> bool:
    """Whether no scheduled time lies within the last ten minutes."""
    return parse_cron(cron).after(now - timedelta(seconds=GRACE_SECONDS), zone_of(zone)) > now


if __name__ == "__main__":
    now = datetime.now(UTC)
    if sys.argv[1] == "late":
        sys.exit(1 if is_late(sys.argv[2], sys.argv[3], now) else 0)
    print(begin(sys.argv[1], sys.argv[2], now))
