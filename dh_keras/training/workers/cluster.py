"""Which processes train together, as TF_CONFIG says it."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from dh_keras.errors import TrainingError

_EXAMPLE = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'


class Cluster(NamedTuple):
    """The processes of one training.

    Args:
        addresses: "host:port" of every worker; the first is the chief.
        index: which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    def name(self, index: int) -> str:
        """What messages call a worker."""
        return f"worker {index} ({self.addresses[index]})"

    def host_and_port(self, index: int) -> tuple[str, int]:
        """Where a worker is."""
        host, port = self.addresses[index].rsplit(":", 1)
        return host.strip("[]"), int(port)


ALONE = Cluster(("localhost:0",), 0)


def read_cluster() -> Cluster:
    """Read the environment variable TF_CONFIG.

    Raises:
        TrainingError: one line that says what is wrong with it.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise TrainingError(f"TF_CONFIG: --strategy multi_worker needs this environment variable, such as {_EXAMPLE}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise TrainingError(f"TF_CONFIG: expected JSON such as {_EXAMPLE}, got {text!r}: {error}") from error
    cluster, task = (_part(config, name) for name in ("cluster", "task"))
    addresses = cluster.get("worker")
    if not isinstance(addresses, list) or not addresses:
        raise _wrong("cluster.worker", "a list of host:port", addresses)
    others = sorted(set(cluster) - {"worker"})
    if others:
        raise _wrong("cluster", "workers only, of which the first is the chief,", others)
    for address in addresses:
        _check_address(address)
    twice = [address for address in addresses if addresses.count(address) > 1]
    if twice:
        raise _wrong("cluster.worker", "different addresses", f"{twice[0]} twice")
    if task.get("type") != "worker":
        raise _wrong("task.type", '"worker"', task.get("type"))
    index = task.get("index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(addresses):
        raise _wrong("task.index", f"an integer from 0 to {len(addresses) - 1}", index)
    return Cluster(tuple(addresses), index)


def prepare_environment() -> None:
    """What TensorFlow must find in the environment when it is imported, for a process that is one of several.

    oneDNN's gradients of convolutions crash ("double free or corruption") beside collective operations on a CPU.
    """
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def _part(config: Any, name: str) -> dict:
    part = config.get(name) if isinstance(config, dict) else None
    if not isinstance(part, dict):
        raise _wrong(name, "an object", part)
    return part


def _check_address(address: Any) -> None:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise _wrong("cluster.worker", "host:port with a port from 1 to 65535", address)


def _wrong(key: str, expected: str, got: Any) -> TrainingError:
    return TrainingError(f"TF_CONFIG: {key}: expected {expected}, got {json.dumps(got)}; it looks like {_EXAMPLE}")
