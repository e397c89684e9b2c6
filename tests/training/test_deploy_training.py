"""The files for clusters: what they make of the cluster's variables, and that they are what they should be."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from dh_keras.training.workers.cluster import read_cluster

DEPLOY = Path(__file__).parents[2] / "deploy"


def make_executable(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def stand_ins(tmp_path):
    """Commands of a cluster that is not there: each prints or does what the scripts rely on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    make_executable(folder / "scontrol", '[ "$3" = "node[1-3]" ] && printf "node1\\nnode2\\nnode3\\n"')
    # One task after the other, each with its number.
    make_executable(folder / "srun", 'shift; for i in 0 1 2; do SLURM_PROCID=$i "$@"; done')
    make_executable(folder / "python", 'printf "%s\\n" "$TF_CONFIG" "$*"')
    return folder


def run(command, stand_ins, **variables):
    environment = {**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def clusters(lines, monkeypatch):
    """What the package reads from each printed TF_CONFIG."""
    for line in lines:
        monkeypatch.setenv("TF_CONFIG", line)
        yield read_cluster()


def test_slurm_gives_every_task_its_own_tf_config_and_the_arguments(stand_ins, monkeypatch):
    command = ["bash", str(DEPLOY / "train.slurm"), "--output", "my runs/x", "data.batch_size=64"]
    lines = run(command, stand_ins, SLURM_JOB_ID="70123", SLURM_JOB_NODELIST="node[1-3]")
    assert lines[1::2] == ["scripts/train.py --strategy multi_worker --output my runs/x data.batch_size=64"] * 3
    read = list(clusters(lines[::2], monkeypatch))
    assert [cluster.index for cluster in read] == [0, 1, 2]
    assert {cluster.addresses for cluster in read} == {("node1:30123", "node2:30123", "node3:30123")}


def test_slurm_takes_a_port_from_outside(stand_ins):
    lines = run(
        ["bash", str(DEPLOY / "train.slurm")],
        stand_ins,
        SLURM_JOB_ID="7",
        SLURM_JOB_NODELIST="node[1-3]",
        WORKER_PORT="4000",
    )
    assert json.loads(lines[0])["cluster"]["worker"] == ["node1:4000", "node2:4000", "node3:4000"]


def job_parts():
    service, job = yaml.safe_load_all((DEPLOY / "train-job.yaml").read_text())
    return service, job, job["spec"]["template"]["spec"]["containers"][0]


def test_the_kubernetes_job_has_as_many_pods_as_workers_under_the_names_of_its_service():
    service, job, container = job_parts()
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    workers = {entry["name"]: entry["value"] for entry in container["env"]}["WORKERS"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == int(workers)
    assert service["spec"]["clusterIP"] == "None"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert container["ports"][0]["containerPort"] == service["spec"]["ports"][0]["port"]


@pytest.mark.parametrize("started_before", [False, True])
def test_a_kubernetes_pod_gets_its_tf_config_and_goes_on_where_there_is_a_checkpoint(
    stand_ins, monkeypatch, tmp_path, started_before
):
    if started_before:
        (tmp_path / "state.npz").touch()
    _, _, container = job_parts()
    command = [*container["command"], *container["args"]]
    config, arguments = run(command, stand_ins, WORKERS="2", JOB_COMPLETION_INDEX="1", RUN=str(tmp_path))
    (cluster,) = clusters([config], monkeypatch)
    assert cluster.index == 1
    assert cluster.addresses == ("dh-keras-train-0.dh-keras-train:12345", "dh-keras-train-1.dh-keras-train:12345")
    assert ("--resume" in arguments.split()) is started_before
    assert f"--output {tmp_path}" in arguments
