"""Cut KubeRay's CustomResourceDefinitions (14 MB of them are prose and pods) down to what we write.

    python tests/data/kuberay/slim.py ../shared/kuberay   # writes <kind>.json beside this file

Kept: type, enum, required, bounds and patterns of every field that a manifest of ours uses; all
other fields are refused. So a new field of ours fails the test until this ran again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.pipelines.schedules import full_schedule
from tokenmill.pipelines.schedule.kubernetes import all_manifests

HERE = Path(__file__).parent
KEPT = ("type", "enum", "required", "minimum", "maximum", "pattern", "minLength", "maxLength")
FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}


def slim(schema: dict[str, Any], used: Any) -> dict[str, Any]:
    """`schema` with the fields that `used` has."""
    kept = {name: schema[name] for name in KEPT if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
    if isinstance(used, dict) and "properties" in schema:
        kept["properties"] = {
            name: slim(schema["properties"][name], value) for name, value in used.items()
        }
        kept["additionalProperties"] = False
    elif isinstance(used, dict) and isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = slim(schema["additionalProperties"], None)
    elif isinstance(used, list):
        merged: Any = used[0]
        if all(isinstance(item, dict) for item in used):
            merged = _merge(used)
        kept["items"] = slim(schema["items"], merged)
    return kept


def _merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A value that has every field of every part."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, dict) and isinstance(found.get(name), dict):
                found[name] = _merge([found[name], value])
            elif isinstance(value, list) and isinstance(found.get(name), list):
                found[name] = found[name] + value
            else:
                found[name] = value
    return found


def crd_schema(path: Path) -> dict[str, Any]:
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    return dict(version["schema"]["openAPIV3Schema"])


def main(folder: Path) -> None:
    for manifest in all_manifests(full_schedule()):
        used = manifest.as_data()
        schema = crd_schema(folder / f"ray.io_{FILES[manifest.kind]}.yaml")
        made = slim({**schema, "properties": {**schema["properties"], "metadata": {}}}, used)
        made["properties"]["metadata"] = {"type": "object"}
        text = json.dumps(made, indent=1, sort_keys=True)
        (HERE / f"{manifest.kind.lower()}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
