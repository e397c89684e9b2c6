"""The served model: preprocessing, detector and postprocessing as one graph.

Run folders and SavedModels are used through the same functions, so they give the same detections.
Letters: B batch, D detections, H W C.
"""

import math
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import keras
import tensorflow as tf

from dh_keras.data import transforms
from dh_keras.data.canvases import canvases
from dh_keras.evaluation.head_combinations import HEAD_COMBINATIONS
from dh_keras.modeling.constants import SIZE_DIVISOR
from dh_keras.modeling.detections import Detections
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.ops.indexing import on_host
from dh_keras.modeling.ops.machine import FEW_SIZES, machine_target, traced_for
from dh_keras.run.classes import Category

SIGNATURE_FILE = "signature.json"
LABELS_FILE = "labels.json"
ONNX_FILE = "model.onnx"

_PREPARED = [
    tf.TensorSpec([None, None, None, 3], tf.uint8, name="images"),
    tf.TensorSpec([None, 2], tf.int32, name="resized_sizes"),
    tf.TensorSpec([None, 2], tf.int32, name="original_sizes"),
]


class ServingModule(tf.Module):
    """Encoded or decoded images in, detections in original-image pixels out.

    Files are decoded and pictures resized by kernels that only a CPU has. What is between and after them stays on the
    host too: one copy of the prepared images goes to a GPU, and of its detections one comes back.

    Args:
        detector: a built detector.
        categories: class index k is categories[k].
        min_size: the short side is resized to this many pixels ...
        max_size: ... unless the long side would exceed this many.
        target: the one of `TARGETS` whose graph this is, whatever it runs on; None takes this machine's.
    """

    def __init__(
        self,
        detector: DoubleHeadRCNN,
        categories: Sequence[Category],
        *,
        min_size: int,
        max_size: int,
        target: str | None = None,
    ) -> None:
        super().__init__(name="serving")
        self.target = target or machine_target()
        # Only the variables are part of the module: a SavedModel must not need Keras to be loaded.
        self.weights = [variable.value for variable in detector.variables]
        self._get_detector = lambda: detector
        self._limits = {"min_size": min_size, "max_size": max_size}
        self._longest = -(-max_size // SIZE_DIVISOR) * SIZE_DIVISOR
        self._category_ids = tuple(category.id for category in categories)
        self._category_names = tuple(category.name for category in categories)

    @property
    def detector(self) -> DoubleHeadRCNN:
        """The detector that is served."""
        return self._get_detector()

    @property
    def warm_up_rois(self) -> list[int]:
        """On a GPU, numbers of RoIs that the conv-head gets for one photograph, where what is seen decides on them."""
        if self.target == "cpu" or not self.detector.variant.scores_before_boxes:
            return []
        most = self.detector.rpn.post_nms_test
        return [FEW_SIZES[0], *(size for size in FEW_SIZES[1:] if size < 2 * most)]

    def signatures(self) -> dict[str, Any]:
        """Concrete functions by the names under which they are served; "warm_up" where there are `warm_up_rois`."""
        named = {"serving_default": self.serve_bytes, "serve_image": self.serve_images}
        if self.warm_up_rois:
            rois = [tf.TensorSpec([None], tf.int32, name="rois")]
            named["warm_up"] = tf.function(self.warm_up, input_signature=rois, autograph=False)
        return {name: function.get_concrete_function() for name, function in named.items()}

    def describe(self) -> dict:
        """What a client must know, ready for JSON."""
        detector = self.detector
        rows = detector.max_detections
        return {
            "inputs": {
                "serving_default": {"image_bytes": {"dtype": "string", "shape": [None], "format": "JPEG or PNG"}},
                "serve_image": {"images": {"dtype": "uint8", "shape": [None, None, None, 3], "format": "RGB"}},
            },
            "outputs": {
                "detection_boxes": {"dtype": "float32", "shape": [None, rows, 4]},
                "detection_scores": {"dtype": "float32", "shape": [None, rows]},
                "detection_classes": {"dtype": "int32", "shape": [None, rows]},
                "detection_class_names": {"dtype": "string", "shape": [None, rows]},
                "num_detections": {"dtype": "int32", "shape": [None]},
            },
            "boxes": "[y1, x1, y2, x2] in pixels of the upright original image",
            "orientation": "serving_default applies the EXIF orientation",
            "preprocessing": {
                **self._limits,
                "channel_order": detector.normalization.channel_order,
                "mean": detector.normalization.mean,
                "std": detector.normalization.std,
            },
            "variant": detector.variant.name,
            "precision": detector.backbone.compute_dtype,
            "target": self.target,
            "score_threshold": detector.score_threshold,
            "nms_iou": detector.nms_iou,
            "max_detections": rows,
            "versions": {
                "dh_keras": metadata.version("dh_keras"),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def serve_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detect in files.

        Args:
            image_bytes: string [B], JPEG or PNG files of any sizes; an EXIF orientation is applied.

        Returns:
            detection_boxes float32 [B, D, 4], (y1, x1, y2, x2) in pixels of the upright original image;
            detection_scores float32 [B, D]; detection_classes int32 [B, D], category ids; detection_class_names string
            [B, D]; num_detections int32 [B]. Rows after num_detections are 0 and "".
        """
        with on_host():
            files = transforms.require_images(image_bytes)
        return self._detect_shared(*self._prepare(files, transforms.decode_image))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")], autograph=False)
    def serve_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detect in decoded RGB images uint8 [B, H, W, 3] of one size; returns what `serve_bytes` does."""
        return self._detect_shared(*self._prepare(images, tf.identity))

    def detect_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `serve_images` does, as a part of another graph."""
        return self._detect(*self._prepare(images, tf.identity))

    def detect_by_head(self, images: tf.Tensor) -> dict[str, dict[str, tf.Tensor]]:
        """Detections of every combination of the heads from one pass, by the names of `HEAD_COMBINATIONS`.

        Not a tf.function, which would be saved along: most variants do not have all four outputs.
        """
        prepared, resized_sizes, original_sizes = self._prepare(images, tf.identity)
        with traced_for(self.target):
            outputs = self.detector({"images": prepared, "image_sizes": resized_sizes})
            found = {
                name: self.detector.detect(outputs, resized_sizes, score_from=score_from, boxes_from=boxes_from)
                for name, (score_from, boxes_from) in HEAD_COMBINATIONS.items()
            }
        return {name: self._describe(one, resized_sizes, original_sizes) for name, one in found.items()}

    def warm_up(self, rois: tf.Tensor) -> dict[str, tf.Tensor]:
        """Run the conv-heads on as many blank RoIs as the largest number in int32 [B], whose rows a server may repeat.

        Returns:
            "largest" float32 [B], of all that they predict: a server leaves out what no output depends on.
        """
        detector, largest = self.detector, []
        channels = detector.fpn.channels
        with traced_for(self.target):
            for spec in detector.variant.heads:
                if spec.kind == "conv":
                    shape = [tf.reduce_max(rois), *detector.roi_align["conv"].output_size, channels]
                    blank = tf.ones(shape, detector.fpn.compute_dtype)
                    predictions = detector.heads[spec.name](blank, training=False).values()
                    largest += [tf.reduce_max(prediction) for prediction in predictions]
        return {"largest": tf.fill(tf.shape(rois), tf.reduce_max(largest))}

    def _prepare(self, inputs: tf.Tensor, to_image) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Resized images on a common canvas uint8 [B, H, W, 3], their sizes and the original sizes, int32 [B, 2]."""
        side = self._longest

        def prepare(one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            image = to_image(one)
            size = tf.shape(image)[:2]
            resized_size = transforms.resized_size(size, **self._limits)
            resized = transforms.resize_image(image, resized_size)
            return transforms.pad_to(resized, tf.constant([side, side])), resized_size, size

        with on_host():
            images, resized_sizes, sizes = tf.map_fn(
                prepare,
                inputs,
                fn_output_signature=(
                    tf.TensorSpec([side, side, 3], tf.uint8),
                    tf.TensorSpec([2], tf.int32),
                    tf.TensorSpec([2], tf.int32),
                ),
            )
            canvas = self._canvas(tf.reduce_max(resized_sizes, axis=0))
            return images[:, : canvas[0], : canvas[1], :], resized_sizes, sizes

    def _canvas(self, needed: tf.Tensor) -> tf.Tensor:
        """(height, width) that images which need so much are padded to, int32 [2] both.

        On a GPU it is one of the few that training has, or a square where some images lie and others stand, because
        its library measures the ways to convolve for every new one.
        """
        if self.target == "cpu":
            # ONNX rounds the quotient of a negative number up, so none is divided.
            return (needed + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR
        few = tf.constant(sorted([*canvases(**self._limits), (self._longest, self._longest)], key=math.prod))
        holds = tf.reduce_all(needed <= few, axis=1)
        return few[tf.where(holds)[0, 0]]

    @tf.function(input_signature=_PREPARED, autograph=False)
    def _detect_shared(
        self, images: tf.Tensor, resized_sizes: tf.Tensor, original_sizes: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """`_detect` as one graph, which is traced, saved and loaded once for all signatures."""
        return self._detect(images, resized_sizes, original_sizes)

    def _detect(self, images: tf.Tensor, resized_sizes: tf.Tensor, original_sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        with traced_for(self.target):
            outputs = self.detector({"images": images, "image_sizes": resized_sizes})
            detections = self.detector.detect(outputs, resized_sizes)
        return self._describe(detections, resized_sizes, original_sizes)

    def _describe(
        self, detections: Detections, resized_sizes: tf.Tensor, original_sizes: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Map boxes to the original images and classes to ids and names."""
        with on_host():
            scale = tf.cast(original_sizes, tf.float32) / tf.cast(resized_sizes, tf.float32)
            valid = tf.sequence_mask(detections.num_detections, tf.shape(detections.scores)[1])
            boxes = detections.boxes * tf.concat([scale, scale], axis=1)[:, None, :]
            limits = tf.cast(tf.concat([original_sizes, original_sizes], axis=1), tf.float32)[:, None, :]
            ids = tf.gather(tf.constant(self._category_ids, tf.int32), detections.classes)
            names = tf.gather(tf.constant(self._category_names), detections.classes)
            return {
                "detection_boxes": tf.minimum(boxes, limits),
                "detection_scores": detections.scores,
                "detection_classes": tf.where(valid, ids, 0),
                "detection_class_names": tf.where(valid, names, ""),
                "num_detections": detections.num_detections,
            }
