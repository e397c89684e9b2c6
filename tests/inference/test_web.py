"""Photographs from a server on this machine: whole, or one line."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from inference.color_detector import ColorDetector, scene, write_scene

from dh_keras.commands import predict
from dh_keras.errors import DataError
from dh_keras.inference import web
from dh_keras.inference.detector import Detector
from dh_keras.inference.web import fetch

OBJECT = (0, 10, 20, 30, 50)


class Handler(BaseHTTPRequestHandler):
    """Answers by the name of what is asked for."""

    def do_GET(self):
        data, length, name = self.server.photograph, None, self.path.partition("?")[0]
        if name == "/gone.png":
            return self.send_error(404)
        if name == "/silent.png":
            return time.sleep(2)
        self.send_response(302 if name.startswith("/moved") else 200)
        if name.startswith("/moved"):
            self.send_header("Location", {"/moved.png": "/photo.png", "/moved_away.png": "file:///etc/hosts"}[name])
        if name == "/page.png":
            data = b"<!DOCTYPE html><html>log in</html>"
        if name == "/empty.png":
            data = b""
        length = len(data) + (100 if name == "/cut.png" else 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.server.agents.append(self.headers["User-Agent"])
        if name == "/slow.png":
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
        else:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    write_scene(tmp_path / "photo.png", 70, 130, OBJECT)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.photograph, server.agents = (tmp_path / "photo.png").read_bytes(), []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def site(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_a_photograph_of_the_web_is_fetched_once(server, site):
    detector, address = ColorDetector(), f"{site}/a photo.png?size=1&x=%20"
    result = detector(address)
    assert result.boxes.tolist() == [[10, 20, 30, 50]]
    assert str(result.path) == address
    np.testing.assert_array_equal(result.image, scene(70, 130, OBJECT))
    assert len(server.agents) == 1
    assert server.agents[0].startswith("dh_keras/")
    assert [one.boxes.tolist() for one in detector.predict([f"{site}/photo.png", f"{site}/moved.png"])] == [
        *([[10, 20, 30, 50]], [[10, 20, 30, 50]])
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone.png", "cannot be fetched: HTTP 404 Not Found"),
        ("page.png", "not a readable JPEG or PNG image, nor WebP"),
        ("empty.png", "the file is empty"),
        ("cut.png", r"cannot be fetched: the connection ended after \d+ bytes, 100 are missing"),
        ("silent.png", "cannot be fetched: .*timed out"),
        ("slow.png", "cannot be fetched: it did not arrive within 1 seconds"),
        ("large.png", "cannot be fetched: it has more than 0.0001 MB"),
        ("moved_away.png", "cannot be fetched: HTTP 302 .*not allowed"),
    ],
)
def test_what_does_not_come_is_one_line_and_the_others_do(site, monkeypatch, name, expected):
    monkeypatch.setattr(web, "SILENCE", 0.3)
    if name == "slow.png":
        monkeypatch.setattr(web, "LIMIT_SECONDS", 1)
    if name == "large.png":
        monkeypatch.setattr(web, "LIMIT_MB", 0.0001)
    start = time.monotonic()
    with pytest.raises(DataError, match=f"^{site}/{name}: {expected}") as error:
        ColorDetector()(f"{site}/{name}")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10
    monkeypatch.undo()
    errors = []
    if name not in ("silent.png", "slow.png", "large.png"):
        found = list(ColorDetector().predict([f"{site}/{name}", f"{site}/photo.png"], on_error=errors.append))
        assert [str(result.path) for result in found] == [f"{site}/photo.png"]
        assert len(errors) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x.png", "http://", "http://[::1/x.png", "https://no host/x"])
def test_an_address_where_nothing_is_is_one_line(address):
    with pytest.raises(DataError, match=r"^http.*: cannot be fetched: [^\n]+$"):
        fetch(address)


def test_the_command_takes_addresses(site, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Detector, "load", lambda path, overrides: ColorDetector())
    (tmp_path / "list.txt").write_text(f"{site}/photo.png?2\n")
    words = [str(tmp_path), f"{site}/photo.png", f"{site}/gone.png", f"{site}/film.mp4"]
    with pytest.raises(SystemExit):
        predict.main([*words, "--list", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert f"error: {site}/gone.png: cannot be fetched: HTTP 404 Not Found" in shown.err
    assert "found: 3 red cell in 3 image(s)" in shown.out  # what is called a film is a photograph
    assert sorted(one.name for one in (tmp_path / "out").glob("*.jpg")) == ["film.jpg", "photo-2.jpg", "photo.jpg"]
