"""Rendering for a target, and handing the result to the target's own tool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tokenmill.pipelines.schedule import kubernetes, machine, next_time
from tokenmill.pipelines.schedule.settings import Rendered, Schedule, Target
from tokenmill.pipelines.schedule.slurm import slurm
from tokenmill.schemas.errors import JobError, StoreError

_TOOLS = {
    "kubernetes": "kubectl",
    "ray-cronjob": "kubectl",
    "slurm": "sbatch",
    "systemd": "systemctl",
    "cron": "crontab",
}


def render(schedule: Schedule, target: Target) -> Rendered:
    """Raises JobError for a cron expression or zone that is wrong, and for what the target cannot
    do."""
    _ = schedule.parsed, schedule.zone
    match target:
        case "kubernetes":
            return kubernetes.kubernetes(schedule)
        case "ray-cronjob":
            return kubernetes.ray_cronjob(schedule)
        case "slurm":
            return slurm(schedule)
        case "systemd":
            return machine.systemd(schedule)
        case "cron":
            return machine.crontab(
                schedule, flavour=machine.cron_flavour(), local_zone=machine.local_zone()
            )


def write(rendered: Rendered, folder: Path) -> list[Path]:
    """Raises JobError where the folder cannot be written."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in rendered.files.items():
            path = folder / name
            path.write_text(text, encoding="utf-8")
            if name in rendered.executable:
                path.chmod(0o755)
            written.append(path)
    except OSError as error:
        raise JobError("the files cannot be written", where=str(folder), why=str(error)) from None
    return written


def apply(schedule: Schedule, target: Target, rendered: Rendered) -> str:
    """Install; what the tool said. Raises JobError where the tool is not here, StoreError where it
    refuses."""
    tool = shutil.which(_TOOLS[target])
    if tool is None:
        raise JobError(
            f"--apply needs {_TOOLS[target]}, which is not on this machine",
            remedy="take the files to where it is: --out FOLDER writes them",
        )
    match target:
        case "kubernetes" | "ray-cronjob":
            (text,) = rendered.files.values()
            return _run([tool, "apply", "-f", "-"], text)
        case "slurm":
            (name,) = rendered.files
            begin = next_time.begin(schedule.cron, schedule.timezone, datetime.now(UTC))
            (text,) = rendered.files.values()
            with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
                script = Path(folder) / name
                script.write_text(text, encoding="utf-8")
                return _run([tool, f"--begin={begin}", str(script)])
        case "systemd":
            return _systemd(schedule, rendered, tool)
        case "cron":
            there = subprocess.run([tool, "-l"], capture_output=True, text=True)
            before = there.stdout if there.returncode == 0 else ""
            return _run([tool, "-"], with_block(before, schedule.name, rendered.files["crontab"]))


def _systemd(schedule: Schedule, rendered: Rendered, tool: str) -> str:
    """Of the machine for root, of the person otherwise (who must be allowed to linger)."""
    root = os.geteuid() == 0
    folder = Path("/etc/systemd/system") if root else Path.home() / ".config/systemd/user"
    write(rendered, folder)
    whose = [] if root else ["--user"]
    said = _run([tool, *whose, "daemon-reload"])
    return said + _run([tool, *whose, "enable", "--now", f"{schedule.name}.timer"])


def with_block(crontab: str, name: str, block: str) -> str:
    """`crontab` with our block in place of an earlier one of the same name."""
    ours = re.compile(
        rf"^# BEGIN {re.escape(name)}:.*?^# END {re.escape(name)}\n?", re.MULTILINE | re.DOTALL
    )
    kept = ours.sub("", crontab)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    return kept + block


def _run(words: list[str], text: str | None = None) -> str:
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise StoreError(f"{Path(words[0]).name} refused", why=(done.stderr or done.stdout).strip())
    return done.stdout + done.stderr
