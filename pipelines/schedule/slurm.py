"""Slurm: a batch script that submits its own next run before it begins."""

from __future__ import annotations

import math
import shlex

from tokenmill.pipelines.schedule.settings import Rendered, Schedule
from tokenmill.pipelines.submission import STOP_SECONDS
from tokenmill.schemas.errors import JobError


def slurm(schedule: Schedule) -> Rendered:
    """NAME.sbatch: `sbatch NAME.sbatch` once. Raises JobError for what a script line cannot hold.

    singleton: one run of this name and user at a time. The next run is submitted first, so that a
    failed night does not end the series.
    """
    file = f"{schedule.name}.sbatch"
    return Rendered(
        files={file: _script(schedule)},
        executable=frozenset({file}),
        notes=(
            f"begin the series: sbatch --begin=$({_next(schedule)}) {file}",
            f"end it: scancel --name={schedule.name}",
        ),
    )


def _next(schedule: Schedule) -> str:
    module = "tokenmill.pipelines.schedule.next_time"
    words = [schedule.python, "-m", module, schedule.cron, schedule.timezone]
    return shlex.join(words)


def _script(schedule: Schedule) -> str:
    parts = [_head(schedule), _series(schedule), _one_node(schedule)]
    if schedule.nodes.count > 1:
        parts[2] = _many_nodes(schedule)
    return "\n".join(parts) + _end(schedule)


def _head(schedule: Schedule) -> str:
    nodes = schedule.nodes
    minutes = math.ceil(nodes.hours * 60)
    if set(" \t") & set(schedule.name + (nodes.partition or "")):
        raise JobError(f"blanks in the partition {nodes.partition!r}")
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={schedule.name}",
        "#SBATCH --dependency=singleton",
        f"#SBATCH --nodes={nodes.count}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --cpus-per-task={nodes.cpus}",
        f"#SBATCH --mem={_mebibytes(nodes.memory)}M",
        *([f"#SBATCH --gres=gpu:{nodes.gpus}"] if schedule.needs_gpus else []),
        *([f"#SBATCH --partition={nodes.partition}"] if nodes.partition else []),
        f"#SBATCH --time={minutes}",
        # the script is told before the end, and hands it on: what is finished is committed
        f"#SBATCH --signal=B:TERM@{STOP_SECONDS}",
        # preempted: Slurm queues it again, and it resumes
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={schedule.name}-%j.log",
        "set -u",
        "export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled",
    ]
    return "\n".join(lines)


def _mebibytes(quantity: str) -> int:
    return int(float(quantity[:-2]) * {"Mi": 1, "Gi": 1 << 10, "Ti": 1 << 20}[quantity[-2:]])


def _series(schedule: Schedule) -> str:
    late = f"{schedule.python} -m tokenmill.pipelines.schedule.next_time late"
    lines = [
        "",
        "# The series: the next run, unless this one was queued again after a preemption.",
        # what Slurm keeps is a copy in its spool folder: submit that one
        'if [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]; then',
        f'    sbatch --begin="$({_next(schedule)})" "$0" || exit 3',
    ]
    if schedule.missed == "skip":
        lines += [
            f"    if ! {late} {shlex.quote(schedule.cron)} {shlex.quote(schedule.timezone)}; then",
            '        echo "too late: this run is skipped"; exit 0',
            "    fi",
        ]
    return "\n".join([*lines, "fi"])


def _attempts(schedule: Schedule, command: str) -> list[str]:
    """Run `command` in the background (so that a trapped signal is seen at once), and again while
    the infrastructure fails."""
    return [
        "code=3",
        f"for attempt in $(seq {schedule.attempts}); do",
        f"    {command} &",
        "    run=$!",
        "    trap 'kill -TERM $run' TERM INT",
        '    wait "$run"; code=$?',
        "    # a wait that a signal ended: the run is still committing",
        '    while kill -0 "$run" 2>/dev/null; do wait "$run"; code=$?; done',
        '    [ "$code" -eq 3 ] || break',
        "    sleep 30",
        "done",
    ]


def _run(schedule: Schedule, *more: str) -> str:
    words = [schedule.python, "-m", "tokenmill", "run", schedule.job_file, *more]
    return shlex.join([*words, *schedule.arguments])


def _one_node(schedule: Schedule) -> str:
    return "\n".join(["", *_attempts(schedule, _run(schedule))])


def _many_nodes(schedule: Schedule) -> str:
    """Ray across the allocation: the head, which takes no tasks, beside the driver; a worker node
    on each Slurm node."""
    ray = f"{shlex.quote(schedule.python)} -m ray.scripts.scripts"
    gpus = f" --num-gpus={schedule.nodes.gpus}" if schedule.needs_gpus else ""
    lines = [
        "",
        "port=$((20000 + SLURM_JOB_ID % 10000))",
        "head=\"$(hostname --ip-address | cut -d' ' -f1)\"",
        f'{ray} start --head --node-ip-address="$head" --port="$port" --num-cpus=0 \\',
        "    --include-dashboard=false --disable-usage-stats \\",
        '    --temp-dir="/tmp/ray-$SLURM_JOB_ID" || exit 3',
        f'srun --ntasks="$SLURM_JOB_NUM_NODES" {ray} start --address="$head:$port" \\',
        f'    --num-cpus="$SLURM_CPUS_PER_TASK"{gpus} --block --disable-usage-stats &',
        "workers=$!",
        *_attempts(schedule, f'{_run(schedule)} --address "$head:$port"'),
        'kill "$workers" 2>/dev/null',
    ]
    return "\n".join(lines)


def _end(schedule: Schedule) -> str:
    if not schedule.alert:
        return '\nexit "$code"\n'
    module = "tokenmill.pipelines.schedule.alert"
    hook = shlex.join([schedule.python, "-m", module, schedule.alert, schedule.job.name])
    return f'\ncase "$code" in 0|4) ;; *) {hook} "$code" ;; esac\nexit "$code"\n'
