"""A page on this machine: drop a photograph, see what each combination of the heads finds. Nothing leaves it."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dh_keras.errors import DataError, UserError, pip_install
from dh_keras.evaluation.head_combinations import HEAD_COMBINATIONS
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import Detector
from dh_keras.inference.drawing import class_colors, draw_detections
from dh_keras.inference.labels import escape_markdown
from dh_keras.inference.photographs import read_image
from dh_keras.run.classes import class_labels

# The page is reachable from this machine only.
HOST = "127.0.0.1"
TABLE_COLUMNS = ("class", "score", "y1", "x1", "y2", "x2")

_HEADS = {"fc": "fc-head", "conv": "conv-head", "fused": "both heads"}
_OWN = "the model's own"
_INVITATION = "Drop a photograph on the left."


@dataclass(frozen=True, eq=False)
class DetectedPhotograph:
    """A photograph and what was found in it.

    Args:
        pixels: uint8 [H, W, 3], RGB, upright.
        results: by name of the combination of the heads.
        seconds: that reading and detecting took.
    """

    pixels: np.ndarray
    results: dict[str, ImageDetections]
    seconds: float


def head_names(detector: Detector) -> dict[str, str]:
    """Combinations that a detector has, by the label that the page shows; its own comes first.

    A model in which each head predicts both classes and boxes has four; others, and a SavedModel, have their own only.
    """
    labels = {}
    for name in detector.head_combinations:
        score_from, boxes_from = HEAD_COMBINATIONS[name]
        note = "" if labels else f" ({_OWN})"
        labels[f"score: {_HEADS[score_from]}, box: {_HEADS[boxes_from]}{note}"] = name
    return labels or {_OWN: _OWN}


def find_objects(detector: Detector, image: str | Path | np.ndarray) -> DetectedPhotograph:
    """Detect with every combination of the heads in one pass.

    Args:
        detector: a loaded detector.
        image: a JPEG or PNG file, or RGB pixels uint8 [H, W, 3].

    Raises:
        DataError: naming the file, when it cannot be decoded.
    """
    start = time.perf_counter()
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    by_head = {name: found[0] for name, found in detector.detect_images_by_head(pixels[None]).items()}
    results = by_head or {_OWN: detector(pixels)}
    return DetectedPhotograph(pixels, results, time.perf_counter() - start)


def show_detections(photograph: DetectedPhotograph, head: str, score: float) -> tuple[np.ndarray, str, list[list[Any]]]:
    """Picture, sentence and table of what scores more than `score`.

    Args:
        photograph: see `find_objects`.
        head: a name in `photograph.results`.
        score: 0..1.

    Returns:
        uint8 [H, W, 3], RGB; Markdown; and a row for each detection, with `TABLE_COLUMNS`, the best first.
    """
    result = photograph.results[head]
    found = result.above(score)
    picture = draw_detections(photograph.pixels, result, score_threshold=score)
    names = found.categories
    counts = {one.name: names.count(one.name) for one in result.known if one.name in names}
    shown = ", ".join(f"{count} {escape_markdown(name)}" for name, count in counts.items()) or "nothing"
    height, width = photograph.pixels.shape[:2]
    size = f"{width} x {height} pixels"
    sentence = f"**{shown}** above {score:.2f} · {size} · found in {photograph.seconds:.2f} s"
    rows = zip(names, found.scores.tolist(), found.boxes.tolist(), strict=True)
    return picture, sentence, [[name, round(value, 3), *(round(side, 1) for side in box)] for name, value, box in rows]


def build_page(detector: Detector, *, title: str, score: float) -> Any:
    """The page as gradio Blocks, not yet served.

    Args:
        detector: a loaded detector.
        title: stands above the page.
        score: where the slider starts, 0..1.

    Raises:
        UserError: when gradio is not installed.
    """
    gr = _import_gradio()
    heads = head_names(detector)
    # What was uploaded and drawn is removed an hour later.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## {title}")
        photograph = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image, head, slider = _inputs(gr, list(heads), score)
                gr.HTML(_class_list(detector), elem_id="classes")
            with gr.Column(scale=5, min_width=420):
                outputs = _outputs(gr)

        def detect(path: str | None) -> DetectedPhotograph | None:
            try:
                return find_objects(detector, path) if path else None
            except DataError as error:
                raise gr.Error(str(error).replace(str(path), Path(path).name)) from error

        def show(found: DetectedPhotograph | None, label: str, threshold: float) -> tuple[Any, str, Any]:
            return (None, _INVITATION, []) if found is None else show_detections(found, heads[label], threshold)

        shown = [photograph, head, slider]
        image.change(detect, image, photograph).success(show, shown, outputs)
        for control in (head, slider):
            control.change(show, shown, outputs, trigger_mode="always_last", show_progress="hidden")
    return page


def _inputs(gr: Any, heads: list[str], score: float) -> tuple[Any, Any, Any]:
    image = gr.Image(
        label="Photograph (JPEG or PNG)",
        type="filepath",
        image_mode=None,  # the file as it is: the detector turns it upright itself
        sources=["upload", "clipboard"],
        height=260,
        elem_id="photograph",
    )
    head = gr.Radio(heads, value=heads[0], label="Heads", elem_id="heads", visible=len(heads) > 1)
    return image, head, gr.Slider(0, 1, value=score, step=0.01, label="Score above", elem_id="score")


def _outputs(gr: Any) -> list[Any]:
    buttons = ["download", "fullscreen"]
    # Without the label, which lies over the picture's corner and what is drawn there.
    picture = gr.Image(show_label=False, format="png", interactive=False, buttons=buttons, elem_id="picture")
    sentence = gr.Markdown(_INVITATION, elem_id="sentence")
    headers = list(TABLE_COLUMNS)
    table = gr.Dataframe(headers=headers, label="Boxes in pixels", interactive=False, max_height=260, elem_id="table")
    return [picture, sentence, table]


def _class_list(detector: Detector) -> str:
    """Names of the classes in their colours, as HTML."""
    colors = class_colors(len(detector.categories))
    spot = '<span style="background: rgb{}; border-radius: 3px; padding: 0 .55em; margin-right: .4em"></span>{}'
    entries = [
        f'<span style="display: inline-block; margin: 0 1em .3em 0">{spot.format(color, escape(category.name))}</span>'
        for category, color in zip(detector.categories, colors, strict=True)
    ]
    return f"<div><b>{len(entries)} classes</b><br>{''.join(entries)}</div>"


def serve_page(page: Any, *, port: int, wait: bool) -> str:
    """Serve a page on the loopback interface.

    Args:
        page: from `build_page`.
        port: a free TCP port.
        wait: serve until the process is interrupted; otherwise until `page.close()`.

    Returns:
        The page's address.

    Raises:
        UserError: when the port is not free.
    """
    gr = _import_gradio()
    fonts = ("system-ui", "sans-serif")
    # The themes' own fonts come from a server on the Internet.
    theme = gr.themes.Default(font=[gr.themes.Font(name) for name in fonts], font_mono=[gr.themes.Font("monospace")])
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
        )
    except OSError as error:
        raise UserError(f"--port {port}: is not free on this machine; give another") from error
    if wait:
        print(f"serving: {address} on this machine only; Ctrl-C ends it", flush=True)
        page.block_thread()
    return address


def run_demo(model: Path, overrides: Sequence[str] = (), *, port: int, score: float) -> None:
    """Load a model and serve its page until the process is interrupted.

    Args:
        model: a run folder or a SavedModel folder.
        overrides: `key=value` changes to a run's config.
        port: a free TCP port, 1..65535.
        score: where the slider starts, 0..1.

    Raises:
        UserError: when gradio is missing, the port is not free, an option is out of range or there is no model.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {score}")
    if not 1 <= port <= 65535:
        raise UserError(f"--port: expected a number from 1 to 65535, got {port}")
    _import_gradio()
    _check_port(port)
    detector = Detector.load(model, overrides)
    print(f"model: {model}, classes {', '.join(class_labels([one.name for one in detector.categories]))}")
    find_objects(detector, np.zeros((64, 64, 3), np.uint8))  # the first pass prepares the graph
    serve_page(build_page(detector, title=f"Double-Head R-CNN: {model.name}", score=score), port=port, wait=True)


def _check_port(port: int) -> None:
    """See that a port is free, before a model is loaded for it."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError as error:
            raise UserError(f"--port {port}: is not free on this machine ({error.strerror}); give another") from error


def _import_gradio() -> Any:
    """Gradio, told to send nothing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Gradio asks its own server whether it is up, which must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        hosts = os.environ.get(name, "")
        if HOST not in hosts.split(","):
            os.environ[name] = f"{hosts},{HOST}" if hosts else HOST
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the demo page needs gradio: {pip_install('demo')}") from error
    return gradio
