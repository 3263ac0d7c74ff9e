"""The Grafana dashboard in deploy/grafana, as data: every query goes by metric_names.py."""

from __future__ import annotations

from typing import Any

from tokenmill.pipelines.metric_names import exported

_BY_STREAM = "pipeline, stream"
_JOB = 'job=~"$job"'


def _rate(name: str, by: str = _BY_STREAM) -> str:
    return f"sum by ({by}) (rate({exported(name)}{{{_JOB}}}[$__rate_interval]))"


def _level(name: str, how: str = "sum") -> str:
    return f"{how} by ({_BY_STREAM}) ({exported(name)}{{{_JOB}}})"


def _share(activity: str) -> str:
    """Of the workers' time. wait stands beside encode alone: the encoder's own two states."""
    spent = exported("worker_seconds")
    both = 'activity=~"encode|wait"'
    return (
        f'sum by ({_BY_STREAM}) (rate({spent}{{{_JOB}, activity="{activity}"}}[$__rate_interval]))'
        f" / sum by ({_BY_STREAM}) (rate({spent}{{{_JOB}, {both}}}[$__rate_interval]))"
    )


# title, unit of Grafana's, [(query, legend)]
_STREAM = "{{pipeline}}/{{stream}}"
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Tokens per second", "short", ((_rate("tokens"), _STREAM),)),
    ("Samples per second", "short", ((_rate("samples"), _STREAM),)),
    ("Bytes read", "Bps", ((_rate("source_bytes"), _STREAM),)),
    ("Bytes written", "Bps", ((_rate("shard_bytes"), _STREAM),)),
    (
        "Quarantined per second, by reason",
        "short",
        ((_rate("quarantined", "pipeline, stream, reason"), _STREAM + " {{reason}}"),),
    ),
    (
        "Workers' seconds per second, by activity",
        "short",
        ((_rate("worker_seconds", "activity"), "{{activity}}"),),
    ),
    ("Encoders starving", "percentunit", ((_share("wait"), _STREAM),)),
    (
        "Tasks",
        "short",
        (
            (_level("tasks_queued"), _STREAM + " queued"),
            (_level("tasks_running"), _STREAM + " running"),
        ),
    ),
    ("Tasks committed per second", "short", ((_rate("tasks"), _STREAM),)),
    ("Workers", "short", ((_level("workers"), _STREAM),)),
    ("Batch fill", "percentunit", ((_level("batch_fill", "avg"), _STREAM),)),
    ("GPU memory, highest peak", "bytes", ((_level("gpu_memory_bytes", "max"), _STREAM),)),
    (
        "Waiting for the store",
        "bool",
        ((f"max by (job) ({exported('store_waiting')}{{{_JOB}}})", "{{job}}"),),
    ),
    (
        "Runs ended in the last day, by exit code",
        "short",
        (
            (
                f"sum by (job, exit_code) (increase({exported('runs')}{{{_JOB}}}[1d]))",
                "{{job}} {{exit_code}}",
            ),
        ),
    ),
)
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Grafana's JSON model (schema 39, Grafana 10 and newer)."""
    return {
        "uid": "tokenmill",
        "title": "tokenmill",
        "tags": ["tokenmill", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-12h", "to": "now"},
        "templating": {"list": [_datasource(), _jobs()]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}


def _jobs() -> dict[str, Any]:
    query = f"label_values({exported('tasks')}, job)"
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "job"},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def _panel(
    number: int, title: str, unit: str, queries: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": title,
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(65 + i), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(queries)
        ],
    }
