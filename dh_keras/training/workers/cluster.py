"""Which processes train together, as TF_CONFIG says it."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from dh_keras.errors import TrainingError

_EXAMPLE = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'


class Cluster(NamedTuple):
    """The processes of one training, in the order in which TensorFlow counts them.

    Args:
        addresses: "host:port" of every worker; the first is the chief, be its task called so or worker 0.
        index: which of them this process is.
        has_chief: whether TF_CONFIG has a task called chief; the workers count from 0 after it.
    """

    addresses: tuple[str, ...]
    index: int
    has_chief: bool = False

    def name(self, index: int) -> str:
        """What messages call a worker: as TF_CONFIG does."""
        task = "chief" if self.has_chief and index == 0 else f"worker {index - self.has_chief}"
        return f"{task} ({self.addresses[index]})"

    def name_of_task(self, kind: str | None, number: str | None) -> str:
        """The name of a task of TensorFlow, which says nothing about the first one."""
        return self.name(int(number or 0) + (self.has_chief and kind == "worker"))

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
    others = sorted(set(cluster) - {"chief", "worker"})
    if others:
        raise _wrong("cluster", "a chief and workers only, which evaluate as well,", others)
    chiefs, followers = _addresses(cluster, "chief"), _addresses(cluster, "worker")
    if len(chiefs) > 1:
        raise _wrong("cluster.chief", "one address", chiefs)
    addresses = chiefs + followers
    if not addresses:
        raise _wrong("cluster.worker", "a list of host:port", cluster.get("worker"))
    twice = [address for address in addresses if addresses.count(address) > 1]
    if twice:
        raise _wrong("cluster.worker", "different addresses", f"{twice[0]} twice")
    places = {"chief": chiefs, "worker": followers}
    kinds = [kind for kind in places if places[kind]]
    kind, index = task.get("type"), task.get("index")
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        index = int(index)  # schedulers fill templates with text, and TensorFlow takes it too
    if kind not in kinds:
        raise _wrong("task.type", " or ".join(map(json.dumps, kinds)), kind)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(places[kind]):
        raise _wrong("task.index", f"an integer from 0 to {len(places[kind]) - 1}", index)
    return Cluster(tuple(addresses), index + (len(chiefs) if kind == "worker" else 0), bool(chiefs))


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


def _addresses(cluster: dict, kind: str) -> list[str]:
    """The checked addresses of a kind of task; none when the cluster has none of it."""
    addresses = cluster.get(kind, [])
    if not isinstance(addresses, list) or (kind in cluster and not addresses):
        raise _wrong(f"cluster.{kind}", "a list of host:port", addresses)
    for address in addresses:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
            raise _wrong(f"cluster.{kind}", "host:port with a port from 1 to 65535", address)
    return addresses


def _wrong(key: str, expected: str, got: Any) -> TrainingError:
    return TrainingError(f"TF_CONFIG: {key}: expected {expected}, got {json.dumps(got)}; it looks like {_EXAMPLE}")
