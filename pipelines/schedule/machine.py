"""One machine: a systemd service and timer, or a crontab line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from tokenmill.pipelines.schedule.cron import on_calendar
from tokenmill.pipelines.schedule.settings import Rendered, Schedule
from tokenmill.pipelines.submission import STOP_SECONDS
from tokenmill.schemas.errors import JobError

CronFlavour = Literal["cronie", "other", "none"]


def systemd(schedule: Schedule) -> Rendered:
    """NAME.service, NAME.timer, and NAME-alert.service where there is an alert.

    A oneshot service is not started twice at once. Persistent= catches a missed run up.
    """
    name = schedule.name
    files = {
        f"{name}.service": _service(schedule),
        f"{name}.timer": _timer(schedule),
    }
    if schedule.alert:
        files[f"{name}-alert.service"] = _alert_service(schedule)
    return Rendered(
        files=files,
        notes=(f"secrets: write AWS_… lines into /etc/tokenmill/{name}.env, mode 0600",),
    )


def _service(schedule: Schedule) -> str:
    name = schedule.name
    lines = [
        "[Unit]",
        f"Description=tokenmill: {_value(schedule.job.name)}",
        "Wants=network-online.target",
        "After=network-online.target",
        # attempts of one night; the next night begins anew
        "StartLimitIntervalSec=6h",
        f"StartLimitBurst={schedule.attempts}",
        *([f"OnFailure={name}-alert.service"] if schedule.alert else []),
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={_command(_run_words(schedule))}",
        f"WorkingDirectory={_value(str(Path(schedule.job_file).parent))}",
        f"EnvironmentFile=-/etc/tokenmill/{name}.env",
        "Environment=RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled",
        # 4: stopped as told, which is no failure
        "SuccessExitStatus=4",
        # the infrastructure's failures and a killed driver, not the job's own
        "Restart=on-failure",
        "RestartPreventExitStatus=1 2 70",
        "RestartSec=60",
        "KillSignal=SIGTERM",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_SECONDS}",
        f"TimeoutStartSec={int(schedule.nodes.hours * 3600)}",
        "NoNewPrivileges=yes",
        "ProtectSystem=full",
        "Nice=5",
    ]
    return "\n".join(lines) + "\n"


def _timer(schedule: Schedule) -> str:
    lines = ["[Unit]", f"Description=tokenmill: {_value(schedule.job.name)}, {schedule.cron}", ""]
    lines += ["[Timer]"]
    lines += [f"OnCalendar={line}" for line in on_calendar(schedule.parsed, schedule.timezone)]
    lines += [f"Persistent={'true' if schedule.missed == 'catch-up' else 'false'}"]
    lines += ["AccuracySec=1s", "", "[Install]", "WantedBy=timers.target"]
    return "\n".join(lines) + "\n"


def _alert_service(schedule: Schedule) -> str:
    lines = [
        "[Unit]",
        f"Description=tokenmill: {_value(schedule.job.name)} has failed",
        "",
        "[Service]",
        "Type=oneshot",
        f"EnvironmentFile=-/etc/tokenmill/{schedule.name}.env",
        f"ExecStart={_command(_alert_words(schedule))}",
    ]
    return "\n".join(lines) + "\n"


def crontab(schedule: Schedule, *, flavour: CronFlavour, local_zone: str) -> Rendered:
    """One line, one run at a time by flock. Raises JobError where cron cannot do what is asked."""
    same = schedule.timezone == local_zone
    if not same and flavour != "cronie":
        raise JobError(
            f"cron on this host cannot run at {schedule.cron} {schedule.timezone}",
            why=f"its cron knows no CRON_TZ and would take the times as {local_zone}'s"
            if flavour == "other"
            else "there is no cron here that honours CRON_TZ",
            remedy=f"--on systemd, or --timezone {local_zone}",
        )
    if schedule.missed == "catch-up":
        raise JobError(
            "cron does not catch up missed runs",
            remedy="--missed skip, or --on systemd",
        )
    return Rendered(files={"crontab": "\n".join(_cron_lines(schedule, same)) + "\n"})


def _cron_lines(schedule: Schedule, same_zone: bool) -> list[str]:
    run = shlex.join(_run_words(schedule))
    # -E 0: that the last run is still at work is no failure
    lock = f"flock -n -E 0 {shlex.quote(f'/tmp/{schedule.name}.{os.getuid()}.lock')} {run}"
    if schedule.alert:
        lock += " || { c=$?; [ $c -eq 4 ] || "
        lock += f"{shlex.join(_alert_words(schedule))} $c; }}"
    command = lock.replace("%", r"\%")  # crontab(5): a bare % ends the command
    zone = [] if same_zone else [f"CRON_TZ={schedule.timezone}"]
    return [
        f"# BEGIN {schedule.name}: written by tokenmill schedule",
        *zone,
        "SHELL=/bin/sh",
        "RAY_USAGE_STATS_ENABLED=0",
        "RAY_AUTH_MODE=disabled",
        f"{schedule.parsed.text} {command}",
        f"# END {schedule.name}",
    ]


def _run_words(schedule: Schedule) -> list[str]:
    words = [schedule.python, "-m", "tokenmill", "run", schedule.job_file]
    return [*words, *schedule.arguments]


def _alert_words(schedule: Schedule) -> list[str]:
    module = "tokenmill.pipelines.schedule.alert"
    return [schedule.python, "-m", module, schedule.alert or "", schedule.job.name]


def _value(text: str) -> str:
    """systemd.unit(5): % begins a specifier."""
    return text.replace("%", "%%")


def _command(words: list[str]) -> str:
    """systemd.service(5): double quotes with C escapes; % and $ are doubled."""
    quoted = []
    for word in words:
        text = word.replace("\\", "\\\\").replace('"', '\\"')
        text = text.replace("%", "%%").replace("$", "$$")
        quoted.append(text if text and not set(text) & set(" '\";\\") else f'"{text}"')
    return " ".join(quoted)


def cron_flavour() -> CronFlavour:
    """Which cron this host has: only cronie honours CRON_TZ."""
    for program in ("crond", "cron"):
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found is None:
            continue
        try:
            said = subprocess.run([found, "-V"], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):  # one that knows no -V begins to work
            return "other"
        return "cronie" if "cronie" in (said.stdout + said.stderr).lower() else "other"
    return "none"


def local_zone() -> str:
    """The host's IANA zone, or UTC where it does not say."""
    if zone := os.environ.get("TZ", "").lstrip(":"):
        return zone
    try:
        target = str(Path("/etc/localtime").resolve(strict=True))
    except OSError:
        return "UTC"
    zone = target.partition("/zoneinfo/")[2]
    return {"Etc/UTC": "UTC", "Etc/UCT": "UTC", "": "UTC"}.get(zone, zone)
