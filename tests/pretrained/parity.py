"""Compare a converted checkpoint with the numbers that its own implementation gave, stage by stage.

`python tests/pretrained/parity.py` prints the table; the tests assert it. The reference folder is found through
DH_KERAS_REFERENCE or beside the repository.
"""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tensorflow as tf

from dh_keras.data.transforms import decode_image
from dh_keras.evaluation.head_combinations import HEAD_COMBINATIONS
from dh_keras.modeling.constants import ROI_DELTA_WEIGHTS, SIZE_DIVISOR
from dh_keras.modeling.detections import class_probs
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.ops.boxes import clip_boxes, decode_boxes
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import authors, mmdetection
from dh_keras.pretrained.importer import FAMILIES, convert_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = Path(os.environ.get("DH_KERAS_REFERENCE", REPOSITORY.parent / "shared" / "reference"))
IMAGES = (0, 1, 2)
FOLDERS = {"authors": "authors_r50", "mmdetection": "mmdet_r50"}
SAMPLE_ALL = 1_000_000
LEVELS = ("P2", "P3", "P4", "P5", "P6")
# How the reference names what the heads put out, and the ways of combining the heads.
HEAD_OUTPUTS = {
    "fc_class_logits": "fc_logits",
    "fc_box_deltas": "fc_deltas",
    "conv_class_logits": "conv_logits",
    "conv_box_deltas": "conv_deltas",
}
MODES = {
    "fc/fc": "det_fc_cls_fc_reg",
    "conv/conv": "det_conv_cls_conv_reg",
    "fc/conv": "det_fc_cls_conv_reg",
    "fused/conv": "det_ext_fused_cls_conv_reg",
}
# The reference's losses carry their weights; ours are named here with the same weights applied.
LOSSES = {
    "authors": {
        "rpn_objectness_loss": "train_loss_objectness",
        "rpn_box_loss": "train_loss_rpn_box_reg",
        "fc_class_loss": "train_loss_classifier_fc",
        "fc_box_loss": "train_loss_box_reg_fc",
        "conv_class_loss": "train_loss_classifier",
        "conv_box_loss": "train_loss_box_reg",
    },
    "mmdetection": {
        "rpn_objectness_loss": "train_loss_rpn_cls",
        "rpn_box_loss": "train_loss_rpn_bbox",
        "fc_class_loss": "train_loss_cls",
        "conv_box_loss": "train_loss_bbox",
    },
}


@dataclass(frozen=True, eq=False)
class Case:
    """A family's converted model and how its numbers are told.

    Args:
        family: "authors" or "mmdetection".
        model: converted, set up to sample every anchor and RoI in training.
    """

    family: str
    model: DoubleHeadRCNN

    @property
    def legacy(self) -> bool:
        return self.family == "authors"

    def stages(self, image: int) -> dict[str, np.ndarray]:
        return _stages(self.family, image)

    def image_sizes(self, image: int) -> tf.Tensor:
        return tf.constant(self.stages(image)["image_hw"][None], tf.int32)

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Reference boxes as ours: y first, and inclusive ends one pixel on."""
        ends = [0.0, 0.0, 1.0, 1.0] if self.legacy else 0.0
        return (xyxy[:, [1, 0, 3, 2]] + ends).astype(np.float32)

    def photograph(self, image: int) -> tf.Tensor:
        """The decoded photograph, uint8 [1, H, W, 3], padded as the model expects it."""
        decoded = decode_image(tf.io.read_file(str(REFERENCE / FOLDERS[self.family] / f"image_{image}.jpg")))
        height, width = decoded.shape[:2]
        return tf.pad(decoded, [[0, -height % SIZE_DIVISOR], [0, -width % SIZE_DIVISOR], [0, 0]])[None]


@lru_cache
def _stages(family: str, image: int) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / FOLDERS[family] / f"stages_{image}.npz") as archive:
        return dict(archive)


@lru_cache
def load_case(family: str) -> Case:
    """Convert a family's reference checkpoint."""
    model = convert_checkpoint(REFERENCE / FOLDERS[family] / "checkpoint.pth").model
    model.rpn.batch_size = model.roi.batch_size = SAMPLE_ALL
    model.rpn.positive_fraction = model.roi.foreground_fraction = 1.0
    model.compile(optimizer=RecipeSGD(0.0), run_eagerly=True)
    return Case(family, model)


