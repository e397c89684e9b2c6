"""Published weights are downloaded once and checked; whatever goes wrong on the way leaves nothing that counts."""

import collections
import hashlib
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import published
import pytest

from dh_keras.commands.fetch import main
from dh_keras.errors import DataError
from dh_keras.inference.detector import Detector
from dh_keras.pretrained import download as download_module
from dh_keras.pretrained import fetch as fetch_module
from dh_keras.pretrained.download import download
from dh_keras.pretrained.fetch import fetch
from dh_keras.pretrained.published import PUBLISHED
from dh_keras.run.run_folder import open_run

DATA = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server:
    """Serves one file on loopback.

    Args:
        data: the file.
        cut: bytes after which each of the first connections ends.
        ranges: whether it can begin in the middle.
        status: of every answer, if it is an error.
        stalls: how many of the first connections end only when `go_on` is set.
    """

    def __init__(self, data, *, cut=(), ranges=True, status=None, stalls=0):
        self.stalls, self.stalled, self.go_on = stalls, threading.Event(), threading.Event()
        self.data, self.cut, self.ranges, self.status, self.asked, self.address = data, cut, ranges, status, [], ""

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        if self.status:
            handler.send_error(self.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(self.data) - start))
        handler.end_headers()
        number = len(self.asked) - 1
        handler.wfile.write(self.data[start:][: self.cut[number] if number < len(self.cut) else None])
        if number < self.stalls:
            handler.wfile.flush()
            self.stalled.set()
            self.go_on.wait(30)


@contextmanager
def serving(data, **options):
    """Start a `Server`."""
    server = Server(data, **options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.address = f"http://127.0.0.1:{listener.server_port}/weights.pth"
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch, tmp_path):
    monkeypatch.setattr(download_module, "WAIT", 0)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_kill_leaves_no_file_and_what_it_leaves_is_removed(tmp_path):
    path = tmp_path / "cache" / "weights.pth"
    call = "import sys; from pathlib import Path; from dh_keras.pretrained.download import download; "
    call += "download(sys.argv[1], Path(sys.argv[2]), sha256='')"
    with serving(DATA, cut=(2_000_000,), stalls=1) as server:
        process = subprocess.Popen([sys.executable, "-c", call, server.address, str(path)], stderr=subprocess.DEVNULL)
        assert server.stalled.wait(30)
        while not (left := files_in(tmp_path)):
            time.sleep(0.01)
        process.kill()
        process.wait()
        server.go_on.set()
        assert len(left) == 1
        assert left[0].startswith(".partial-cache-")
        assert not path.parent.exists()
        download(server.address, path, sha256=DIGEST)
    assert files_in(tmp_path) == ["cache/weights.pth"]
    assert server.asked == [None, None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_is_interrupted_goes_on_or_begins_again(tmp_path, ranges):
    path = tmp_path / "cache" / "weights.pth"
    with serving(DATA, cut=(1_500_000, 1_200_000), ranges=ranges) as server:
        download(server.address, path, sha256=DIGEST[:8])
    assert path.read_bytes() == DATA
    assert server.asked == [None, "bytes=1500000-", "bytes=2700000-" if ranges else "bytes=1200000-"]
    assert files_in(tmp_path) == ["cache/weights.pth"]


def test_a_connection_that_always_breaks_leaves_nothing(tmp_path):
    path = tmp_path / "cache" / "weights.pth"
    expected = (
        rf"weights\.pth: could not be downloaded .the connection ended after 500 of 3,000,000 bytes.*put it at {path}"
    )
    with serving(DATA, cut=(100,) * 9) as server, pytest.raises(DataError, match=expected):
        download(server.address, path, sha256=DIGEST)
    assert len(server.asked) == download_module.ATTEMPTS
    assert files_in(tmp_path) == []


def test_a_file_of_another_hash_is_not_kept(tmp_path):
    expected = (
        rf"weights\.pth: is not the published file: its SHA-256 is {DIGEST}, expected 00000000\.\.\.; nothing of it"
    )
    with serving(DATA) as server, pytest.raises(DataError, match=expected):
        download(server.address, tmp_path / "cache" / "weights.pth", sha256="00000000")
    assert files_in(tmp_path) == []


def test_no_network_and_no_such_file_are_one_line_at_once(tmp_path):
    with serving(DATA, status=404) as server:
        with pytest.raises(DataError, match=r"could not be downloaded \(Not Found\); try again, or fetch it"):
            download(server.address, tmp_path / "cache" / "weights.pth", sha256=DIGEST)
        assert len(server.asked) == 1
    with pytest.raises(DataError, match=r"weights\.pth: could not be downloaded \(.*refused"):
        download(server.address, tmp_path / "cache" / "weights.pth", sha256=DIGEST)
    assert files_in(tmp_path) == []


def test_a_full_disk_is_not_taken_for_a_broken_connection(tmp_path, small_files):
    small_files(1_000_000)
    with serving(DATA) as server, pytest.raises(ValueError, match="cannot be written: File too large"):
        download(server.address, tmp_path / "cache" / "weights.pth", sha256=DIGEST)
    assert len(server.asked) == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of a small model in MMDetection's format."""
    torch = pytest.importorskip("torch", reason="torch is needed to write a checkpoint")
    tensors = published.make_tensors(published.mmdetection_shapes(**published.NARROW))
    network = collections.OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in tensors.items())
    path = tmp_path_factory.mktemp("files") / "checkpoint.pth"
    torch.save({"state_dict": network, "meta": {"CLASSES": ("cat", "dog", "cow")}}, path)
    return path.read_bytes()


