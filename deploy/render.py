"""Write the examples in deploy/ from the code that `tokenmill schedule` uses.

python deploy/render.py           # the tests compare
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenmill.pipelines.dashboard import dashboard
from tokenmill.pipelines.schedule import install
from tokenmill.pipelines.schedule.kubernetes import network_policy, ray_cluster, ray_job
from tokenmill.pipelines.schedule.kubernetes_objects import Manifest, Meta, to_yaml
from tokenmill.pipelines.schedule.settings import Nodes, Schedule
from tokenmill.schemas.job import parse_job

HERE = Path(__file__).resolve().parent
_HEADER = "# Written by deploy/render.py; `tokenmill schedule` writes yours.\n"


def example(*, count: int = 1) -> Schedule:
    text = (HERE / "job.yaml").read_text(encoding="utf-8")
    return Schedule(
        job=parse_job(text, name="job.yaml", folder="/srv/tokenmill"),
        job_file="/srv/tokenmill/job.yaml",
        job_text=text,
        cron="0 2 * * *",
        timezone="Europe/Zurich",
        alert="https://hooks.example.org/tokenmill",
        python="/opt/tokenmill/bin/python",
        nodes=Nodes(
            image="registry.example.org/tokenmill:gpu",
            secret="tokenmill-aws",
            spot="cloud.google.com/gke-spot=true",
            count=count,
        ),
    )


def rendered() -> dict[str, str]:
    """Path below deploy/ -> text."""
    made = example()
    namespace = Manifest(
        api_version="v1", kind="Namespace", metadata=Meta(name=made.nodes.namespace)
    )
    (cronjob,) = install.render(made, "kubernetes").files.values()
    (cron_alpha,) = install.render(
        made.model_copy(update={"alert": None, "missed": "skip"}), "ray-cronjob"
    ).files.values()
    (one,) = install.render(made, "slurm").files.values()
    (many,) = install.render(example(count=4), "slurm").files.values()
    files = {
        "kubernetes/namespace.yaml": to_yaml(namespace),
        "kubernetes/raycluster.yaml": to_yaml(ray_cluster(made), network_policy(made)),
        "kubernetes/rayjob.yaml": to_yaml(ray_job(made)),
        "kubernetes/cronjob.yaml": cronjob,
        "kubernetes/raycronjob.yaml": cron_alpha,
        "slurm/one-node.sbatch": one,
        "slurm/four-nodes.sbatch": many,
    }
    files |= {f"systemd/{n}": t for n, t in install.render(made, "systemd").files.items()}
    made_files = {name: _headed(text) for name, text in files.items()}
    # JSON has no comments
    return made_files | {"grafana/tokenmill.json": json.dumps(dashboard(), indent=2) + "\n"}


def _headed(text: str) -> str:
    first, _, rest = text.partition("\n")
    if first.startswith("#!"):
        return f"{first}\n{_HEADER}{rest}"
    return _HEADER + text


if __name__ == "__main__":
    for name, text in rendered().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(name)
