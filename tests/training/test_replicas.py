"""The same global batches through one device and through two replicas; see replica_table.py for longer runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def compare_with_one_device(option):
    """How far two devices are from one after three steps, by replica_table.py."""
    script = Path(__file__).with_name("replica_table.py")
    command = [sys.executable, str(script), "--steps", "3", "--all-anchors", "--devices", "2", option, "--json"]
    run = subprocess.run([*command, "--fast-tracing"], capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])["2 devices"]


def test_two_replicas_with_sync_batch_norm_and_recomputed_heads_take_the_steps_of_one_device():
    found = compare_with_one_device("--recompute")
    assert found["loss"] < 2e-5
    assert found["weight"] < 1e-5
    assert found["momentum"] < 1e-4
    # Running statistics take part, and nothing of the frozen stage moves.
    assert found["statistic"] < 1e-4
    assert found["frozen"]
    assert found["moved"]["weight"] > 1e-2
    assert found["moved"]["statistic"] > 1e-1


@pytest.mark.slow
def test_two_replicas_take_the_steps_of_adamw_that_one_device_takes():
    found = compare_with_one_device("--adamw")
    assert found["loss"] < 2e-5
    assert max(found["weight"], found["momentum"]) < 1e-5
    assert found["frozen"]
    assert found["moved"]["weight"] > 1e-2
