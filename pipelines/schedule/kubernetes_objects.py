"""The Kubernetes and KubeRay objects that we write, as models: a misspelt field cannot be made.

Only what we use; field names are Python's, the YAML's are camelCase. The tests hold what comes
out against Kubernetes' own schemas and KubeRay's CustomResourceDefinitions.
"""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Object(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True
    )


class Meta(_Object):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class EnvVar(_Object):
    name: str
    value: str


class Reference(_Object):
    name: str
    optional: bool | None = None


class EnvFrom(_Object):
    secret_ref: Reference


class Mount(_Object):
    name: str
    mount_path: str
    read_only: bool | None = None


class ConfigMapVolume(_Object):
    name: str


class EmptyDir(_Object):
    medium: str | None = None
    size_limit: str | None = None


class Volume(_Object):
    name: str
    config_map: ConfigMapVolume | None = None
    empty_dir: EmptyDir | None = None


class Resources(_Object):
    requests: dict[str, str]
    limits: dict[str, str]


class Capabilities(_Object):
    drop: list[str] = ["ALL"]


class ContainerSecurity(_Object):
    allow_privilege_escalation: bool = False
    run_as_non_root: bool = True
    capabilities: Capabilities = Capabilities()


class Container(_Object):
    name: str
    image: str
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EnvVar] | None = None
    env_from: list[EnvFrom] | None = None
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: list[Mount] | None = None


class Seccomp(_Object):
    type: str = "RuntimeDefault"


class PodSecurity(_Object):
    run_as_non_root: bool = True
    run_as_user: int = 10001
    run_as_group: int = 10001
    fs_group: int = 10001
    seccomp_profile: Seccomp = Seccomp()


class Toleration(_Object):
    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    effect: str | None = None


class PodSpec(_Object):
    service_account_name: str | None = None
    automount_service_account_token: bool | None = None
    restart_policy: str | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None
    termination_grace_period_seconds: int | None = None
    security_context: PodSecurity = PodSecurity()
    containers: list[Container]
    volumes: list[Volume] | None = None


class PodTemplate(_Object):
    metadata: Meta | None = None
    spec: PodSpec


class OnExitCodes(_Object):
    container_name: str
    operator: Literal["In", "NotIn"] = "In"
    values: list[int]


class OnPodCondition(_Object):
    type: str
    status: str = "True"


class FailureRule(_Object):
    action: Literal["Ignore", "FailJob", "Count"]
    on_exit_codes: OnExitCodes | None = None
    on_pod_conditions: list[OnPodCondition] | None = None


class FailurePolicy(_Object):
    rules: list[FailureRule]


class JobSpec(_Object):
    backoff_limit: int
    pod_failure_policy: FailurePolicy | None = None
    ttl_seconds_after_finished: int | None = None
    active_deadline_seconds: int | None = None
    template: PodTemplate


class JobTemplate(_Object):
    spec: JobSpec


class CronJobSpec(_Object):
    schedule: str
    time_zone: str
    concurrency_policy: Literal["Allow", "Forbid", "Replace"]
    starting_deadline_seconds: int
    successful_jobs_history_limit: int = 3
    failed_jobs_history_limit: int = 3
    job_template: JobTemplate


class HeadGroup(_Object):
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(_Object):
    group_name: str
    min_replicas: int
    max_replicas: int
    replicas: int
    idle_timeout_seconds: int | None = None
    ray_start_params: dict[str, str]
    template: PodTemplate


class AutoscalerOptions(_Object):
    version: Literal["v1", "v2"] = "v2"
    idle_timeout_seconds: int = 120
    resources: Resources


class RayClusterSpec(_Object):
    ray_version: str
    enable_in_tree_autoscaling: bool = True
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class RayJobSpec(_Object):
    entrypoint: str
    # the operator submits: no pod of its own, which the network policy would have to know
    submission_mode: str = "HTTPMode"
    backoff_limit: int = 0
    active_deadline_seconds: int | None = None
    shutdown_after_job_finishes: bool = True
    ttl_seconds_after_finished: int = 600
    # as KubeRay spells it: to_camel would make runtimeEnvYaml of it
    runtimeEnvYAML: str | None = Field(default=None, alias="runtimeEnvYAML")
    ray_cluster_spec: RayClusterSpec


class RayCronJobSpec(_Object):
    schedule: str
    time_zone: str
    job_template: RayJobSpec


class Rule(_Object):
    api_groups: list[str]
    resources: list[str]
    verbs: list[str]


class Subject(_Object):
    kind: str = "ServiceAccount"
    name: str


class RoleRef(_Object):
    api_group: str = "rbac.authorization.k8s.io"
    kind: str = "Role"
    name: str


class Selector(_Object):
    """Without labels: everything."""

    match_labels: dict[str, str] | None = None


class Peer(_Object):
    namespace_selector: Selector | None = None
    pod_selector: Selector | None = None


class Port(_Object):
    port: int
    protocol: str = "TCP"


class Ingress(_Object):
    from_: list[Peer] = Field(alias="from")
    ports: list[Port] | None = None

    @classmethod
    def of(cls, *peers: Peer, port: int | None = None) -> Ingress:
        """`from` is a word of Python's own."""
        ports = None if port is None else [Port(port=port).model_dump()]
        return cls.model_validate({"from": [p.model_dump() for p in peers], "ports": ports})


class NetworkPolicySpec(_Object):
    pod_selector: Selector
    policy_types: list[str] = ["Ingress"]
    ingress: list[Ingress]


class Manifest(_Object):
    """One object; `spec` and the other bodies by kind."""

    api_version: str
    kind: str
    metadata: Meta
    spec: CronJobSpec | RayClusterSpec | RayJobSpec | RayCronJobSpec | NetworkPolicySpec | None = (
        None
    )
    data: dict[str, str] | None = None
    rules: list[Rule] | None = None
    subjects: list[Subject] | None = None
    role_ref: RoleRef | None = None
    automount_service_account_token: bool | None = None

    def as_data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.model_dump(by_alias=True, exclude_none=True)
        return data


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(*manifests: Manifest) -> str:
    """Several documents, fields in the order in which the models have them."""
    return yaml.dump_all(
        [manifest.as_data() for manifest in manifests],
        Dumper=_Dumper,
        sort_keys=False,
        width=100,
        explicit_start=len(manifests) > 1,
    )
