"""Schedules, held against the systems' own judges where those are at hand."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.pipelines.schedules import JOB, full_schedule, schedule
from tokenmill.pipelines import cli
from tokenmill.pipelines.schedule import install, kube_runner, machine, next_time
from tokenmill.pipelines.schedule.alert import alert
from tokenmill.pipelines.schedule.cron import on_calendar, parse_cron, zone_of
from tokenmill.pipelines.schedule.kubernetes import all_manifests, network_policy
from tokenmill.pipelines.schedule.kubernetes_objects import to_yaml
from tokenmill.schemas.errors import JobError, StoreError, TokenmillError

ROOT = Path(__file__).resolve().parents[2]
SLIM = ROOT / "tests" / "data" / "kuberay"
CRDS = ROOT.parent / "shared" / "kuberay"
ZURICH = ZoneInfo("Europe/Zurich")

# ------------------------------------------------------------------------------------- cron


def next_of(text: str, moment: str, zone: str = "UTC") -> str:
    after = parse_cron(text).after(datetime.fromisoformat(moment), zone_of(zone))
    return after.isoformat(timespec="minutes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 2 * * *", "2026-03-11T02:00+00:00"),
        ("*/15 * * * *", "2026-03-10T12:15+00:00"),
        ("0 9-17/4 * * mon-fri", "2026-03-10T13:00+00:00"),
        ("0 0 1 jan *", "2027-01-01T00:00+00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00+00:00"),
        ("0 0 13 * fri", "2026-03-13T00:00+00:00"),  # either will do
        ("0 0 15 * sun", "2026-03-15T00:00+00:00"),
        ("0 0 * * 7", "2026-03-15T00:00+00:00"),
        ("@monthly", "2026-04-01T00:00+00:00"),
        ("30 4 1,15 * 5", "2026-03-13T04:30+00:00"),
        ("5/20 12 * * *", "2026-03-10T12:05+00:00"),
    ],
)
def test_the_next_time_of_a_cron_expression(text: str, expected: str) -> None:
    assert next_of(text, "2026-03-10T12:04+00:00") == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("0 2 * *", "4 fields"),
        ("60 2 * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 2 0 * *", "day of month"),
        ("0 2 * 13 *", "month"),
        ("0 2 * * 8", "weekday"),
        ("0 2 * * moon*", "weekday"),
        ("*/0 2 * * *", "step of 0"),
        ("9-3 2 * * *", "backwards"),
        ("*-3 2 * * *", "no range"),
    ],
)
def test_a_wrong_cron_expression_names_its_field(text: str, word: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_cron(text)
    assert word in str(caught.value)


def test_what_never_comes_is_refused() -> None:
    with pytest.raises(JobError, match="never comes"):
        next_of("0 0 31 2 *", "2026-01-01T00:00+00:00")
    with pytest.raises(JobError, match="no time zone"):
        zone_of("Europe/Zürich")


def test_clock_changes_skip_no_night_and_repeat_none() -> None:
    # 2026-03-29 02:30 is not there in Zurich: it runs at 03:00, when the clock has jumped
    spring = next_of("30 2 * * *", "2026-03-28T12:00+01:00", "Europe/Zurich")
    assert spring == "2026-03-29T03:00+02:00"
    # 2026-10-25 02:30 is there twice: once, the first time
    first = next_of("30 2 * * *", "2026-10-24T12:00+02:00", "Europe/Zurich")
    assert first == "2026-10-25T02:30+02:00"
    assert next_of("30 2 * * *", first, "Europe/Zurich") == "2026-10-26T02:30+01:00"


@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    moment=st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),
)
@settings(max_examples=60, deadline=None)
def test_a_daily_time_comes_once_a_day_whatever_the_clocks_do(
    minute: int, hour: int, moment: datetime
) -> None:
    cron = parse_cron(f"{minute} {hour} * * *")
    now = moment.replace(tzinfo=UTC)
    days = []
    for _ in range(4):
        now = cron.after(now, ZURICH)
        days.append(now.astimezone(ZURICH).date())
    assert [(b - a).days for a, b in itertools.pairwise(days)] == [1, 1, 1]


# ------------------------------------------------------------------------------- Kubernetes


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def slim_errors(document: Mapping[str, Any]) -> list[str]:
    schema = json.loads((SLIM / f"{document['kind'].lower()}.json").read_text())
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def strict(schema: Any) -> Any:
    """A CRD's schema as its README asks: unknown fields refused, int-or-string of no type."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def check_native(document: Mapping[str, Any]) -> None:
    kubernetes_validate.validate(dict(document), "1.34", strict=True)


