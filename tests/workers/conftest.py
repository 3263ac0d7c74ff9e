"""One local Ray cluster per session, small and quiet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Two CPUs, no dashboard; actors import this checkout. Yields the ray module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # explicit: a token file that an earlier `ray.init()` left would turn authentication on
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(tmp_path_factory.mktemp("ray") / "token")
    import ray  # noqa: PLC0415 - 0.4 s and the environment above must come first

    if ray.is_initialized():  # by another folder's fixture of this session
        yield ray
        return
    ray.init(
        address="local",  # never a cluster that another test or person runs on this machine
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )
    yield ray
    ray.shutdown()
