"""Start scripts/train.py in several processes of this machine, as several machines would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# TensorFlow's graph optimisation takes half of the start-up of a tiny model and speeds up nothing here.
LAUNCHER = """
import runpy, sys, tensorflow as tf
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def free_addresses(count):
    """Addresses of this machine at which nobody listens just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    return addresses


def start_workers(count, arguments, logs):
    """Processes of one training; what worker i prints goes to logs/i.txt."""
    addresses = free_addresses(count)
    command = [sys.executable, "-c", LAUNCHER, str(REPOSITORY / "scripts" / "train.py"), *map(str, arguments)]
    processes = []
    logs.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["TF_ENABLE_ONEDNN_OPTS"] = "0"  # as train.py sets it, before the launcher imports TensorFlow
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment |= {"TF_CONFIG": json.dumps(task)} if count > 1 else {}
        with open(logs / f"{index}.txt", "w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return processes
