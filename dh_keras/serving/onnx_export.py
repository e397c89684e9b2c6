"""The ONNX file of a detector: the graph that TensorFlow Serving gets, of operations that other runtimes have."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from dh_keras.data import transforms
from dh_keras.errors import DataError, UserError, one_line, pip_install
from dh_keras.files import new_folder, write_bytes
from dh_keras.inference.detector import Detector, ModelDetector
from dh_keras.inference.serving_module import ONNX_FILE, ServingModule
from dh_keras.modeling.layers.roi_align import RoIAlign
from dh_keras.modeling.ops.boxes import scale_boxes
from dh_keras.modeling.ops.gather_roi_align import gather_roi_align
from dh_keras.modeling.ops.roi_align import roi_levels
from dh_keras.paths import to_path
from dh_keras.serving.export import exportable, write_assets

OPSET = 18


class GatherRoIAlign(RoIAlign):
    """`RoIAlign` without sparse products, which ONNX does not have."""

    def call(
        self, pyramid: dict[str, tf.Tensor], rois: tf.Tensor, image_index: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        """See `RoIAlign`."""
        return gather_roi_align(
            pyramid,
            scale_boxes(rois, self.scale),
            image_index,
            roi_levels(rois, levels=self.levels),
            sampling_ratio=self.sampling_ratio,
            geometry=self.geometry,
            output_size=self.output_size,
            levels=self.levels,
        )


class OnnxModule(ServingModule):
    """`serve_images` as ONNX has it: files are decoded and classes are named outside of the graph."""

    def describe(self) -> dict[str, Any]:
        """What a client must know, ready for JSON."""
        described = super().describe()
        inputs, outputs = described["inputs"], described["outputs"]
        del described["orientation"], outputs["detection_class_names"]
        return {**described, "inputs": {ONNX_FILE: inputs["serve_image"]}, "opset": OPSET}

    def _prepare(self, inputs: tf.Tensor, to_image: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """All images in one step, for they have one size; to_image is not called, they are images."""
        shape = tf.shape(inputs)
        size = shape[1:3]
        resized_size = transforms.resized_size(size, **self._limits)
        resized = resize_images(inputs, resized_size)
        missing = self._canvas(resized_size) - resized_size
        images = tf.pad(resized, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
        return images, *(tf.tile(pair[None], [shape[0], 1]) for pair in (resized_size, size))

    def _describe(self, *arguments: Any) -> dict[str, tf.Tensor]:
        outputs = super()._describe(*arguments)
        return {name: output for name, output in outputs.items() if output.dtype != tf.string}


def export_onnx(detector: Detector, output: str | Path) -> Path:
    """Write a folder with `model.onnx`, which takes images and finds what `serve_image` of a SavedModel finds.

    Beside it, in assets, is what an export for TensorFlow Serving has there: classes and the description.

    Args:
        detector: of a run folder or of a model, in float32.
        output: the folder; must not exist.

    Returns:
        The folder.

    Raises:
        UserError: when tf2onnx is not installed.
        DataError: for the detector of an export or one in bfloat16, and when the folder exists.

    Examples:
        >>> export_onnx(Detector.load("runs/cells"), "models/cells_onnx")
    """
    module = _onnx_module(exportable(detector))
    if module.detector.backbone.compute_dtype != "float32":
        raise DataError(f"an ONNX file computes in float32, got {module.detector.backbone.compute_dtype}")
    with new_folder(output) as folder:
        write_bytes(folder / ONNX_FILE, _convert(module))
        write_assets(folder, detector, module.describe())
    return to_path(output)


def _onnx_module(detector: ModelDetector) -> ServingModule:
    """The detector's module with other layers for RoIAlign; the weights are the same."""
    model = detector.model
    aligns = {kind: GatherRoIAlign.from_config(layer.get_config()) for kind, layer in model.roi_align.items()}
    min_size, max_size = detector.size_limits
    return OnnxModule(
        model.with_layers(roi_align=aligns),
        detector.categories,
        min_size=min_size,
        max_size=max_size,
        target=detector.target,
    )


def _convert(module: ServingModule) -> bytes:
    try:
        import onnx
        from tf2onnx.convert import from_function

        from dh_keras.serving import onnx_graph
    except ImportError as error:
        raise UserError(f"an ONNX file needs tf2onnx and onnx: {pip_install('onnx')}") from error
    signature = module.serve_images.input_signature
    function = tf.function(module.detect_images, input_signature=signature, autograph=False)
    with _no_log_lines():
        model, _ = from_function(function, input_signature=signature, opset=OPSET)
    onnx_graph.read_from_outside(model.graph)
    onnx_graph.limit_sizes(model.graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:  # tf2onnx passes on what it does not know
        raise DataError(f"ONNX has no operation for a part of this model: {one_line(error)}") from error
    return model.SerializeToString()


@contextlib.contextmanager
def _no_log_lines() -> Iterator[None]:
    """Close stderr to what TensorFlow says of its devices here, whatever TF_CPP_MIN_LOG_LEVEL says."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") < "2":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def resize_images(images: tf.Tensor, new_size: tf.Tensor) -> tf.Tensor:
    """What `transforms.resize_image` does, by gathering and in the same steps, so that every runtime rounds alike.

    Args:
        images: uint8 [B, H, W, 3].
        new_size: int32 [2], (height, width) in pixels.

    Returns:
        float32 [B, new_size[0], new_size[1], 3] of whole numbers.
    """
    shape = tf.shape(images)
    (top, bottom, down), (left, right, across) = (_neighbours(shape[1 + axis], new_size[axis]) for axis in range(2))
    across = across[:, None]

    def row(y: tf.Tensor) -> tf.Tensor:
        pixels = tf.gather(images, y, axis=1)
        before, after = (tf.cast(tf.gather(pixels, x, axis=2), tf.float32) for x in (left, right))
        return before + (after - before) * across

    upper = row(top)
    return tf.round(upper + (row(bottom) - upper) * down[:, None, None])


def _neighbours(size: tf.Tensor, new_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of each new row or column, the two old ones around it, int32, and its distance from the first, float32."""
    scale = tf.cast(size, tf.float32) / tf.cast(new_size, tf.float32)
    place = (tf.range(tf.cast(new_size, tf.float32)) + 0.5) * scale - 0.5
    first = tf.floor(place)
    before = tf.maximum(tf.cast(first, tf.int32), 0)
    after = tf.minimum(tf.cast(tf.math.ceil(place), tf.int32), size - 1)
    return before, after, place - first