def publish(monkeypatch, server, data, **changes):
    """Let mmdetection_r50 be a file of the server."""
    entry = replace(PUBLISHED["mmdetection_r50"], address=server.address, sha256=hashlib.sha256(data).hexdigest()[:8])
    monkeypatch.setitem(PUBLISHED, "mmdetection_r50", replace(entry, **changes))


def test_weights_are_asked_for_once_and_become_a_run_and_a_detector(checkpoint, monkeypatch, tmp_path, capsys):
    with serving(checkpoint) as server:
        publish(monkeypatch, server, checkpoint)
        main(["mmdetection_r50"])
        home = tmp_path / "keras" / "dh_keras"
        assert f"run folder: {home}/mmdetection_r50\n" in capsys.readouterr().out
        main(["mmdetection_r50", "--output", str(tmp_path / "own")])
        with pytest.raises(DataError, match="own: exists already and is not overwritten"):
            fetch("mmdetection_r50", tmp_path / "own")
        detector = Detector.load("mmdetection_r50")
        assert server.asked == [None]
    assert [category.name for category in detector.categories] == ["cat", "dog", "cow"]
    for run in (home / "mmdetection_r50", tmp_path / "own"):
        origin = json.loads((open_run(run).path / "origin.json").read_text())
        assert origin["sha256"] == hashlib.sha256(checkpoint).hexdigest()


def test_a_cached_file_that_was_changed_is_named(checkpoint, monkeypatch, tmp_path):
    with serving(checkpoint) as server:
        publish(monkeypatch, server, checkpoint)
        name = PUBLISHED["mmdetection_r50"].file
        file = tmp_path / "keras" / "dh_keras" / "downloads" / "mmdetection_r50" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(checkpoint[:-1])
        with pytest.raises(DataError, match=rf"{name}: is not the published file: .*; remove it, and it is downloaded"):
            fetch("mmdetection_r50")
        assert server.asked == []


def test_what_has_no_direct_link_says_what_to_download_and_where_to_put_it(checkpoint, tmp_path):
    place = tmp_path / "keras" / "dh_keras" / "downloads" / "authors_r50" / "authors_r50.pth"
    expected = rf"no direct link; download it from https://github.com/wuyuebupt/.* ResNet-50-FPN, and put it at {place}"
    with pytest.raises(DataError, match=expected):
        fetch("authors_r50")
    place.parent.mkdir(parents=True)
    place.write_bytes(checkpoint)
    assert open_run(fetch("authors_r50")).path == tmp_path / "keras" / "dh_keras" / "authors_r50"


def test_a_process_that_was_slower_takes_the_run_of_the_faster(checkpoint, monkeypatch, tmp_path):
    def slower(file, output):
        fetch_module.import_checkpoint = original
        fetch("authors_r50")
        return original(file, output)

    original = fetch_module.import_checkpoint
    place = tmp_path / "keras" / "dh_keras" / "downloads" / "authors_r50" / "authors_r50.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(checkpoint)
    monkeypatch.setattr(fetch_module, "import_checkpoint", slower)
    assert open_run(fetch("authors_r50")).path.name == "authors_r50"


def test_a_folder_goes_before_a_name_and_a_wrong_name_is_corrected(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "authors_r50").mkdir()
    with pytest.raises(DataError, match="authors_r50: neither a run folder"):
        Detector.load("authors_r50")
    with pytest.raises(SystemExit):
        main(["mmdetection_r5"])
    assert "there are no published weights 'mmdetection_r5'; did you mean mmdetection_r50?" in capsys.readouterr().err


def test_the_list_names_family_measure_and_licence_of_each(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(PUBLISHED)
    assert lines[0].startswith("mmdetection_r50: MMDetection, plain Double-Head, ResNet-50; AP 40.0 on COCO val2017")
    assert "licence: Apache-2.0" in lines[0]
