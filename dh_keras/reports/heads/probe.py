"""What a model's heads make of given boxes, without an RPN: scores, regressed boxes, feature maps, weights.

Letters: M windows, G objects, S = 49 cells of an RoI, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dh_keras.data import transforms
from dh_keras.errors import DataError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.constants import ROI_DELTA_WEIGHTS, ROI_LEVELS, ROI_OUTPUT_SIZE, SIZE_DIVISOR
from dh_keras.modeling.folding import inference_copy
from dh_keras.modeling.ops.boxes import clip_boxes, decode_boxes, pairwise_iou
from dh_keras.modeling.variants import VARIANTS
from dh_keras.reports.heads.statistics import cell_correlations
from dh_keras.run.run_folder import RunFolder, is_run_folder, open_run
from dh_keras.run.weights import load_weights

CELLS = ROI_OUTPUT_SIZE**2
# RoIs that go through the heads together; their feature maps should fit into the processor's cache.
_CHUNK = 256


class HeadProbe:
    """A run's model in its inference form (batch norms folded into the convolutions), to be asked about boxes.

    Args:
        run: of a variant whose heads predict both classes and boxes.

    Attributes:
        kinds: kinds of heads that the model has, of "fc" and "conv".
    """

    def __init__(self, run: RunFolder):
        model = assemble_detector(run.config.model, num_classes=len(run.categories))
        load_weights(model, run.weights)
        self.run = run
        self.model = inference_copy(model)
        self._heads = {spec.kind: self.model.heads[spec.name] for spec in self.model.variant.heads}
        self.kinds = tuple(self._heads)
        self._limits = {"min_size": run.config.data.min_size, "max_size": run.config.data.max_size}
        boxes, indices = tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int32)
        channels = run.config.model.fpn.channels
        pyramid = {level: tf.TensorSpec([1, None, None, channels]) for level in ROI_LEVELS}
        image = tf.TensorSpec([None, None, 3], tf.uint8)
        self._extract = tf.function(self._extract_eagerly, input_signature=[image], autograph=False)
        signature = [pyramid, tf.TensorSpec([2], tf.int32), boxes, boxes, indices]
        self._judge = tf.function(self._judge_eagerly, input_signature=signature, autograph=False)
        self._pool = tf.function(self._map_cells, input_signature=[pyramid, boxes], autograph=False)

    def open_image(self, image: np.ndarray) -> "ImageFeatures":
        """Compute the features of an upright RGB image uint8 [H, W, 3]."""
        pyramid, resized_size, factors = self._extract(tf.constant(image))
        return ImageFeatures(pyramid, resized_size, np.tile(factors.numpy(), 2))

    def judge(
        self, image: "ImageFeatures", windows: np.ndarray, gt_boxes: np.ndarray, gt_classes: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Score and regress windows, given in pixels of the upright original image.

        Args:
            image: of `open_image`.
            windows: float32 [M, 4].
            gt_boxes: float32 [M, 4], the object of each window.
            gt_classes: int32 [M], its class.

        Returns:
            For each kind of head float32 [2, M]: the score of the object's class, and the IoU of the object with the
            box that this class's deltas make of the window, clipped to the image.
        """
        rows = (windows * image.factors, gt_boxes * image.factors, gt_classes)
        answers = {kind: [np.empty((2, 0), np.float32)] for kind in self.kinds}
        for start in range(0, len(windows), _CHUNK):
            chunk = [row[start : start + _CHUNK] for row in rows]
            for kind, answer in self._judge(image.pyramid, image.resized_size, *chunk).items():
                answers[kind].append(answer)
        return {kind: np.concatenate(of_chunks, axis=1) for kind, of_chunks in answers.items()}

    def cell_maps(self, image: "ImageFeatures", boxes: np.ndarray) -> dict[str, np.ndarray]:
        """Feature maps of boxes float32 [G, 4], cell by cell, for each kind of head.

        Returns:
            "conv": float32 [G, S, C], the map that the conv-head averages for its predictors (after a ReLU).
            "fc": float32 [G, S, C], what each cell alone contributes to the first fully connected layer. That layer
            is a 7x7 convolution whose 49 products are summed; these are the products, before sum, bias and ReLU.
        """
        return {kind: cells.numpy() for kind, cells in self._pool(image.pyramid, boxes * image.factors).items()}

    def weight_correlations(self) -> dict[str, np.ndarray]:
        """Correlation between the places of the heads' weights, by kind of head; see `cell_correlations`.

        Returns:
            "fc": float64 [S, S] between the slices [C * outputs] of the first layer's kernel that see one cell each.
            "conv": float64 [9, 9] between the taps [inputs * outputs] of a 3x3 kernel, averaged over the head's 3x3
            kernels.
        """
        found = {}
        for kind, head in self._heads.items():
            if kind == "fc":
                found[kind] = cell_correlations(head.fc1.kernel.numpy().reshape(CELLS, -1))
            else:
                kernels = [weight.numpy() for weight in head.weights if tuple(weight.shape[:2]) == (3, 3)]
                found[kind] = np.mean([cell_correlations(kernel.reshape(9, -1)) for kernel in kernels], axis=0)
        return found

    def _extract_eagerly(self, image: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """The pyramid, the size of the resized image and the factors (y, x) that boxes are resized by."""
        size = tf.shape(image)[:2]
        resized_size = transforms.resized_size(size, **self._limits)
        canvas = -(-resized_size // SIZE_DIVISOR) * SIZE_DIVISOR
        padded = transforms.pad_to(transforms.resize_image(image, resized_size), canvas)
        batch = {"images": padded[None], "image_sizes": resized_size[None]}
        pyramid = self.model.extract_features(batch, training=False)
        factors = tf.cast(resized_size, tf.float32) / tf.cast(size, tf.float32)
        return {level: pyramid[level] for level in ROI_LEVELS}, resized_size, factors

    def _judge_eagerly(
        self,
        pyramid: dict[str, tf.Tensor],
        resized_size: tf.Tensor,
        windows: tf.Tensor,
        gt_boxes: tf.Tensor,
        gt_classes: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """For each kind of head [2, M]: scores, and IoUs of the regressed boxes; a row of truth for each window."""
        outputs = self.model.run_heads(pyramid, windows, tf.zeros_like(gt_classes), training=False)
        answers = {}
        for kind in self.kinds:
            probs = tf.nn.softmax(outputs[f"{kind}_class_logits"])
            deltas = tf.gather(outputs[f"{kind}_box_deltas"], gt_classes, batch_dims=1)
            boxes = decode_boxes(deltas, windows, weights=ROI_DELTA_WEIGHTS)
            boxes = clip_boxes(boxes, resized_size, geometry=self.model.geometry)
            ious = pairwise_iou(boxes[:, None], gt_boxes[:, None])[:, 0, 0]
            answers[kind] = tf.stack([tf.gather(probs, gt_classes, batch_dims=1), ious])
        return answers

    def _map_cells(self, pyramid: dict[str, tf.Tensor], boxes: tf.Tensor) -> dict[str, tf.Tensor]:
        """For each kind of head [G, S, C]."""
        image_index = tf.zeros(tf.shape(boxes)[:1], tf.int32)
        maps = {}
        for kind, head in self._heads.items():
            features = self.model.roi_align[kind](pyramid, boxes, image_index, training=False)
            if kind == "conv":
                cells = head.feature_map(features, training=False)
            else:  # the addends [G, 7, 7, channels] of the first layer
                kernel = tf.reshape(head.fc1.kernel, [*features.shape[1:], head.channels])
                cells = tf.einsum("rhwc,hwcd->rhwd", features, kernel)
            maps[kind] = tf.reshape(cells, [-1, CELLS, cells.shape[-1]])
        return maps


class ImageFeatures(NamedTuple):
    """What a probe keeps of an image.

    Args:
        pyramid: "P2".."P5", float32 [1, H, W, C].
        resized_size: int32 [2], (height, width), pixels.
        factors: float32 [4], (y, x, y, x), from original to resized pixels.
    """

    pyramid: dict[str, tf.Tensor]
    resized_size: tf.Tensor
    factors: np.ndarray


def open_comparable_runs(models: Sequence[str | Path], overrides: Sequence[str] = ()) -> list[RunFolder]:
    """Open one double_head_ext run, or the runs of a single_fc and a single_conv model.

    Args:
        models: one or two run folders.
        overrides: `key=value` changes to the config of each.

    Returns:
        Runs that have one fc-head and one conv-head between them, each for classes and boxes.

    Raises:
        DataError: when they are something else, or do not know the same classes.
    """
    if not 1 <= len(models) <= 2:
        raise DataError(f"expected one model or two, got {len(models)}: {' '.join(map(str, models))}")
    runs = []
    for path in map(Path, models):
        if not is_run_folder(path) and (path / "saved_model.pb").is_file():
            advice = "give the run folder that it was exported from"
            raise DataError(f"{path}: a SavedModel gives detections only; {advice}")
        runs.append(open_run(path, overrides))
    variants = [run.config.model.variant for run in runs]
    if variants != ["double_head_ext"] and sorted(variants) != ["single_conv", "single_fc"]:
        found = " and ".join(f"{run.path} is {_describe(run.config.model.variant)}" for run in runs)
        raise DataError(f"{found}; give one double_head_ext run, or a pair of a single_fc and a single_conv run")
    names = [[category.name for category in run.categories] for run in runs]
    if names[0] != names[-1]:
        raise DataError(
            f"{runs[0].path} knows the classes {', '.join(names[0])}, but {runs[1].path} {', '.join(names[1])}; "
            "give two runs that were trained on the same classes"
        )
    return runs


def _describe(variant: str) -> str:
    """A variant's name and what it lacks for a comparison of the heads."""
    specs = VARIANTS[variant].heads
    heads = [f"{spec.kind} for {' and '.join(spec.classes * ['classes'] + spec.boxes * ['boxes'])}" for spec in specs]
    return f"{variant} ({', '.join(heads)})"
