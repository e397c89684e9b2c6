"""What TF_CONFIG may say, and what is wrong with it."""

import json

import pytest
import tensorflow as tf
from tensorflow.python.distribute import multi_worker_util

from dh_keras.errors import TrainingError
from dh_keras.training.workers.cluster import read_cluster


def tf_config(monkeypatch, value):
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))


GOOD = {"cluster": {"worker": ["a:1", "b.c-d:65535", "[::1]:80"]}, "task": {"type": "worker", "index": 2}}
# As Vertex AI and Kubeflow write it.
CHIEF = {
    "cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]},
    "task": {"type": "worker", "index": 1},
    "environment": "cloud",
}
CHIEF_ALONE = {"cluster": {"chief": ["localhost:21345"]}, "task": {"type": "chief", "index": 0}}


def test_tf_config_gives_the_addresses_and_the_place(monkeypatch):
    tf_config(monkeypatch, GOOD)
    cluster = read_cluster()
    assert cluster.index == 2
    assert cluster.name(1) == "worker 1 (b.c-d:65535)"
    assert cluster.host_and_port(2) == ("::1", 80)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "needs this environment variable"),
        ("{", "expected JSON"),
        ("[]", "cluster: expected an object, got null"),
        ({"cluster": {"worker": ["a:1"]}}, "task: expected an object"),
        ({**GOOD, "cluster": {}}, "cluster.worker: expected a list of host:port, got null"),
        ({**GOOD, "cluster": {"worker": []}}, "cluster.worker: expected a list"),
        ({**GOOD, "cluster": {"worker": "a:1"}}, "cluster.worker: expected a list"),
        (
            {**GOOD, "cluster": {"worker": ["a:1"], "ps": ["b:1"], "evaluator": ["c:1"]}},
            r'a chief and workers only.*got \["evaluator", "ps"\]',
        ),
        ({**CHIEF, "task": {"type": "evaluator", "index": 0}}, 'expected "chief" or "worker", got "evaluator"'),
        ({**CHIEF, "task": {"type": "ps", "index": 0}}, 'task.type: expected "chief" or "worker", got "ps"'),
        ({**CHIEF, "task": {"type": "chief", "index": 1}}, "task.index: expected an integer from 0 to 0, got 1"),
        ({**CHIEF, "task": {"type": "worker", "index": 2}}, "task.index: expected an integer from 0 to 1, got 2"),
        ({**CHIEF, "cluster": {"chief": ["a:1", "b:1"]}}, r'cluster.chief: expected one address, got \["a:1", "b:1"\]'),
        ({**CHIEF, "cluster": {"chief": ["a:1"], "worker": ["a:1"]}}, 'different addresses, got "a:1 twice"'),
        ({**CHIEF, "cluster": {"chief": "a:1"}}, 'cluster.chief: expected a list of host:port, got "a:1"'),
        ({**GOOD, "cluster": {"worker": ["a"]}}, 'host:port with a port from 1 to 65535, got "a"'),
        ({**GOOD, "cluster": {"worker": ["a:0"]}}, 'got "a:0"'),
        ({**GOOD, "cluster": {"worker": ["a:65536"]}}, 'got "a:65536"'),
        ({**GOOD, "cluster": {"worker": ["http://a:1"]}}, "host:port"),
        ({**GOOD, "cluster": {"worker": [7]}}, "got 7"),
        ({**GOOD, "cluster": {"worker": ["a:1", "a:1"]}}, 'different addresses, got "a:1 twice"'),
        ({**GOOD, "task": {"type": "chief", "index": 0}}, 'task.type: expected "worker", got "chief"'),
        ({**GOOD, "task": {"type": "worker", "index": 3}}, "task.index: expected an integer from 0 to 2, got 3"),
        ({**GOOD, "task": {"type": "worker", "index": "3"}}, "from 0 to 2, got 3"),
        ({**GOOD, "task": {"type": "worker", "index": "-1"}}, 'from 0 to 2, got "-1"'),
        ({**GOOD, "task": {"type": "worker", "index": "1.0"}}, 'from 0 to 2, got "1.0"'),
        ({**GOOD, "task": {"type": "worker", "index": ""}}, 'from 0 to 2, got ""'),
        ({**GOOD, "task": {"type": "worker", "index": True}}, "got true"),
    ],
)
def test_every_fault_of_tf_config_is_named_in_one_line(monkeypatch, value, expected):
    tf_config(monkeypatch, value)
    with pytest.raises(TrainingError, match=f"^TF_CONFIG: .*{expected}") as error:
        read_cluster()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "index", "names"),
    [
        ({**CHIEF, "task": {"type": "chief", "index": 0}}, 0, ["chief (a:1)", "worker 0 (b:1)", "worker 1 (c:1)"]),
        ({**CHIEF, "task": {"type": "worker", "index": 0}}, 1, ["chief (a:1)", "worker 0 (b:1)", "worker 1 (c:1)"]),
        (CHIEF, 2, ["chief (a:1)", "worker 0 (b:1)", "worker 1 (c:1)"]),
        (CHIEF_ALONE, 0, ["chief (localhost:21345)"]),
        (GOOD, 2, ["worker 0 (a:1)", "worker 1 (b.c-d:65535)", "worker 2 ([::1]:80)"]),
        ({**CHIEF, "task": {"type": "worker", "index": "1"}}, 2, ["chief (a:1)", "worker 0 (b:1)", "worker 1 (c:1)"]),
        ({**CHIEF, "task": {"type": "chief", "index": "0"}}, 0, ["chief (a:1)", "worker 0 (b:1)", "worker 1 (c:1)"]),
    ],
)
def test_the_chief_comes_first_and_tensorflow_counts_the_tasks_alike(monkeypatch, value, index, names):
    tf_config(monkeypatch, value)
    cluster = read_cluster()
    assert cluster.index == index
    assert [cluster.name(i) for i in range(len(cluster.addresses))] == names
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    place = resolver.cluster_spec(), resolver.task_type, resolver.task_id
    assert multi_worker_util.id_in_cluster(*place) == index
    assert multi_worker_util.is_chief(*place) is (index == 0)
    assert multi_worker_util.worker_count(resolver.cluster_spec(), resolver.task_type) == len(cluster.addresses)
    assert cluster.name_of_task(resolver.task_type, str(resolver.task_id)) == names[index]