def meta(family: str) -> dict:
    """The reference's own description."""
    return json.loads((REFERENCE / FOLDERS[family] / "meta.json").read_text())


def differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to the largest number."""
    absolute = float(np.abs(np.asarray(ours, np.float64) - theirs).max())
    return absolute, absolute / float(np.abs(theirs).max())


def compare_forward(case: Case, image: int) -> dict[str, tuple[float, float]]:
    """Differences of features, RoI features and head outputs, from the stored input tensor."""
    model, stages = case.model, case.stages(image)
    pyramid = model.fpn(model.backbone(tf.constant(stages["input"]), training=False))
    found = {level: differences(pyramid[level].numpy(), stages[level.lower()]) for level in LEVELS}
    rois = tf.constant(case.boxes(stages["proposals"]))
    image_index = tf.zeros(len(rois), tf.int32)
    for kind, pool in model.roi_align.items():
        pooled = pool(pyramid, rois[:16], image_index[:16]).numpy()
        found[f"RoIAlign {kind}"] = differences(pooled, stages[f"roi_{kind}_16"])
    for name, output in model.run_heads(pyramid, rois, image_index, training=False).items():
        found[name] = differences(output.numpy(), _head_output(case, name, stages))
    return found


def _head_output(case: Case, name: str, stages: dict[str, np.ndarray]) -> np.ndarray:
    theirs = stages[HEAD_OUTPUTS[name]]
    if name.endswith("logits"):
        return np.concatenate([theirs[:, 1:], theirs[:, :1]], axis=1) if case.legacy else theirs
    return theirs.reshape(len(theirs), -1, 4)[:, -case.model.num_classes :, [1, 0, 3, 2]]


def run_from_input(case: Case, image: int) -> dict:
    """What the model's `call` returns, from the stored input tensor instead of a photograph."""
    model = case.model
    pyramid = model.fpn(model.backbone(tf.constant(case.stages(image)["input"]), training=False))
    proposals, rois, image_index = model.propose_rois(pyramid, case.image_sizes(image), training=False)
    outputs = model.run_heads(pyramid, rois, image_index, training=False)
    return {"proposals": proposals, "rois": rois, "image_index": image_index, **outputs}


def run_from_photograph(case: Case, image: int) -> dict:
    """What the model's `call` returns for the photograph."""
    return case.model({"images": case.photograph(image), "image_sizes": case.image_sizes(image)}, training=False)


def match(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, others: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[float, float]:
    """One-to-one matches of equal class: share of the longer list, largest difference of scores.

    Two boxes match at IoU > 0.99, or when no coordinate differs by more than 0.001 pixel: some boxes here are less than
    0.01 pixel wide, where the rounding of a coordinate is more than a hundredth of the box.
    """
    other_boxes, other_scores, other_classes = others
    top_left = np.maximum(boxes[:, None, :2], other_boxes[None, :, :2])
    size = np.maximum(np.minimum(boxes[:, None, 2:], other_boxes[None, :, 2:]) - top_left, 0.0)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, other_boxes)]
    intersection = np.prod(size, axis=2)
    iou = intersection / (areas[0][:, None] + areas[1][None, :] - intersection)
    distance = np.abs(boxes[:, None] - other_boxes[None, :]).max(axis=2)
    candidate = ((iou > 0.99) | (distance < 1e-3)) & (classes[:, None] == other_classes[None, :])
    apart = np.abs(scores[:, None].astype(np.float64) - other_scores[None, :])
    rows, columns = np.nonzero(candidate)
    used: tuple[set, set] = (set(), set())
    worst = 0.0
    for pair in np.argsort(apart[rows, columns], kind="stable"):
        row, column = rows[pair], columns[pair]
        if row not in used[0] and column not in used[1]:
            used[0].add(row)
            used[1].add(column)
            worst = max(worst, apart[row, column])
    return len(used[0]) / max(len(boxes), len(other_boxes)), float(worst)