def ray_job_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (config,) = [o for o in objects if o["kind"] == "ConfigMap"]
    job: dict[str, Any] = yaml.safe_load(config["data"]["rayjob.yaml"])
    return job


@pytest.mark.parametrize("made", [schedule(), full_schedule(), schedule(missed="skip")])
def test_kubernetes_objects_are_what_kubernetes_and_kuberay_take(made: Any) -> None:
    (text,) = install.render(made, "kubernetes").files.values()
    objects = documents(text)
    kinds = ["ConfigMap", "ServiceAccount", "Role", "RoleBinding", "CronJob", "NetworkPolicy"]
    assert [o["kind"] for o in objects] == kinds
    for each in objects:
        check_native(each)
    assert slim_errors(ray_job_of(objects)) == []


def test_the_slim_schema_refuses_what_we_misspell() -> None:
    job = ray_job_of(documents(install.render(schedule(), "kubernetes").files.popitem()[1]))
    job["spec"]["entrypiont"] = "x"
    job["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] = "v3"
    del job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert len(slim_errors(job)) == 3


@pytest.mark.slow
@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's definitions are not in ../shared/kuberay")
def test_kuberay_objects_fit_kuberays_own_definitions() -> None:
    files = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
    for manifest in all_manifests(full_schedule()):
        path = CRDS / f"ray.io_{files[manifest.kind]}.yaml"
        (version,) = [
            v
            for v in yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
            if v["name"] == "v1"
        ]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        validator = jsonschema.Draft202012Validator(schema)
        assert [e.message for e in validator.iter_errors(manifest.as_data())] == []


def test_the_night_is_one_at_a_time_in_its_zone_and_caught_up_as_told() -> None:
    def spec(**changes: Any) -> dict[str, Any]:
        objects = documents(install.render(schedule(**changes), "kubernetes").files.popitem()[1])
        (cron,) = [o for o in objects if o["kind"] == "CronJob"]
        found: dict[str, Any] = cron["spec"]
        return found

    late = spec()
    assert (late["timeZone"], late["schedule"]) == ("Europe/Zurich", "0 2 * * *")
    assert late["concurrencyPolicy"] == "Forbid"
    assert late["startingDeadlineSeconds"] == 23 * 3600
    assert spec(missed="skip")["startingDeadlineSeconds"] == 600
    # never so long that 100 starts could be missed within: Kubernetes would stop the series
    often = spec(cron="*/5 * * * *")["startingDeadlineSeconds"]
    assert often / 300 < 100


def test_the_head_takes_no_tasks_and_workers_scale_from_nothing() -> None:
    objects = documents(install.render(full_schedule(), "kubernetes").files.popitem()[1])
    cluster = ray_job_of(objects)["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
    assert {n: (g["minReplicas"], g["maxReplicas"]) for n, g in groups.items()} == {
        "cpu": (0, 8),
        "gpu": (0, 8),
    }
    gpu = groups["gpu"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert {t["key"] for t in gpu["tolerations"]} == {
        "nvidia.com/gpu",
        "cloud.google.com/gke-spot",
    }


def test_secrets_go_by_reference_and_pods_are_closed() -> None:
    text = install.render(full_schedule(), "kubernetes").files.popitem()[1]
    assert "AWS_" not in text
    cluster = ray_job_of(documents(text))["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"]["spec"]]
    pods += [g["template"]["spec"] for g in cluster["workerGroupSpecs"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "aws"}}]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    policy = yaml.safe_load(to_yaml(network_policy(full_schedule())))
    label = {"matchLabels": {"tokenmill.job": full_schedule().name}}
    assert policy["spec"]["podSelector"] == label
    ours, operator = policy["spec"]["ingress"]
    assert ours == {"from": [{"podSelector": label}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    (peer,) = operator["from"]
    assert peer["namespaceSelector"] == {}
    component = {"app.kubernetes.io/component": "kuberay-operator"}
    assert peer["podSelector"] == {"matchLabels": component}


def test_a_ray_cronjob_says_that_it_is_an_alpha_and_what_it_cannot() -> None:
    rendered = install.render(schedule(missed="skip"), "ray-cronjob")
    (text,) = rendered.files.values()
    assert "alpha" in text.splitlines()[0] and any("RayCronJob=true" in n for n in rendered.notes)
    (cron,) = [d for d in documents(text) if d["kind"] == "RayCronJob"]
    assert slim_errors(cron) == []
    with pytest.raises(JobError, match="alert"):
        install.render(schedule(missed="skip", alert="x"), "ray-cronjob")
    with pytest.raises(JobError, match="catch up"):
        install.render(schedule(), "ray-cronjob")


class FakeApi:
    """An API server with one kind of object."""

    def __init__(self, *statuses: dict[str, str], fail: int = 0) -> None:
        self.statuses = list(statuses)
        self.made: dict[str, dict[str, Any]] = {}
        self.fail = fail

    def get(self, path: str) -> Any:
        if self.fail:
            self.fail -= 1
            raise urllib.error.URLError("no route to host")
        if "?" in path:
            return {"items": [{"metadata": {"name": n}, **o} for n, o in self.made.items()]}
        found = self.made[path.rpartition("/")[2]]
        if "jobDeploymentStatus" not in found.get("status", {}):
            found["status"] = self.statuses.pop(0)
        return found

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        assert path == "/apis/ray.io/v1/namespaces/tokenmill/rayjobs"
        self.made[body["metadata"]["name"]] = {}

    def delete(self, path: str) -> Any:
        del self.made[path.rpartition("/")[2]]


MANIFEST = {"metadata": {"name": "tokenmill-n", "namespace": "tokenmill"}, "spec": {}}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def failed(code: int | None) -> dict[str, str]:
    message = f"Job entrypoint command failed with exit code {code}, last" if code else "lost"
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": message}


def night(api: FakeApi, attempts: int = 3) -> int:
    clock = iter(range(10**6))
    return kube_runner.run(api, MANIFEST, attempts=attempts, now=lambda: float(next(clock)),
                           sleep=lambda _: None)  # fmt: skip


def test_the_runner_waits_for_the_end_and_repeats_what_the_infrastructure_lost() -> None:
    api = FakeApi({"jobStatus": "RUNNING"}, failed(3), failed(None), DONE)
    assert night(api) == 0 and len(api.made) == 3
    api = FakeApi(failed(3), failed(3), DONE)
    assert night(api, attempts=2) == 3 and len(api.made) == 2


@pytest.mark.parametrize("code", [1, 2, 70])
def test_the_runner_does_not_repeat_the_jobs_own_failure(code: int) -> None:
    api = FakeApi(failed(code), DONE)
    assert night(api) == code and len(api.made) == 1


def test_a_new_runner_waits_for_the_ray_job_of_the_one_that_was_drained() -> None:
    api = FakeApi(DONE, fail=2)
    api.made["tokenmill-n-7"] = {}
    assert night(api) == 0 and list(api.made) == ["tokenmill-n-7"]


def test_the_last_few_ray_jobs_are_kept_and_one_at_work_is_never_deleted() -> None:
    api = FakeApi()
    for day in range(8):
        api.made[f"tokenmill-n-{day}"] = {
            "status": {"jobDeploymentStatus": "Complete"} if day else {}
        }
    api.get = lambda _: {  # type: ignore[method-assign]
        "items": [
            {"metadata": {"name": n, "creationTimestamp": n}, **made}
            for n, made in api.made.items()
        ]
    }
    kube_runner.tidy(api, MANIFEST)
    assert sorted(api.made) == [f"tokenmill-n-{day}" for day in (0, 3, 4, 5, 6, 7)]


# ---------------------------------------------------------------------------------- systemd


ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed (apt: systemd)")
@pytest.mark.parametrize("missed", ["catch-up", "skip"])
def test_systemd_takes_the_units(tmp_path: Path, missed: str) -> None:
    made = schedule(missed=missed, alert='echo "$TOKENMILL_JOB: 100%" | cat', python=sys.executable)
    rendered = install.render(made, "systemd")
    files = install.write(rendered, tmp_path)
    assert [f.name.partition("-docs")[2] for f in files] == [".service", ".timer", "-alert.service"]
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *map(str, files)], capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if made.name in line]
    assert done.returncode == 0 and ours == [], done.stderr
    text = rendered.files[f"{made.name}.timer"]
    assert f"Persistent={'true' if missed == 'catch-up' else 'false'}" in text


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed (apt: systemd)")
@pytest.mark.parametrize(
    "text",
    ["0 2 * * *", "*/15 9-17 * * mon-fri", "0 0 13 * fri", "30 4 1,15 */2 *", "@weekly",
     "0 0 * * 7"],
)  # fmt: skip
def test_systemds_calendar_means_what_cron_means(text: str) -> None:
    """The next five times, by systemd and by us, in a zone with clock changes."""
    cron, zone = parse_cron(text), "America/New_York"
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    lines = on_calendar(cron, zone)
    theirs: set[datetime] = set()
    for line in lines:
        said = subprocess.run(
            [str(ANALYZE), "calendar", "--iterations=5", f"--base-time={now:%Y-%m-%d %H:%M:%S} UTC",
             line], capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC"},
        )  # fmt: skip
        for row in said.stdout.splitlines():
            if row.strip().startswith(("Next elapse:", "Iter. #")):
                stamp = row.partition(":")[2].split()[1:3]
                theirs.add(datetime.fromisoformat(" ".join(stamp)).replace(tzinfo=UTC))
    ours = []
    for _ in range(5):
        now = cron.after(now, zone_of(zone))
        ours.append(now.astimezone(UTC))
    assert ours == sorted(theirs)[:5]


# ------------------------------------------------------------------------------------- cron


def test_a_crontab_line_is_refused_where_cron_cannot_honour_the_zone() -> None:
    made = schedule(missed="skip")
    for flavour in ("other", "none"):
        with pytest.raises(JobError, match=r"cannot run at 0 2 \* \* \* Europe/Zurich"):
            machine.crontab(made, flavour=flavour, local_zone="UTC")  # type: ignore[arg-type]
    assert "CRON_TZ=Europe/Zurich" in _line(made, "cronie", "UTC")
    assert "CRON_TZ" not in _line(made, "other", "Europe/Zurich")
    with pytest.raises(JobError, match="catch up"):
        machine.crontab(schedule(), flavour="cronie", local_zone="UTC")


def _line(made: Any, flavour: Any, zone: str) -> str:
    return machine.crontab(made, flavour=flavour, local_zone=zone).files["crontab"]


def test_the_crontab_line_runs_one_at_a_time_and_alerts(tmp_path: Path) -> None:
    """The line's command, by the shell that cron would use."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\nexit ${{CODE:-0}}\n')
    program.chmod(0o755)
    made = schedule(missed="skip", alert="mail 50% me", python=str(program))
    command = _line(made, "cronie", "UTC").splitlines()[-2].partition(" * * * ")[2]
    assert command.count(r"\%") == 1
    command = command.replace(r"\%", "%")
    for code in (0, 3, 4):
        subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "CODE": str(code)})
    run = "-m tokenmill run /data/job.yaml"
    hook = "-m tokenmill.pipelines.schedule.alert mail 50% me Nightly_docs 3"
    assert (tmp_path / "log").read_text().splitlines() == [run, run, hook, run]
    lock = command.split()[4]
    with subprocess.Popen(["flock", "-o", lock, "sleep", "30"]) as holder:
        while subprocess.run(["flock", "-n", lock, "true"]).returncode == 0:
            pass
        subprocess.run(["/bin/sh", "-c", command], check=True)
        holder.terminate()
    assert len((tmp_path / "log").read_text().splitlines()) == 4


def test_a_crontab_keeps_what_is_not_ours() -> None:
    block = _line(schedule(missed="skip"), "cronie", "UTC")
    name = schedule().name
    once = install.with_block("MAILTO=me\n1 1 * * * true", name, block)
    assert once.startswith("MAILTO=me\n1 1 * * * true\n# BEGIN")
    assert install.with_block(once, name, block) == once
    assert install.with_block(once, "other", "x\n").startswith(once)


# ------------------------------------------------------------------------------------ slurm


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_batch_script_is_a_shell_script_and_submits_its_next_run_first(nodes: int) -> None:
    made = schedule({"count": nodes, "partition": "gpu"}, alert="x 'y'", missed="skip")
    (text,) = install.render(made, "slurm").files.values()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "#SBATCH --dependency=singleton" in text and f"#SBATCH --nodes={nodes}" in text
    assert text.index("sbatch --begin") < text.index("tokenmill run")
    assert ("ray.scripts.scripts" in text) == (nodes > 1)


def test_slurms_next_time_is_the_machines_local_one() -> None:
    now = datetime(2026, 1, 5, 12, tzinfo=UTC)
    begin = datetime.fromisoformat(next_time.begin("0 2 * * *", "Asia/Tokyo", now)).astimezone(UTC)
    assert begin == datetime(2026, 1, 5, 17, tzinfo=UTC)
    on_time = datetime(2026, 1, 5, 17, 9, tzinfo=UTC)
    assert not next_time.is_late("0 2 * * *", "Asia/Tokyo", on_time)
    assert next_time.is_late("0 2 * * *", "Asia/Tokyo", on_time + timedelta(minutes=2))


# ---------------------------------------------------------------------------------- the verb


def invoke(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(w) for w in words])


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize("target", ["kubernetes", "ray-cronjob", "slurm", "systemd"])
def test_schedule_writes_the_files_of_each_target(job: Path, tmp_path: Path, target: str) -> None:
    done = invoke("schedule", job, "--cron", "0 2 * * *", "--timezone", "Europe/Zurich",
                  "--on", target, "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "out").iterdir())


def test_mistakes_are_the_users_and_say_the_remedy(job: Path, tmp_path: Path) -> None:
    def fails(*words: object) -> str:
        done = invoke("schedule", job, "--cron", "0 2 * * *", *words)
        assert isinstance(done.exception, TokenmillError), done.output
        assert done.exception.exit_code == 2
        return str(done.exception)

    assert "is not known" in fails("--on", "kubernets")
    assert "no time zone" in fails("--on", "slurm", "--timezone", "Mars/Olympus")
    assert "control characters" in fails("--on", "slurm", "--alert", "a\nb")
    assert "--memory is wrong" in fails("--on", "slurm", "--memory", "lots")
    local = tmp_path / "local.yaml"
    local.write_text(JOB.replace("s3://bucket/v.json", "v.json"))
    done = invoke("schedule", local, "--cron", "0 2 * * *", "--on", "kubernetes")
    assert "files of this machine" in str(done.exception)


def test_apply_names_the_tool_that_is_missing(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.shutil, "which", lambda *_: None)
    done = invoke("schedule", job, "--cron", "0 2 * * *", "--on", "kubernetes", "--apply")
    assert "needs kubectl" in str(done.exception)


def test_apply_hands_the_manifest_to_the_tool(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "kubectl"
    tool.write_text(f'#!/bin/sh\ncat > {tmp_path}/applied\necho "$@"\nexit ${{CODE:-0}}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = ("schedule", job, "--cron", "0 2 * * *", "--on", "kubernetes", "--apply")
    assert "apply -f -" in invoke(*words).output
    assert len(documents((tmp_path / "applied").read_text())) == 6
    monkeypatch.setenv("CODE", "1")
    assert isinstance(invoke(*words).exception, StoreError)


def test_the_alert_hook_is_a_command_or_a_url(tmp_path: Path) -> None:
    alert(f'echo "$TOKENMILL_JOB $TOKENMILL_EXIT_CODE" > {tmp_path}/said', "night ly", "3")
    assert (tmp_path / "said").read_text() == "night ly 3\n"
    with pytest.raises(subprocess.CalledProcessError):
        alert("exit 1", "n", "3")
