"""Weights that were learnt elsewhere are a better start than random ones: of both published families, of a ResNet."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy_boxes import iou_matrix

from dh_keras.config.load import load_config
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import authors, mmdetection
from dh_keras.pretrained.build import load_backbone
from dh_keras.pretrained.importer import import_checkpoint
from dh_keras.pretrained.resnet_names import resnet_rules
from dh_keras.run.classes import Category
from dh_keras.run.weights import initialize_weights

torch = pytest.importorskip("torch", reason="torch is needed to write checkpoints")
pytestmark = pytest.mark.usefixtures("quick_graphs")

# Both have what their family's files can hold; the rest of the config has no trace in the weights.
FAMILIES = {
    authors: ("model.variant=double_head_ext", "model.conv_head.non_local.channels=8"),
    mmdetection: ("model.variant=double_head", "model.conv_head.non_local.channels=0"),
}
SMALL = ("model.backbone.norm=batch", "model.fc_head.channels=32", "model.conv_head.channels=32")
RED_GREEN_BLUE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
CYAN_PINK_YELLOW = 255 - RED_GREEN_BLUE
CLASSES = ("plate", "tile", "wedge")
SIZE = np.array([96, 128])


def make_task(seed, batches, colors):
    """Batches of four pictures with bright rectangles on noise; a class is the colour in which they shine."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(batches):
        images = random.integers(0, 80, (4, *SIZE, 3)).astype(np.uint8)
        corners, sides = random.uniform(0, SIZE - 48, (4, 3, 2)), random.uniform(16, 48, (4, 3, 2))
        boxes = np.concatenate([corners, corners + sides], axis=-1).round().astype(np.float32)
        classes = random.integers(0, 3, (4, 3)).astype(np.int32)
        for image, of_image, labels in zip(images, boxes.astype(int), classes, strict=True):
            for (y1, x1, y2, x2), label in zip(of_image, labels, strict=True):
                image[y1:y2, x1:x2] = colors[label]
        made.append(
            {
                "images": images,
                "image_sizes": np.tile(SIZE.astype(np.int32), (4, 1)),
                "gt_boxes": boxes,
                "gt_classes": classes,
                "gt_valid": np.ones((4, 3), bool),
                "image_ids": random.integers(0, 10**6, 4),
            }
        )
    stacked = {name: np.stack([batch[name] for batch in made]) for name in made[0]}
    return tf.data.Dataset.from_tensor_slices(stacked)


class Learner:
    """A model that can be set back to its random weights without being traced again."""

    def __init__(self, config):
        self.model = assemble_detector(config.model, num_classes=3, seed=7)
        self.model.compile(optimizer=RecipeSGD(0.02, momentum=0.9, clip_norm=10.0), jit_compile=False)
        self.model.optimizer.build(self.model.trainable_variables)
        self.random = [variable.numpy() for variable in self.model.weights]
        self._detect = tf.function(lambda batch: self.model.detect(self.model(batch), batch["image_sizes"]))

    def set_back(self):
        for variable, value in zip(self.model.weights, self.random, strict=True):
            variable.assign(value)
        for variable in self.model.optimizer.variables:
            if variable.name != "learning_rate":
                variable.assign(keras.ops.zeros_like(variable))

    def learn(self, task, epochs):
        self.model.fit(task, epochs=epochs, shuffle=False, verbose=0)

    def found(self, task):
        """Share of the objects that the three best detections of their picture hit, by class and place."""
        hits = []
        for batch in task:
            images = {name: batch[name] for name in ("images", "image_sizes")}
            detections = self._detect(images)
            for image in range(4):
                best = slice(0, min(int(detections.num_detections[image]), 3))
                overlap = iou_matrix(batch["gt_boxes"][image].numpy(), detections.boxes[image, best].numpy())
                same = batch["gt_classes"][image].numpy()[:, None] == detections.classes[image, best].numpy()
                hits += (same & (overlap > 0.5)).any(axis=1).tolist()
        return np.mean(hits)


def foreign_tensors(rules, variables):
    """What a file holds whose tensors become these variables by the rules: each conversion moves values about."""
    tensors = {}
    for rule in rules:
        value = variables[rule.target].numpy()
        if rule.combine is not None:  # the scale of a norm with another epsilon
            variance = variables[rule.target.replace("gamma", "moving_variance")].numpy()
            value = value / rule.combine(np.ones_like(value), variance)
        shape = rule.conversion.shape(value.shape)
        places = rule.conversion.convert(np.arange(np.prod(shape)).reshape(shape))
        tensor = np.zeros(np.prod(shape), np.float32)
        tensor[places.ravel()] = value.ravel()
        tensors[rule.sources[0]] = tensor.reshape(shape)
    return tensors


def write_checkpoint(path, tree):
    torch.save(tf.nest.map_structure(torch.from_numpy, tree), path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=("authors", "mmdetection"))
def test_fine_tuning_beats_random_weights_on_the_same_budget(family, tiny_overrides, tmp_path):
    config = load_config(overrides=[*tiny_overrides, *SMALL, *FAMILIES[family]])
    learner = Learner(config)
    before, task, unseen = (
        make_task(seed, batches, colors)
        for seed, batches, colors in ((1, 40, RED_GREEN_BLUE), (2, 10, CYAN_PINK_YELLOW), (3, 8, CYAN_PINK_YELLOW))
    )
    learner.learn(task, epochs=3)
    from_random = learner.found(unseen)

    learner.set_back()
    learner.learn(before, epochs=3)
    variables = variables_by_path(learner.model)
    published = foreign_tensors(family.rules(config), variables)
    write_checkpoint(tmp_path / "published.pth", {"model": published})
    backbone = {path.removeprefix("backbone/"): v for path, v in variables.items() if path.startswith("backbone/")}
    rules = resnet_rules(config.model.backbone.depth, prefix="", target="")
    write_checkpoint(tmp_path / "resnet.pth", foreign_tensors(rules, backbone))
    learnt = [variable.numpy() for variable in learner.model.trainable_variables]

    import_checkpoint(tmp_path / "published.pth", output=tmp_path / "run")
    learner.set_back()
    categories = [Category(number, name) for number, name in enumerate(CLASSES, start=1)]
    skipped = initialize_weights(learner.model, tmp_path / "run", categories)
    same = [np.allclose(v, w, rtol=1e-5) for v, w in zip(learner.model.trainable_variables, learnt, strict=True)]
    assert len(same) - sum(same) == len(skipped) > 0  # all but the predictors
    learner.learn(task, epochs=3)
    assert learner.found(unseen) > from_random + 0.05

    if family is mmdetection:  # once is enough: the ResNets are the same
        learner.set_back()
        named = dataclasses.replace(config.model.backbone, weights=str(tmp_path / "resnet.pth"))
        load_backbone(learner.model.backbone, dataclasses.replace(config.model, backbone=named))
        learner.learn(task, epochs=3)
        assert learner.found(unseen) > from_random + 0.05
