"""Kubernetes: a CronJob that creates a KubeRay RayJob each night, or a RayCronJob.

The CronJob's own pod stays until the RayJob has ended (kube_runner.py), which gives us one run at
a time (`Forbid`), bounded retries of our own and the alert. RayCronJob is an alpha of KubeRay's.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version

from tokenmill.pipelines.schedule.kubernetes_objects import (
    AutoscalerOptions,
    ConfigMapVolume,
    Container,
    CronJobSpec,
    EmptyDir,
    EnvFrom,
    EnvVar,
    FailurePolicy,
    FailureRule,
    HeadGroup,
    Ingress,
    JobSpec,
    JobTemplate,
    Manifest,
    Meta,
    Mount,
    NetworkPolicySpec,
    OnExitCodes,
    OnPodCondition,
    Peer,
    PodSpec,
    PodTemplate,
    RayClusterSpec,
    RayCronJobSpec,
    RayJobSpec,
    Reference,
    Resources,
    RoleRef,
    Rule,
    Selector,
    Subject,
    Toleration,
    Volume,
    WorkerGroup,
    to_yaml,
)
from tokenmill.pipelines.schedule.settings import GRACE_SECONDS, Rendered, Schedule
from tokenmill.pipelines.submission import JOB_FILE, STOP_SECONDS
from tokenmill.schemas.errors import JobError

MOUNT = "/etc/tokenmill"
RAY_JOB_FILE = "rayjob.yaml"
DASHBOARD_PORT = 8265
# A CronJob that has missed more than 100 starts within its deadline gives up (Kubernetes' rule).
_MOST_MISSED = 100
_CATCH_UP_SECONDS = 23 * 3600
LABEL = "tokenmill.job"
HEAD_LABELS = {"ray.io/node-type": "head"}
_ALPHA = (
    "RayCronJob is an alpha of KubeRay: the operator must run with the feature gate RayCronJob=true"
)


def kubernetes(schedule: Schedule) -> Rendered:
    """ConfigMap, ServiceAccount, Role, RoleBinding, CronJob and NetworkPolicy."""
    name, namespace = schedule.name, schedule.nodes.namespace
    objects = [
        _config_map(schedule, {RAY_JOB_FILE: to_yaml(ray_job(schedule))}),
        Manifest(
            api_version="v1",
            kind="ServiceAccount",
            metadata=_meta(schedule),
            automount_service_account_token=False,
        ),
        Manifest(
            api_version="rbac.authorization.k8s.io/v1",
            kind="Role",
            metadata=_meta(schedule),
            rules=[
                Rule(
                    api_groups=["ray.io"],
                    resources=["rayjobs"],
                    verbs=["create", "delete", "get", "list"],
                )
            ],
        ),
        Manifest(
            api_version="rbac.authorization.k8s.io/v1",
            kind="RoleBinding",
            metadata=_meta(schedule),
            subjects=[Subject(name=name)],
            role_ref=RoleRef(name=name),
        ),
        Manifest(
            api_version="batch/v1",
            kind="CronJob",
            metadata=_meta(schedule),
            spec=_cron_job(schedule),
        ),
        network_policy(schedule),
    ]
    return Rendered(
        files={f"{name}.yaml": to_yaml(*objects)},
        notes=(
            f"kubectl apply -f {name}.yaml",
            f"try it: kubectl -n {namespace} create job --from=cronjob/{name} {name}-now",
        ),
    )


def ray_cronjob(schedule: Schedule) -> Rendered:
    """ConfigMap and RayCronJob. Raises JobError for what a RayCronJob cannot do."""
    if schedule.alert:
        raise JobError(
            "a RayCronJob has no alert hook",
            why="nobody watches the RayJobs that it makes",
            remedy="--on kubernetes, or alert on ray_tokenmill_runs_total (docs/watching.md)",
        )
    if schedule.missed == "catch-up":
        raise JobError(
            "a RayCronJob does not catch up missed runs",
            remedy="--missed skip, or --on kubernetes",
        )
    spec = RayCronJobSpec(
        schedule=schedule.parsed.text,
        time_zone=schedule.timezone,
        job_template=_ray_job_spec(schedule),
    )
    objects = [
        _config_map(schedule, {}),
        Manifest(api_version="ray.io/v1", kind="RayCronJob", metadata=_meta(schedule), spec=spec),
        network_policy(schedule),
    ]
    return Rendered(
        files={f"{schedule.name}.yaml": f"# {_ALPHA}\n" + to_yaml(*objects)},
        notes=(
            _ALPHA,
            "it does not forbid two runs at once: tokenmill's lease does (the second ends with "
            "exit code 3)",
        ),
    )


def ray_job(schedule: Schedule) -> Manifest:
    return Manifest(
        api_version="ray.io/v1",
        kind="RayJob",
        metadata=_meta(schedule),
        spec=_ray_job_spec(schedule),
    )


def ray_cluster(schedule: Schedule) -> Manifest:
    """A standing cluster to `tokenmill submit` to."""
    return Manifest(
        api_version="ray.io/v1",
        kind="RayCluster",
        metadata=_meta(schedule),
        spec=_cluster(schedule),
    )


def network_policy(schedule: Schedule) -> Manifest:
    """Whoever reaches a Ray head runs code. The cluster's pods take calls from each other, and on
    the dashboard's port from KubeRay's operator, which submits and asks how it goes."""
    ours = Selector(match_labels={LABEL: schedule.name})
    operator = Peer(
        namespace_selector=Selector(),
        pod_selector=Selector(match_labels={"app.kubernetes.io/component": "kuberay-operator"}),
    )
    return Manifest(
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        metadata=_meta(schedule),
        spec=NetworkPolicySpec(
            pod_selector=ours,
            ingress=[
                Ingress.of(Peer(pod_selector=ours)),
                Ingress.of(operator, port=DASHBOARD_PORT),
            ],
        ),
    )


def _meta(schedule: Schedule) -> Meta:
    return Meta(
        name=schedule.name,
        namespace=schedule.nodes.namespace,
        labels={"app.kubernetes.io/name": "tokenmill", LABEL: schedule.name},
    )


def _config_map(schedule: Schedule, more: dict[str, str]) -> Manifest:
    return Manifest(
        api_version="v1",
        kind="ConfigMap",
        metadata=_meta(schedule),
        data={JOB_FILE: schedule.job_text, **more},
    )


def _cron_job(schedule: Schedule) -> CronJobSpec:
    deadline = GRACE_SECONDS
    if schedule.missed == "catch-up":
        most = 86_400 * (_MOST_MISSED - 1) // max(1, schedule.parsed.times_a_day)
        deadline = min(_CATCH_UP_SECONDS, most)
    return CronJobSpec(
        schedule=schedule.parsed.text,
        time_zone=schedule.timezone,
        concurrency_policy="Forbid",
        starting_deadline_seconds=deadline,
        job_template=JobTemplate(
            spec=JobSpec(
                backoff_limit=3,
                pod_failure_policy=FailurePolicy(
                    rules=[
                        # a drained node: the next pod finds the RayJob and waits on
                        FailureRule(
                            action="Ignore",
                            on_pod_conditions=[OnPodCondition(type="DisruptionTarget")],
                        ),
                        # the run's own verdict, after our own retries
                        FailureRule(
                            action="FailJob",
                            on_exit_codes=OnExitCodes(
                                container_name="runner", values=[1, 2, 3, 70]
                            ),
                        ),
                    ]
                ),
                ttl_seconds_after_finished=7 * 86_400,
                template=_runner_pod(schedule),
            )
        ),
    )


def _runner_pod(schedule: Schedule) -> PodTemplate:
    args = ["-m", "tokenmill.pipelines.schedule.kube_runner", f"{MOUNT}/{RAY_JOB_FILE}"]
    args += ["--attempts", str(schedule.attempts)]
    if schedule.alert:
        args += ["--alert", schedule.alert]
    small = {"cpu": "100m", "memory": "256Mi"}
    return PodTemplate(
        metadata=Meta(labels={LABEL: schedule.name}),
        spec=PodSpec(
            service_account_name=schedule.name,
            automount_service_account_token=True,
            restart_policy="Never",
            containers=[
                Container(
                    name="runner",
                    image=schedule.nodes.image,
                    command=["python"],
                    args=args,
                    resources=Resources(requests=small, limits={"memory": "256Mi"}),
                    volume_mounts=[_MOUNT],
                )
            ],
            volumes=[_volume(schedule)],
        ),
    )


_MOUNT = Mount(name="job", mount_path=MOUNT, read_only=True)


def _volume(schedule: Schedule) -> Volume:
    return Volume(name="job", config_map=ConfigMapVolume(name=schedule.name))


def _ray_job_spec(schedule: Schedule) -> RayJobSpec:
    words = ("python", "-m", "tokenmill", "run", f"{MOUNT}/{JOB_FILE}", "--address", "auto")
    return RayJobSpec(
        entrypoint=shlex.join([*words, *schedule.arguments]),
        active_deadline_seconds=int(schedule.nodes.hours * 3600),
        runtimeEnvYAML=f'env_vars: {{RAY_JOB_STOP_WAIT_TIME_S: "{STOP_SECONDS}"}}\n',
        ray_cluster_spec=_cluster(schedule),
    )


def _cluster(schedule: Schedule) -> RayClusterSpec:
    nodes = schedule.nodes
    groups: list[WorkerGroup] = []
    if schedule.needs_cpu_nodes:
        groups.append(_group(schedule, "cpu", nodes.max_cpu_nodes, gpus=0))
    if schedule.needs_gpus:
        groups.append(_group(schedule, "gpu", nodes.max_gpu_nodes, gpus=nodes.gpus))
    return RayClusterSpec(
        ray_version=version("ray"),
        autoscaler_options=AutoscalerOptions(
            resources=Resources(
                requests={"cpu": "200m", "memory": "512Mi"}, limits={"memory": "512Mi"}
            )
        ),
        head_group_spec=HeadGroup(
            # the head carries the driver and no tasks
            ray_start_params={"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            template=PodTemplate(
                metadata=Meta(
                    labels={LABEL: schedule.name},
                    annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                ),
                spec=PodSpec(
                    containers=[
                        _container(schedule, "ray-head", {"cpu": "2", "memory": "8Gi"}, head=True)
                    ],
                    volumes=[_volume(schedule), *_SCRATCH],
                ),
            ),
        ),
        worker_group_specs=groups,
    )


_SCRATCH = (
    # Ray's sockets and logs; shared memory is only for small records, frames never travel
    Volume(name="ray", empty_dir=EmptyDir(size_limit="20Gi")),
    Volume(name="shm", empty_dir=EmptyDir(medium="Memory", size_limit="1Gi")),
)


def _group(schedule: Schedule, name: str, most: int, *, gpus: int) -> WorkerGroup:
    nodes = schedule.nodes
    size = {"cpu": str(nodes.cpus), "memory": nodes.memory}
    tolerations = [Toleration(key="nvidia.com/gpu", effect="NoSchedule")] if gpus else []
    selector: dict[str, str] | None = None
    if nodes.spot:
        key, _, value = nodes.spot.partition("=")
        selector = {key: value}
        tolerations.append(Toleration(key=key))
    if gpus:
        size["nvidia.com/gpu"] = str(gpus)
    return WorkerGroup(
        group_name=name,
        min_replicas=0,
        max_replicas=most,
        replicas=0,
        ray_start_params={},
        template=PodTemplate(
            metadata=Meta(labels={LABEL: schedule.name}),
            spec=PodSpec(
                node_selector=selector,
                tolerations=tolerations or None,
                # a drained worker's tasks go to others: it need not finish them
                termination_grace_period_seconds=30,
                containers=[_container(schedule, "ray-worker", size)],
                volumes=list(_SCRATCH),
            ),
        ),
    )


def _container(
    schedule: Schedule, name: str, size: dict[str, str], *, head: bool = False
) -> Container:
    secret = schedule.nodes.secret
    mounts = [Mount(name="ray", mount_path="/tmp/ray"), Mount(name="shm", mount_path="/dev/shm")]
    return Container(
        name=name,
        image=schedule.nodes.image,
        env=[EnvVar(name="RAY_USAGE_STATS_ENABLED", value="0")],
        env_from=[EnvFrom(secret_ref=Reference(name=secret))] if secret else None,
        resources=Resources(requests=dict(size), limits=dict(size)),
        volume_mounts=[*([_MOUNT] if head else []), *mounts],
    )


def all_manifests(schedule: Schedule) -> Sequence[Manifest]:
    """Every kind of ours that KubeRay defines: for its schema."""
    spec = RayCronJobSpec(
        schedule=schedule.cron, time_zone=schedule.timezone, job_template=_ray_job_spec(schedule)
    )
    cron = Manifest(api_version="ray.io/v1", kind="RayCronJob", metadata=_meta(schedule), spec=spec)
    return (ray_cluster(schedule), ray_job(schedule), cron)
