"""The demo page: what it shows, what it refuses, and that a real browser asks nobody but this machine."""

import contextlib
import importlib.util
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from dh_keras.config.load import load_config
from dh_keras.errors import DataError, UserError
from dh_keras.inference.detector import Detector, ModelDetector
from dh_keras.inference.drawing import draw_detections
from dh_keras.modeling.builder import assemble_detector
from dh_keras.run.classes import Category
from dh_keras.serving.demo import build_page, find_objects, head_names, run_demo, serve_page, show_detections

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OWN = "score: both heads, box: conv-head (the model's own)"


@pytest.fixture(scope="module")
def photograph(tiny_shapes):
    return sorted(Path(tiny_shapes.val_images).iterdir())[0]


@pytest.fixture(scope="module")
def ext_detector(tiny_overrides):
    """Untrained, with all four outputs, so that the combinations differ."""
    categories = [Category(1, "circle"), Category(2, "square"), Category(3, "triangle")]
    config = load_config(overrides=[*tiny_overrides, "model.variant=double_head_ext", "model.score_threshold=0.0"])
    model = assemble_detector(config.model, num_classes=3, seed=0)
    return Detector.from_model(model, categories, min_size=96, max_size=128)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def browser_page(stack, requests):
    from playwright.sync_api import sync_playwright

    browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
    stack.callback(browser.close)
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    return page


@pytest.mark.skipif(
    not CHROMIUM.is_file() or not importlib.util.find_spec("playwright") or not importlib.util.find_spec("gradio"),
    reason="needs chromium, playwright and gradio",
)
def test_a_browser_uploads_a_photograph_and_changes_head_and_score(ext_detector, photograph, tmp_path):
    found = find_objects(ext_detector, photograph)
    assert list(head_names(ext_detector).values()) == ["fused/conv", "fc/fc", "conv/conv", "fc/conv"]
    requests = []
    with contextlib.ExitStack() as stack:
        blocks = build_page(ext_detector, title="Test of the page", score=0.05)
        stack.callback(blocks.close)
        address = serve_page(blocks, port=free_port(), wait=False)
        page = browser_page(stack, requests)
        page.goto(address)
        page.set_input_files("#photograph input[type=file]", str(photograph))
        sentence = page.locator("#sentence")
        picture = page.locator("#picture img")

        def expect_shown(head, score):
            """Wait for the sentence of a head and score, then compare the table and the picture."""
            drawn, text, rows = show_detections(found, head, score)
            page.wait_for_function(
                "text => document.querySelector('#sentence').innerText.includes(text)", arg=plain(text), timeout=60000
            )
            source = picture.get_attribute("src")
            shown = page.request.get(source).body()
            (tmp_path / "shown.png").write_bytes(shown)
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "shown.png").convert("RGB")), drawn)
            return len(rows)

        counts = [expect_shown("fused/conv", 0.05)]
        set_score(page, 0.0)
        counts.append(expect_shown("fused/conv", 0.0))
        page.get_by_label("score: fc-head, box: fc-head").check()
        counts.append(expect_shown("fc/fc", 0.0))
        assert "pixels" in sentence.inner_text()
        for category in ext_detector.categories:
            assert category.name in page.locator("#classes").inner_text()
        assert all(count > 0 for count in counts)
        page.wait_for_timeout(500)
    assert len(requests) > 10
    hosts = {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def plain(sentence):
    """The beginning of a sentence as the browser shows it, up to the time."""
    return sentence.replace("**", "").rpartition(" · ")[0]


def set_score(page, value):
    number = page.locator("#score input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def test_every_combination_is_what_the_detector_finds(ext_detector, photograph):
    found = find_objects(ext_detector, photograph)
    pixels = np.asarray(Image.open(photograph).convert("RGB"))
    own = ext_detector(pixels)
    np.testing.assert_allclose(found.results["fused/conv"].scores, own.scores, atol=1e-5)
    assert not np.allclose(found.results["fc/fc"].boxes, found.results["conv/conv"].boxes)
    threshold = float(own.scores[3])
    picture, sentence, rows = show_detections(found, "fused/conv", threshold)
    assert [row[0] for row in rows] == list(own.categories[: len(rows)])
    np.testing.assert_allclose([row[1] for row in rows], own.scores[: len(rows)], atol=6e-4)
    np.testing.assert_allclose([row[2:] for row in rows], own.boxes[: len(rows)], atol=0.06)
    assert len(rows) <= 3
    expected = draw_detections(pixels, found.results["fused/conv"], score_threshold=threshold)
    np.testing.assert_array_equal(picture, expected)
    height, width = pixels.shape[:2]
    assert re.search(rf"above {threshold:.2f} · {width} x {height} pixels · found in \d+\.\d\d s$", sentence)
    picture, sentence, rows = show_detections(found, "fc/conv", 1.0)
    assert rows == []
    assert sentence.startswith("**nothing** above 1.00")


def test_a_model_with_one_combination_offers_that_one(ext_detector, photograph, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelDetector, "head_combinations", ())
    [(label, name)] = head_names(ext_detector).items()
    found = find_objects(ext_detector, photograph)
    assert list(found.results) == [name]
    assert label == "the model's own"
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg: not a readable JPEG or PNG image"):
        find_objects(ext_detector, tmp_path / "bad.jpg")


def test_bad_input_is_answered_before_a_model_is_loaded(tmp_path, monkeypatch):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: is not free on this machine"):
            run_demo(tmp_path, port=port, score=0.5)
    with pytest.raises(DataError, match="nothing: no such folder"):
        run_demo(tmp_path / "nothing", port=free_port(), score=0.5)
    for port, score, expected in ((0, 0.5, "--port: expected"), (80000, 0.5, "--port"), (7860, 1.1, "--score: expec")):
        with pytest.raises(UserError, match=expected):
            run_demo(tmp_path, port=port, score=score)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'the demo page needs gradio: pip install "gradio<'):
        run_demo(tmp_path, port=free_port(), score=0.5)