def compare_proposals(case: Case, image: int, outputs: dict) -> tuple[float, float]:
    """Share of matched proposals and the largest difference of objectness."""
    stages = case.stages(image)
    valid = outputs["proposals"].valid.numpy()[0]
    boxes = outputs["proposals"].boxes.numpy()[0][valid]
    scores = tf.sigmoid(outputs["proposals"].scores).numpy()[0][valid]
    theirs = case.boxes(stages["proposals"])
    none, others = np.zeros(len(boxes)), np.zeros(len(theirs))
    return match(boxes, scores, none, (theirs, stages["objectness"], others))


def compare_detections(case: Case, image: int, outputs: dict) -> dict[str, tuple[float, float]]:
    """The same for detections, for every way of combining the heads that the reference has."""
    stages, found = case.stages(image), {}
    for name, (score_from, boxes_from) in HEAD_COMBINATIONS.items():
        prefix = MODES[name] if case.legacy else "det"
        if not case.legacy and name != "fc/conv":
            continue
        detections = case.model.detect(outputs, case.image_sizes(image), score_from=score_from, boxes_from=boxes_from)
        count = int(detections.num_detections[0])
        ours = [array.numpy()[0][:count] for array in (detections.boxes, detections.scores, detections.classes)]
        theirs = (case.boxes(stages[f"{prefix}_boxes"]), stages[f"{prefix}_scores"], stages[f"{prefix}_classes"])
        found[name] = match(*ours, theirs)
    return found


def compare_tied_detections(case: Case, image: int, outputs: dict, name: str) -> tuple[float, float]:
    """The same where scores tie at exactly 1: greedy suppression in NumPy, in the order that PyTorch sorts ties in.

    PyTorch's sort is not stable, so which of several RoIs with a score of 1 suppresses the others is decided by its
    sorting algorithm, not by either model. Everything else comes from our model.
    """
    import torch

    score_from, boxes_from = HEAD_COMBINATIONS[name]
    probs = class_probs(outputs, score_from).numpy()
    deltas = outputs[f"{boxes_from}_box_deltas"]
    decoded = decode_boxes(deltas, outputs["rois"][:, None, :], weights=ROI_DELTA_WEIGHTS)
    decoded = clip_boxes(decoded, case.image_sizes(image), geometry=case.model.geometry).numpy()
    kept_boxes, kept_scores, kept_classes = [], [], []
    for index in range(case.model.num_classes):
        candidates = np.flatnonzero(probs[:, index] > case.model.score_threshold)
        boxes, scores = decoded[candidates, index], probs[candidates, index]
        kept = _suppress(boxes, torch.tensor(scores).sort(descending=True)[1].tolist(), case.model.nms_iou)
        kept_boxes.append(boxes[kept])
        kept_scores.append(scores[kept])
        kept_classes.append(np.full(len(kept), index))
    boxes, scores, classes = map(np.concatenate, (kept_boxes, kept_scores, kept_classes))
    best = np.argsort(-scores, kind="stable")[: case.model.max_detections]
    stages, prefix = case.stages(image), MODES[name]
    theirs = (case.boxes(stages[f"{prefix}_boxes"]), stages[f"{prefix}_scores"], stages[f"{prefix}_classes"])
    return match(boxes[best], scores[best], classes[best], theirs)


def _suppress(boxes: np.ndarray, order: list[int], threshold: float) -> list[int]:
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    gone = np.zeros(len(boxes), bool)
    kept = []
    for index in order:
        if gone[index]:
            continue
        kept.append(index)
        size = np.minimum(boxes[index, 2:], boxes[:, 2:]) - np.maximum(boxes[index, :2], boxes[:, :2])
        intersection = np.prod(np.maximum(size, 0.0), axis=1)
        gone |= intersection / (areas[index] + areas - intersection) > threshold
    return kept


def training_batch(case: Case, image: int) -> dict[str, tf.Tensor]:
    """The photograph with the reference's ground truth."""
    stages = case.stages(image)
    return {
        "images": case.photograph(image),
        "image_sizes": case.image_sizes(image),
        "image_ids": tf.constant([image], tf.int64),
        "gt_boxes": tf.constant(case.boxes(stages["gt_boxes_xyxy"])[None]),
        "gt_classes": tf.constant(stages["gt_classes"][None], tf.int32),
        "gt_valid": tf.ones([1, len(stages["gt_classes"])], tf.bool),
    }


