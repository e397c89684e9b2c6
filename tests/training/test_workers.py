"""Workers that meet, agree, collect and end together, played by threads of one process."""

import errno
import os
import queue
import socket
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf

from dh_keras.errors import TrainingError
from dh_keras.training.workers import rendezvous
from dh_keras.training.workers import workers as workers_module
from dh_keras.training.workers.channel import Channel, ChannelError, Message
from dh_keras.training.workers.cluster import Cluster
from dh_keras.training.workers.rendezvous import meet
from dh_keras.training.workers.workers import Workers


def free_addresses(count, host="127.0.0.1", family=socket.AF_INET):
    sockets = [socket.create_server((host.strip("[]"), 0), family=family) for _ in range(count)]
    addresses = tuple(f"{host}:{server.getsockname()[1]}" for server in sockets)
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


def play(count, act, timeout=5.0, addresses=None):
    """Let `count` workers meet and act; their results and the lines with which they lost others."""
    addresses, lines = addresses or free_addresses(count), queue.SimpleQueue()

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
            met._left.set()
            for channel in met._channels.values():
                channel.close()  # what the kernel does for a process that is killed
            return
        met.broadcast() if not met.is_chief else met.gather(b"")

    results, lost, addresses = play(3, act)
    for index in {0, 1, 2} - {dying}:
        assert lost[index].startswith(f"worker {dying} ({addresses[dying]}) is gone"), lost
        assert "--resume" in lost[index]
        assert isinstance(results[index], TrainingError)


def test_the_worker_that_is_gone_is_named_also_where_another_that_left_for_it_is_missed_first(monkeypatch):
    tell = Workers._tell_and_leave

    def tell_slowly(met, line):
        told = tell(met, line)
        if told and met.is_chief:
            time.sleep(0.5)  # time for worker 1 to leave, and for the chief to miss it
        return told

    monkeypatch.setattr(Workers, "_tell_and_leave", tell_slowly)

    def act(met):
        met.agree({})
        if met.index == 2:
            met._left.set()
            met._channels[0].close()
            return
        met.broadcast() if not met.is_chief else met.gather(b"")

    _, lost, addresses = play(3, act)
    assert lost[0].startswith(f"worker 2 ({addresses[2]}) is gone")


def test_a_worker_that_falls_silent_is_lost(monkeypatch):
    monkeypatch.setattr(workers_module, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(workers_module, "BEAT_SECONDS", 0.2)
    stop = threading.Event()

    def act(met):
        met.agree({})
        met.expect_beats()
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


# ctypes.PyDLL calls C without letting go of the interpreter, as json.loads does for a large file.
BUSY_WORKER = """
import ctypes, sys
from dh_keras.training.workers import workers
from dh_keras.training.workers.cluster import Cluster
from dh_keras.training.workers.rendezvous import meet

workers.BEAT_SECONDS = 0.2
with meet(Cluster(tuple(sys.argv[1:3]), 1), timeout=30) as met:
    for _ in range(2):
        ctypes.PyDLL(None).sleep(3)
        met.agree({})
"""


def test_a_worker_that_reads_a_large_file_is_not_lost_but_one_that_hangs_in_training_is(monkeypatch):
    monkeypatch.setattr(workers_module, "SILENCE_SECONDS", 1.0)
    lines, addresses = queue.SimpleQueue(), free_addresses(2)
    worker = subprocess.Popen([sys.executable, "-c", BUSY_WORKER, *addresses])
    met = meet(Cluster(addresses, 0), timeout=30)
    met._on_loss = lines.put

    def act():
        with met:
            met.agree({})
            assert lines.empty()
            met.expect_beats()
            met.agree({})

    (error,) = in_threads(act)
    assert str(error) == f"worker 1 ({addresses[1]}) is gone"
    assert lines.get().startswith(f"worker 1 ({addresses[1]}) has not answered for 1 seconds")
    worker.kill()
    worker.wait()


def test_what_tensorflow_misses_is_named_as_tf_config_names_it(monkeypatch):
    monkeypatch.setattr(workers_module, "_REASON_SECONDS", 0.1)
    aborted = "Graph execution error:\n\nCollective ops is aborted by: "
    silent = "Error reported from /job:worker/task:1: The following tasks are unhealthy (stopped sending heartbeats):\n"
    gone = "Socket closed\nAdditional GRPC error information from remote target /job:worker/replica:0/task:1 while"
    for reason, chief, expected in (
        (silent, False, "worker 1 (b:1)"),
        (gone, True, "worker 1 (c:1)"),
        ("Deadline Exceeded\n\nRPC: /tensorflow.CoordinationService/Heartbeat", True, "chief (a:1)"),
    ):
        (ours, theirs), lines = connected(), queue.SimpleQueue()
        met = Workers(Cluster(("a:1", "b:1", "c:1"), 2, chief), {0: Channel(ours, "x", silence=1.0)}, lines.put)
        with pytest.raises(tf.errors.UnavailableError), met:
            raise tf.errors.UnavailableError(None, None, aborted + reason)
        line = f"{expected} does not answer TensorFlow; start all workers again, with --resume if there is a checkpoint"
        assert lines.get(timeout=1) == line
        theirs.close()


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
        Channel(ours, "x", silence=1.0).receive()
    theirs.close()


def test_messages_carry_json_and_bytes():
    ours, theirs = (Channel(end, "peer", silence=1.0) for end in connected())
    ours.send(Message("kind", {"a": [1, None]}, b"\x00\xff"))
    assert theirs.receive() == Message("kind", {"a": [1, None]}, b"\x00\xff")


def test_a_connection_that_the_kernel_gives_up_is_gone_however_much_silence_is_allowed(monkeypatch):
    ours, theirs = connected()
    theirs.sendall(b"x")  # something to read

    def give_up(self, length):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(Channel, "_read", give_up)
    with pytest.raises(ChannelError, match=r"^x is gone \(connection timed out\)$"):
        Channel(ours, "x", silence=600.0).receive()
    theirs.close()
