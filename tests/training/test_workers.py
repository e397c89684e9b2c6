"""Workers that meet, agree, collect and end together, played by threads of one process."""

import json
import queue
import socket
import threading

import pytest

from dh_keras.errors import TrainingError
from dh_keras.training.workers import rendezvous
from dh_keras.training.workers import workers as workers_module
from dh_keras.training.workers.channel import Channel, ChannelError, Message
from dh_keras.training.workers.cluster import Cluster, read_cluster
from dh_keras.training.workers.rendezvous import meet
from dh_keras.training.workers.workers import Workers


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = tuple(f"127.0.0.1:{server.getsockname()[1]}" for server in sockets)
    for server in sockets:
        server.close()
    return addresses


def connected():
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


def in_threads(*jobs):
    """Run functions side by side; what each returned, or the error it raised."""
    results = [None] * len(jobs)

    def run(index, job):
        try:
            results[index] = job()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return results


def play(count, act, timeout=5.0):
    """Let `count` workers meet and act; their results and the lines with which they lost others."""
    addresses, lines = free_addresses(count), queue.SimpleQueue()

    def job(index):
        def run():
            met = meet(Cluster(addresses, index), timeout=timeout)
            met._on_loss = lambda line: lines.put((index, line))
            with met:
                return act(met)

        return run

    results = in_threads(*(job(index) for index in range(count)))
    lost = {}
    while not lines.empty():
        index, line = lines.get()
        assert index not in lost, "the loss was reported twice"
        lost[index] = line
    return results, lost, addresses


def tf_config(monkeypatch, value):
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))


GOOD = {"cluster": {"worker": ["a:1", "b.c-d:65535", "[::1]:80"]}, "task": {"type": "worker", "index": 2}}


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
        ({**GOOD, "cluster": {"worker": ["a:1"], "ps": ["b:1"]}}, r'workers only.*got \["ps"\]'),
        ({**GOOD, "cluster": {"worker": ["a"]}}, 'host:port with a port from 1 to 65535, got "a"'),
        ({**GOOD, "cluster": {"worker": ["a:0"]}}, 'got "a:0"'),
        ({**GOOD, "cluster": {"worker": ["a:65536"]}}, 'got "a:65536"'),
        ({**GOOD, "cluster": {"worker": ["http://a:1"]}}, "host:port"),
        ({**GOOD, "cluster": {"worker": [7]}}, "got 7"),
        ({**GOOD, "cluster": {"worker": ["a:1", "a:1"]}}, 'different addresses, got "a:1 twice"'),
        ({**GOOD, "task": {"type": "chief", "index": 0}}, 'task.type: expected "worker", got "chief"'),
        ({**GOOD, "task": {"type": "worker", "index": 3}}, "task.index: expected an integer from 0 to 2, got 3"),
        ({**GOOD, "task": {"type": "worker", "index": "0"}}, 'from 0 to 2, got "0"'),
        ({**GOOD, "task": {"type": "worker", "index": True}}, "got true"),
    ],
)
def test_every_fault_of_tf_config_is_named_in_one_line(monkeypatch, value, expected):
    tf_config(monkeypatch, value)
    with pytest.raises(TrainingError, match=f"^TF_CONFIG: .*{expected}") as error:
        read_cluster()
    assert "\n" not in str(error.value)


def test_workers_meet_collect_and_end_together():
    def act(met):
        met.agree({"data.batch_size": 8, "names": ["a", "b"]})
        gathered = met.gather(bytes([met.index]) * (3 << 20))
        return (
            [len(part) for part in gathered],
            met.exchange(met.index * 10),
            met.broadcast_bytes(b"x" * (met.index + 1)),
        )

    results, lost, _ = play(3, act)
    assert results == [([3 << 20] * 3, [0, 10, 20], b"x"), ([], [0, 10, 20], b"x"), ([], [0, 10, 20], b"x")]
    assert lost == {}


def test_a_process_alone_is_its_own_chief():
    with Workers() as alone:
        alone.agree({"x": 1})
        assert alone.is_chief
        assert alone.gather(b"a") == [b"a"]
        assert alone.exchange(5) == [5]
        assert alone.broadcast_bytes(b"b") == b"b"


