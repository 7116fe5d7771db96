"""joblib's Ray backend: the jobs of one command on a Ray cluster."""

from __future__ import annotations

import logging
import os
from typing import Any

from benchmarks.harness.jobs import ROOT

EXCLUDED = [".git", ".venv", "runs", "benchmarks/results", "tests", "**/__pycache__"]


def ray_backend(jobs: int, threads: int, device: str) -> dict[str, Any]:
    """Connect to the cluster at `$RAY_ADDRESS`, or the one running here, and return joblib's configuration for it.

    The code is sent to the cluster. Logs, unfinished work and data sets are read and written under the same paths as
    here: with several machines these folders must be shared; results come back by themselves.

    Args:
        jobs: jobs that run at the same time.
        threads: cores of each.
        device: with anything but "cpu", the cluster's GPUs are shared out among the jobs.
    """
    import ray
    from joblib import register_parallel_backend
    from ray.util.joblib import register_ray
    from ray.util.joblib.ray_backend import RayBackend

    class StreamingRay(RayBackend):
        supports_return_generator = True  # its pool calls back as each job ends; joblib only rules out its parent's

    register_ray()
    register_parallel_backend("ray", StreamingRay)
    if not ray.is_initialized():
        try:
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "auto"),
                runtime_env={"working_dir": str(ROOT), "excludes": EXCLUDED},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster: `ray start --head` starts one, RAY_ADDRESS names another, RAY_AUTH_MODE=token goes "
                f"with one that wants a token ({error})"
            ) from error
    resources = ray.cluster_resources()
    available = int(resources.get("CPU", 0))
    if jobs * threads > available:
        raise ValueError(
            f"{jobs} jobs of {threads} threads need more than the cluster's {available} cores; "
            "lower --jobs or --threads"
        )
    gpus = 0 if device == "cpu" else resources.get("GPU", 0)
    return {
        "backend": "ray",
        "ray_remote_args": {"num_cpus": threads, "num_gpus": min(1, gpus / jobs)},
    }
