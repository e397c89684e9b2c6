"""Who else may be on the port while the workers meet."""

import socket
import struct
import threading
import time

import pytest
from test_workers import free_addresses, in_threads, play

from dh_keras.training.workers import rendezvous
from dh_keras.training.workers.cluster import Cluster
from dh_keras.training.workers.rendezvous import meet


def test_workers_meet_at_ipv6_addresses():
    try:
        addresses = free_addresses(2, "[::1]", socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    results, lost, _ = play(2, lambda met: met.exchange(met.index), addresses=addresses)
    assert results == [[0, 1], [0, 1]]
    assert lost == {}


def framed(text, payload_length=0):
    return struct.pack(">4sIQ", b"DHK2", len(text), payload_length) + text


STRANGERS = {
    "silence": b"",
    "another program": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "an enormous text": struct.pack(">4sIQ", b"DHK2", 2**32 - 1, 0),
    "an enormous payload": framed(b'["stay", [1, ""]]', 2**63),
    "no JSON": framed(b"{{"),
    "no text": framed(b"\xff\xfe\xfd"),
    "deep JSON": framed(b"[" * 60_000),
    "a number of many digits": framed(b"9" * 60_000),
    "another shape": framed(b'{"stay": 1}'),
    "no index": framed(b'["stay", null]'),
    "an index out of range": framed(b'["stay", [3, "0"]]'),
    "an index below 0": framed(b'["stay", [-1, "0"]]'),
    "the index of the chief": framed(b'["stay", [0, "0"]]'),
    "an index that is true": framed(b'["stay", [true, "0"]]'),
    "no token": framed(b'["stay", [1, ""]]'),
    "a token that is no text": framed(b'["stay", [1, {"a": "\\ud800\u00e9"}]]'),
}


def call(address, data):
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(data)
    return connection


def is_hung_up(connection):
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("token", ["", "s\u00e9same"])
@pytest.mark.parametrize("data", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_on_the_port_stops_no_meeting(monkeypatch, capfd, data, token):
    monkeypatch.setenv(rendezvous.TOKEN, token)
    addresses, callers = free_addresses(3), []

    def worker(index):
        with meet(Cluster(addresses, index), timeout=20.0) as met:
            return met.exchange(index)

    def last_worker():
        for address in addresses[:2]:  # the chief and a worker, who wait for this one
            callers.extend(call_when_up(address, data) for _ in range(3))
        if data:
            assert all(map(is_hung_up, callers))
        return worker(2)

    assert in_threads(lambda: worker(0), lambda: worker(1), last_worker) == [[0, 1, 2]] * 3
    assert all(map(is_hung_up, callers))
    assert capfd.readouterr().err == ""  # no thread has died of it


def call_when_up(address, data):
    for _ in range(100):
        try:
            return call(address, data)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError(address)


def test_more_silent_strangers_than_there_is_room_for_make_room_for_a_worker():
    addresses, callers = free_addresses(2), []

    def last_worker():
        callers.extend(call_when_up(addresses[0], b"") for _ in range(200))
        assert all(map(is_hung_up, callers[:100]))
        return len(meet(Cluster(addresses, 1), timeout=20.0)._channels)

    def chief():
        return len(meet(Cluster(addresses, 0), timeout=20.0)._channels)

    assert in_threads(chief, last_worker) == [1, 1]
    assert all(map(is_hung_up, callers))


def test_nobody_listens_once_all_have_met():
    def act(met):
        met.exchange(None)
        for address in met.cluster.addresses:
            with pytest.raises(ConnectionRefusedError):
                call(address, b"")
        met.exchange(None)

    assert play(2, act)[:2] == ([None, None], {})


def test_a_worker_with_another_token_is_told_and_named(monkeypatch):
    addresses, mine = free_addresses(2), threading.local()
    monkeypatch.setattr(
        rendezvous, "_proof", lambda challenge, index: getattr(mine, "token", "of the chief") + challenge
    )

    def worker():
        mine.token = "of another training"
        meet(Cluster(addresses, 1), timeout=2.0)

    chief, refused = in_threads(lambda: meet(Cluster(addresses, 0), timeout=2.0), worker)
    assert "within 2 seconds (a caller from 127.0.0.1 had another DH_KERAS_CLUSTER_TOKEN); is it" in str(chief)
    assert str(refused) == f"DH_KERAS_CLUSTER_TOKEN: worker 1 ({addresses[1]}) has another one than the chief"


def test_a_proof_depends_on_the_token_the_challenge_and_the_index(monkeypatch):
    proofs = []
    for token, challenge, index in (("", "a", 1), ("x", "a", 1), ("x", "b", 1), ("x", "a", 2)):
        monkeypatch.setenv(rendezvous.TOKEN, token)
        proofs.append(rendezvous._proof(challenge, index))
    assert len(set(proofs)) == 4
