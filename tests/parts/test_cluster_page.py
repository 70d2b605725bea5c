"""What docs/cluster.md and docs/Containerfile say parses, and agrees with the package and with itself."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from simclr_hub.cli.parts import run_command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
CONTAINERFILE = (ROOT / "docs" / "Containerfile").read_text(encoding="utf-8")
MANIFESTS = {job["kind"]: job for job in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.S))}
SLURM = re.search(r"```bash\n(#!.*?)```", PAGE, re.S)


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a `simclr-hub parts run ...`, as the command line takes them."""
    assert words[:3] == ["simclr-hub", "parts", "run"]
    return run_command.make_context("run", words[3:]).params


def told(command: list[str], folder: Path, **env: str) -> list[str]:
    """Run a shell command with a simclr-hub that tells its words, which are returned."""
    stub = folder / "simclr-hub"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" simclr-hub "$@" "OMP_NUM_THREADS=$OMP_NUM_THREADS"\n')
    stub.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    result = subprocess.run(command, env={"PATH": path, **env}, capture_output=True, text=True, check=True)
    *words, threads = result.stdout.splitlines()
    assert threads == "OMP_NUM_THREADS=16"
    return words


@pytest.mark.parametrize(("index", "worker"), [(1, (1, 100)), (100, (100, 100))])
def test_each_task_of_the_slurm_array_takes_its_share(tmp_path: Path, index: int, worker: tuple[int, int]) -> None:
    assert SLURM is not None
    script = tmp_path / "job.sh"
    script.write_text(SLURM[1])
    first, last, at_once = map(int, re.findall(r"--array=(\d+)-(\d+)%(\d+)", SLURM[1])[0])
    assert (first, last) == (1, worker[1]) and at_once <= last
    (cpus,) = re.findall(r"--cpus-per-task=(\d+)", SLURM[1])
    words = told(["bash", str(script)], tmp_path, SLURM_ARRAY_TASK_ID=str(index), SLURM_CPUS_PER_TASK=cpus)
    assert parsed(words)["worker"] == worker


@pytest.mark.parametrize(("index", "worker"), [(0, (1, 100)), (99, (100, 100))])
def test_each_index_of_the_kubernetes_job_takes_its_share(tmp_path: Path, index: int, worker: tuple[int, int]) -> None:
    spec = MANIFESTS["Job"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert MANIFESTS["Job"]["apiVersion"] == "batch/v1" and spec["completionMode"] == "Indexed"
    assert spec["completions"] == worker[1] and pod["restartPolicy"] == "Never"  # which backoffLimitPerIndex wants
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    words = told(container["command"], tmp_path, JOB_COMPLETION_INDEX=str(index), **env)
    options = parsed(words)
    assert options["worker"] == worker and (options["plan"], options["output"]) == (
        "s3://bucket/plan",
        "s3://bucket/parts",
    )
    assert container["resources"]["requests"]["cpu"] == env["OMP_NUM_THREADS"]


def test_the_rayjob_gives_keys_to_whoever_reads_and_its_cores_to_ray() -> None:
    assert MANIFESTS["RayJob"]["apiVersion"] == "ray.io/v1"
    spec = MANIFESTS["RayJob"]["spec"]
    assert parsed(spec["entrypoint"].split())["engine"] == "ray"
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    assert isinstance(cluster["rayVersion"], str) and cluster["authOptions"] == {"mode": "token"}  # it wants a version
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "bucket-keys"}}]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert workers["rayStartParams"]["num-cpus"] == container["resources"]["requests"]["cpu"]


def test_the_container_file_installs_what_there_is_and_is_no_root() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=([\w,]+\w)", CONTAINERFILE + PAGE)
    assert named and {extra for names in named for extra in names.split(",")} <= extras.keys()
    steps = dict(re.findall(r"^(FROM|USER) (.+)$", CONTAINERFILE, re.M))
    assert steps["FROM"].startswith("python:3") and int(steps["USER"]) > 0
    assert f"--uid {steps['USER']}" in CONTAINERFILE and "ARG PACKAGES=wget\n" in CONTAINERFILE
