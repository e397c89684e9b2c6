"""The served model: preprocessing, detector and postprocessing as one graph.

Run folders and SavedModels are used through the same functions, so they give the same detections.
Letters: B batch, D detections, H W C.
"""

from collections.abc import Sequence
from importlib import metadata

import keras
import tensorflow as tf

from dh_keras.data import transforms
from dh_keras.evaluation.head_combinations import HEAD_COMBINATIONS
from dh_keras.modeling.constants import SIZE_DIVISOR
from dh_keras.modeling.detections import Detections
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.run.classes import Category

SIGNATURE_FILE = "signature.json"
LABELS_FILE = "labels.json"


class ServingModule(tf.Module):
    """Encoded or decoded images in, detections in original-image pixels out.

    Args:
        detector: a built detector.
        categories: class index k is categories[k].
        min_size: the short side is resized to this many pixels ...
        max_size: ... unless the long side would exceed this many.
    """

    def __init__(
        self, detector: DoubleHeadRCNN, categories: Sequence[Category], *, min_size: int, max_size: int
    ) -> None:
        super().__init__(name="serving")
        # Only the variables are part of the module: a SavedModel must not need Keras to be loaded.
        self.weights = [variable.value for variable in detector.variables]
        self._get_detector = lambda: detector
        self._limits = {"min_size": min_size, "max_size": max_size}
        self._category_ids = tuple(category.id for category in categories)
        self._category_names = tuple(category.name for category in categories)

    @property
    def detector(self) -> DoubleHeadRCNN:
        """The detector that is served."""
        return self._get_detector()

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
        files = transforms.require_images(image_bytes)
        images, resized_sizes, original_sizes = self._prepare(files, transforms.decode_image)
        return self._detect(images, resized_sizes, original_sizes)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")], autograph=False)
    def serve_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detect in decoded RGB images uint8 [B, H, W, 3] of one size; returns what `serve_bytes` does."""
        prepared, resized_sizes, original_sizes = self._prepare(images, tf.identity)
        return self._detect(prepared, resized_sizes, original_sizes)

    def detect_by_head(self, images: tf.Tensor) -> dict[str, dict[str, tf.Tensor]]:
        """Detections of every combination of the heads from one pass, by the names of `HEAD_COMBINATIONS`.

        Not a tf.function, which would be saved along: most variants do not have all four outputs.
        """
        prepared, resized_sizes, original_sizes = self._prepare(images, tf.identity)
        outputs = self.detector({"images": prepared, "image_sizes": resized_sizes})
        return {
            name: self._describe(
                self.detector.detect(outputs, resized_sizes, score_from=score_from, boxes_from=boxes_from),
                resized_sizes,
                original_sizes,
            )
            for name, (score_from, boxes_from) in HEAD_COMBINATIONS.items()
        }

    def _prepare(self, inputs: tf.Tensor, to_image) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Resized images on a common canvas uint8 [B, H, W, 3], their sizes and the original sizes, int32 [B, 2]."""
        side = -(-self._limits["max_size"] // SIZE_DIVISOR) * SIZE_DIVISOR

        def prepare(one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            image = to_image(one)
            size = tf.shape(image)[:2]
            resized_size = transforms.resized_size(size, **self._limits)
            resized = transforms.resize_image(image, resized_size)
            return transforms.pad_to(resized, tf.constant([side, side])), resized_size, size

        images, resized_sizes, sizes = tf.map_fn(
            prepare,
            inputs,
            fn_output_signature=(
                tf.TensorSpec([side, side, 3], tf.uint8),
                tf.TensorSpec([2], tf.int32),
                tf.TensorSpec([2], tf.int32),
            ),
        )
        needed = -(-tf.reduce_max(resized_sizes, axis=0) // SIZE_DIVISOR) * SIZE_DIVISOR
        return images[:, : needed[0], : needed[1], :], resized_sizes, sizes

    def _detect(self, images: tf.Tensor, resized_sizes: tf.Tensor, original_sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self.detector({"images": images, "image_sizes": resized_sizes})
        return self._describe(self.detector.detect(outputs, resized_sizes), resized_sizes, original_sizes)

    def _describe(
        self, detections: Detections, resized_sizes: tf.Tensor, original_sizes: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Map boxes to the original images and classes to ids and names."""
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
