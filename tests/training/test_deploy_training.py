"""The files for clusters: what they make of the cluster's variables, and that they are what they should be."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from dh_keras.training.workers.cluster import read_cluster

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"


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
    make_executable(folder / "dh-keras", 'printf "%s\\n" "$TF_CONFIG" "$*"')
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
    assert lines[1::2] == ["train --strategy multi_worker --output my runs/x data.batch_size=64"] * 3
    read = list(clusters(lines[::2], monkeypatch))
    assert [cluster.index for cluster in read] == [0, 1, 2]
    assert {cluster.addresses for cluster in read} == {("node1:30123", "node2:30123", "node3:30123")}


def test_slurm_gives_the_workers_of_a_job_a_token_of_their_own(stand_ins):
    command = ["bash", str(DEPLOY / "train.slurm")]
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]"}
    make_executable(stand_ins / "dh-keras", 'echo "$DH_KERAS_CLUSTER_TOKEN"')
    first, second = (run(command, stand_ins, **variables) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]
    assert re.fullmatch("[0-9a-f]{32}", first[0])
    assert run(command, stand_ins, **variables, DH_KERAS_CLUSTER_TOKEN="mine") == ["mine"] * 3


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
    workers = {entry["name"]: entry.get("value") for entry in container["env"]}["WORKERS"]
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


# From the oldest that has all that the Job asks for.
@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_kubernetes_knows_every_field_of_the_job(version):
    for document in yaml.safe_load_all((DEPLOY / "train-job.yaml").read_text()):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_of_the_job_would_be_seen():
    _, job, _ = job_parts()
    job["spec"]["backofLimitPerIndex"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimitPerIndex"):
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_what_is_not_the_trainings_fault_does_not_count_against_the_job():
    _, job, container = job_parts()
    condition, codes = job["spec"]["podFailurePolicy"]["rules"]
    assert condition == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert codes["action"] == "Ignore"
    # What every worker ends with when one of them gets SIGTERM, and nothing else.
    assert codes["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [143]}
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # which such a policy needs
    assert "backoffLimit" not in job["spec"]  # it would count the losses of all workers together
    assert job["spec"]["backoffLimitPerIndex"] >= 1


def test_the_image_of_the_job_passes_the_linter_and_has_what_the_job_names():
    dockerfile = DEPLOY / "Dockerfile.train"
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    _, _, container = job_parts()
    text = dockerfile.read_text()
    assert f"-t {container['image']} ." in text
    copied = copied_files(text)
    assert all((REPOSITORY / name).exists() for name in copied)
    (config,) = re.findall(r"configs/[\w.]+", container["args"][0])
    assert (REPOSITORY / config).is_file()
    assert "configs" in copied


def copied_files(dockerfile):
    """What the instructions of a Dockerfile take from the repository."""
    return [word for line in re.findall("^COPY (.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]]


def test_what_the_image_copies_before_it_installs_is_all_that_setup_needs(tmp_path):
    for name in copied_files((DEPLOY / "Dockerfile.train").read_text().split("RUN")[0]):
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    command = [sys.executable, "setup.py", "-q", "egg_info"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "configs/shapes_tiny.yaml" in (tmp_path / "dh_keras.egg-info" / "SOURCES.txt").read_text()