def test_what_differs_is_named_with_both_values_on_every_worker():
    def act(met):
        met.agree({"train.lr": 0.1, "data.batch_size": 8 if met.index != 2 else 4, "a": met.index == 2})

    results, lost, addresses = play(3, act)
    expected = f"a: worker 2 ({addresses[2]}) has True, the chief False (and 1 more: data.batch_size); start every"
    assert str(results[0]).startswith(expected)
    assert lost.keys() == {1, 2}
    assert all(expected in line for line in lost.values())


@pytest.mark.parametrize("dying", [0, 1, 2])
def test_a_worker_that_vanishes_is_named_on_all_others(dying):
    def act(met):
        met.agree({})
        if met.index == dying:
            for channel in met._channels.values():
                channel.close()  # what the kernel does for a process that is killed
            met._left.set()
            return
        met.broadcast() if not met.is_chief else met.gather(b"")

    results, lost, addresses = play(3, act)
    for index in {0, 1, 2} - {dying}:
        assert lost[index].startswith(f"worker {dying} ({addresses[dying]}) is gone"), lost
        assert "--resume" in lost[index]
        assert isinstance(results[index], TrainingError)


def test_a_worker_that_falls_silent_is_lost(monkeypatch):
    monkeypatch.setattr(workers_module, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(workers_module, "BEAT_SECONDS", 0.2)
    stop = threading.Event()

    def act(met):
        met.agree({})
        if met.index == 1:
            met._left.set()  # ends its heartbeat
            stop.wait(10)
            return "silent"
        try:
            met.gather(b"")
        finally:
            stop.set()

    _, lost, addresses = play(2, act)
    assert lost[0].startswith(f"worker 1 ({addresses[1]}) has not answered for 1 seconds; start all workers again")


def test_an_error_in_one_worker_ends_the_others_with_its_line():
    def act(met):
        met.agree({})
        if met.index == 1:
            raise TrainingError("images/7.jpg: cannot be read")
        met.broadcast() if not met.is_chief else met.gather(b"")

    results, lost, addresses = play(3, act)
    assert str(results[1]) == "images/7.jpg: cannot be read"
    line = f"worker 1 ({addresses[1]}) stopped: images/7.jpg: cannot be read"
    assert lost == {0: line, 2: line}


def test_a_worker_that_never_comes_is_named_on_all_others():
    addresses = free_addresses(3)
    jobs = [lambda index=index: meet(Cluster(addresses, index), timeout=1.0) for index in (0, 2)]
    for error in in_threads(*jobs):
        assert str(error).startswith(
            f"worker 1 ({addresses[1]}) did not call the chief within 1 seconds; is it running"
        )
    (error,) = in_threads(lambda: meet(Cluster(addresses, 1), timeout=0.5))
    assert str(error).startswith(f"worker 0 ({addresses[0]}) did not answer (connection refused) within 0.5 seconds")


def test_two_workers_with_one_index_are_refused(monkeypatch):
    addresses = free_addresses(4)
    monkeypatch.setattr(rendezvous, "_RETRY_SECONDS", 0.05)
    lists = [addresses[:3], addresses[:3], (addresses[0], addresses[3], addresses[2])]
    results = in_threads(*(lambda i=i: meet(Cluster(lists[i], min(i, 1)), timeout=3.0) for i in range(3)))
    assert all("two processes call themselves worker 1" in str(error) for error in results)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TrainingError, match=rf"worker 0 \({address}\) cannot listen on its port"):
            meet(Cluster((address, "127.0.0.1:9"), 0), timeout=1.0)


def test_an_address_of_another_worker_is_named():
    a, b, c = free_addresses(3)
    # Worker 2 lists worker 1's address as its own place in the list of the chief.
    lists = [(a, b, c), (a, b, c), (a, c, b)]
    results = in_threads(*(lambda i=i: meet(Cluster(lists[i], i), timeout=2.0) for i in range(3)))
    assert all(isinstance(error, TrainingError) for error in results)
    assert any("TF_CONFIG" in str(error) for error in results)


def test_another_program_on_the_line_is_not_taken_for_a_worker():
    ours, theirs = connected()
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ChannelError, match="x is another program than dh_keras"):
        Channel(ours, "x").receive(1.0)
    theirs.close()


def test_messages_carry_json_and_bytes():
    ours, theirs = (Channel(end, "peer") for end in connected())
    ours.send(Message("kind", {"a": [1, None]}, b"\x00\xff"))
    assert theirs.receive(1.0) == Message("kind", {"a": [1, None]}, b"\x00\xff")