def rules_of(case: Case) -> list:
    """The name table that the case's model was converted with."""
    family = {"authors": authors, "mmdetection": mmdetection}[case.family]
    assert family in FAMILIES
    config = family.infer_config(_tensors(case.family), case.family)[0]
    return family.rules(config)


def trainable_paths(case: Case) -> set[str]:
    """Paths of the variables that training changes."""
    trainable = {id(variable) for variable in case.model.trainable_variables}
    return {path for path, variable in variables_by_path(case.model).items() if id(variable) in trainable}


@lru_cache
def _tensors(family: str) -> dict[str, np.ndarray]:
    from dh_keras.pretrained.torch_file import read_torch_file

    return read_torch_file(REFERENCE / FOLDERS[family] / "checkpoint.pth").tensors


def compare_training(case: Case, image: int) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Relative differences of the losses, and of the gradient norms by the reference's tensor names.

    The running statistics of the conv-head move in a training step, so they are put back.
    """
    model, stages = case.model, case.stages(image)
    variables = variables_by_path(model)
    before = {path: variable.numpy() for path, variable in variables.items() if "moving_" in path}
    theirs = meta(case.family)["grad_norms"][image]
    sources = {rule.sources[0]: variables[rule.target] for rule in rules_of(case) if rule.sources[0] in theirs}
    assert set(sources) == set(theirs)
    watched = [variable.value for variable in sources.values()]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        unweighted = model.compute_losses(training_batch(case, image), training=True)
        total = model.weighted_total(unweighted)
    gradients = tape.gradient(total, watched)
    for path, value in before.items():
        variables[path].assign(value)
    losses = {}
    for name, key in LOSSES[case.family].items():
        losses[name] = (float(model.loss_weights[name] * unweighted[name]), float(stages[key]))
    norms = {
        name: (float(tf.linalg.norm(tf.cast(gradient, tf.float64))), theirs[name])
        for name, gradient in zip(sources, gradients, strict=True)
    }
    return losses, norms


def relative(pair: tuple[float, float]) -> float:
    """Relative difference of ours from theirs."""
    return abs(pair[0] - pair[1]) / abs(pair[1])


def print_table() -> None:
    """The largest differences over all reference images."""
    for family in FOLDERS:
        case = load_case(family)
        print(f"\n{family}")
        forward = [compare_forward(case, image) for image in IMAGES]
        for stage in forward[0]:
            absolute, relative_to_largest = np.max([found[stage] for found in forward], axis=0)
            print(f"  {stage:18s} abs {absolute:.1e}  rel {relative_to_largest:.1e}")
        for name, run in (("input tensor", run_from_input), ("photograph", run_from_photograph)):
            outputs = [run(case, image) for image in IMAGES]
            _print_matches(f"proposals from the {name}", [compare_proposals(case, i, outputs[i]) for i in IMAGES])
            found = [compare_detections(case, image, outputs[image]) for image in IMAGES]
            for mode in found[0]:
                _print_matches(f"detections {mode}", [of_image[mode] for of_image in found])
                if case.legacy:
                    tied = [compare_tied_detections(case, image, outputs[image], mode) for image in IMAGES]
                    _print_matches(f"detections {mode}, ties in PyTorch's order", tied)
        training = [compare_training(case, image) for image in IMAGES]
        for name in LOSSES[family]:
            print(f"  {name:20s} rel {max(relative(losses[name]) for losses, _ in training):.1e}")
        worst = {name: max(relative(norms[name]) for _, norms in training) for name in training[0][1]}
        for name in sorted(worst, key=worst.__getitem__, reverse=True)[:5]:
            print(f"  gradient norm rel {worst[name]:.1e} {name} (norm {training[0][1][name][1]:.1e})")


def _print_matches(what: str, matches: list[tuple[float, float]]) -> None:
    shares = ", ".join(f"{share:.1%}" for share, _ in matches)
    print(f"  {what}: matched {shares}; scores within {max(apart for _, apart in matches):.1e}")


if __name__ == "__main__":
    print_table()
