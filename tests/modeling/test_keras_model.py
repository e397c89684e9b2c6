"""The detector as a Keras model: what fit reports, what predict returns, what is saved and what is refused."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.config.schema import TrainConfig
from dh_keras.errors import ConfigError, DataError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.folding import inference_copy
from dh_keras.modeling.layers import FPN, RoIAlign
from dh_keras.modeling.optimizer import RecipeSGD

pytestmark = pytest.mark.usefixtures("quick_graphs")
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (5, 50, 70, 3)).astype(np.uint8)
BOXES = {"boxes": np.float32([[[5, 5, 30, 40]]] * 5), "classes": np.int32([[1]] * 5)}


@pytest.fixture(scope="module")
def config(tiny_overrides):
    return load_config(overrides=[*tiny_overrides, "model.score_threshold=0.0"]).model


@pytest.fixture(scope="module")
def detector(config):
    """Compiled by the recipe; no test changes its weights."""
    detector = assemble_detector(config, num_classes=3)
    detector.compile()
    return detector


class LearnsNumbers(DoubleHeadRCNN):
    """Its only loss is the mean of the images' ids, and one that nothing is known of."""

    def compute_losses(self, batch, *, training):
        kernel = tf.convert_to_tensor(self.heads["fc_head"].fc1.kernel)
        number = tf.reduce_mean(tf.cast(batch["image_ids"], tf.float32))
        return {"rpn_box_loss": number, "new_loss": 2.0 * number + 0.0 * tf.reduce_sum(kernel)}


@pytest.fixture
def learner(detector):
    return LearnsNumbers.from_config(detector.get_config())


def numbered(*ids):
    boxes = tf.ragged.constant([[[5.0, 5, 30, 40]]] * len(ids), ragged_rank=1)
    classes = tf.ragged.constant([[1]] * len(ids))
    return {"images": IMAGES[: len(ids)], "image_ids": np.int64(ids)}, {"boxes": boxes, "classes": classes}


def test_the_history_has_the_means_over_all_images_of_an_epoch_and_keras_callbacks_find_their_loss(learner, tmp_path):
    learner.compile()
    seen = []
    callbacks = [
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(float(logs["loss"]))),
        keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.1),
        keras.callbacks.EarlyStopping(patience=2),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
    ]
    history = learner.fit(
        *numbered(10, 20, 60),
        batch_size=2,
        epochs=5,
        shuffle=False,
        validation_data=numbered(7, 9, 2),
        callbacks=callbacks,
        verbose=0,
    ).history
    assert seen[:2] == pytest.approx([3 * 15, 3 * 30])  # what is new weighs 1
    assert history["loss"] == pytest.approx([90.0] * 3)
    assert history["val_loss"] == pytest.approx([18.0] * 3)
    assert history["new_loss"] == pytest.approx([60.0] * 3)
    assert history["val_rpn_box_loss"] == pytest.approx([6.0] * 3)
    names = {"loss", "new_loss", *LOSS_NAMES}
    assert history.keys() == {*names, *(f"val_{name}" for name in names), "learning_rate"}
    assert history["learning_rate"] == pytest.approx([0.01, 0.01, 0.001])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.keras", "2.keras", "3.keras"]


def test_one_batch_is_trained_and_tested_alone_and_a_new_loss_may_have_a_weight(learner):
    learner.compile(run_eagerly=True)
    assert learner.train_on_batch(*numbered(1, 3))[0] == pytest.approx(6.0)
    assert learner.test_on_batch(*numbered(1, 3, 8), return_dict=True)["loss"] == pytest.approx(12.0)
    assert learner.evaluate(*numbered(4, 4), verbose=0)[0] == pytest.approx(12.0)
    assert learner.metrics_names[0] == "loss"
    learner.loss_weights["new_loss"] = 0.25
    assert learner.train_on_batch(*numbered(1, 3))[0] == pytest.approx(2.0 + 0.25 * 4.0)


def test_without_an_optimizer_the_recipe_is_taken(detector):
    recipe = TrainConfig()
    assert type(detector.optimizer) is RecipeSGD
    assert float(detector.optimizer.learning_rate) == pytest.approx(recipe.lr)
    assert (detector.optimizer.momentum, detector.optimizer.l2) == (recipe.momentum, recipe.l2)


def alone(detector, image):
    """Detections of an image by `call` and `detect`."""
    outputs = detector(image[None])
    return detector.detect(outputs, tf.constant([image.shape[:2]]))._asdict()


def assert_detections(found, expected, index=0):
    for name, values in expected.items():
        atol = 1e-3 if name == "boxes" else 1e-6
        np.testing.assert_allclose(found[name][index], values[0], rtol=1e-4, atol=atol, err_msg=name)


def test_predict_gives_every_image_its_own_detections_however_many_batches(detector):
    found = detector.predict(IMAGES[:4], batch_size=2, verbose=0)
    assert {name: (values.shape, values.dtype) for name, values in found.items()} == {
        "boxes": ((4, 10, 4), np.float32),
        "scores": ((4, 10), np.float32),
        "classes": ((4, 10), np.int32),
        "num_detections": ((4,), np.int32),
    }
    expected = [alone(detector, image) for image in IMAGES[:4]]
    assert not np.allclose(expected[0]["scores"], expected[2]["scores"])
    for index, one in enumerate(expected):
        assert_detections(found, one, index)
    assert np.all(found["num_detections"] > 0)
    assert np.all(found["boxes"][..., 2:] <= [50, 70])


def test_predict_reads_batches_of_several_sizes_and_leaves_out_what_is_not_for_it(detector):
    def batches():
        yield IMAGES[:2], BOXES
        yield IMAGES[2:3, :40, :60], BOXES
        padded = np.pad(IMAGES[3:4], [[0, 0], [0, 14], [0, 26], [0, 0]], constant_values=255)
        yield {"images": padded, "image_sizes": np.int32([[50, 70]])}, BOXES

    detector = detector.with_layers()  # of the same weights
    detector.compile(run_eagerly=True)
    for index, (x, _) in enumerate(batches()):
        image = IMAGES[2, :40, :60] if index == 1 else IMAGES[[0, None, 3][index]]
        assert_detections(detector.predict_on_batch(x), alone(detector, image))
    found = detector.predict(((x, y) for x, y in list(batches())[:2]), steps=2, verbose=0)
    assert found["boxes"].shape == (3, 10, 4)
    assert_detections(found, alone(detector, IMAGES[2, :40, :60]), 2)


REFUSED = [
    (lambda model: model.compile("adam", "mse"), "^`loss`: expected none: the model has its own losses; weigh them"),
    (lambda model: model.compile(loss_weights={"a": 1}), "^`loss_weights`: expected none: "),
    (lambda model: model.compile(metrics=["accuracy"]), "^`metrics`: expected none: measure AP"),
    (lambda model: model.compile(report="never"), "^`report`: expected epoch or step, got 'never'$"),
    (lambda model: model.fit(IMAGES, BOXES, class_weight={0: 2.0}), "^`class_weight`: expected none: repeat"),
    (lambda model: model.fit(IMAGES, BOXES, sample_weight=np.ones(5)), "^`sample_weight`: expected none: leave out"),
    (lambda model: model.train_on_batch(IMAGES, BOXES, np.ones(5)), "^`sample_weight`: expected none: "),
    (lambda model: model.fit(IMAGES / 255, BOXES), "^images: expected numbers in 0..255, got 0..1"),
    (lambda model: model.predict(IMAGES / 255), "^images: expected numbers in 0..255, got 0..1"),
    (lambda model: model.evaluate(IMAGES, {**BOXES, "boxes": BOXES["boxes"] / 100}), "^boxes: expected .* 0..1"),
    (
        lambda model: model.fit(IMAGES, BOXES, validation_data=(IMAGES, {**BOXES, "classes": BOXES["classes"] + 2})),
        "^classes: expected 0..2, or -1 for padding, got larger ones",
    ),
    (lambda model: model.export("new", format="onnx"), "^`format`: expected tf_saved_model, got 'onnx'$"),
    (lambda model: model.export("."), "^.: exists already; choose another folder$"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_right_is_refused_by_name_before_anything_starts(detector, call, message):
    with pytest.raises((ConfigError, DataError), match=message) as error:
        call(detector)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [((), "mixed_bfloat16"), (("model.variant=double_head_ext", "model.conv_head.non_local.channels=8"), "float32")],
)
def test_a_config_of_plain_json_makes_the_same_model(tiny_overrides, overrides, precision):
    changes = ["model.roi.sampling_ratio=0", "model.nms_iou=0.4", "model.backbone.norm=group"]
    config = load_config(overrides=[*tiny_overrides, *overrides, *changes]).model
    model = assemble_detector(config, num_classes=3, seed=7, precision=precision, recompute_heads=True)
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    copy = keras.saving.deserialize_keras_object(stored)
    assert type(copy) is DoubleHeadRCNN
    assert json.loads(json.dumps(keras.saving.serialize_keras_object(copy))) == stored
    assert (copy.variant, copy.rpn, copy.roi, copy.seed) == (model.variant, model.rpn, model.roi, 7)
    assert (copy.nms_iou, copy.recompute_heads, copy.loss_weights) == (0.4, True, model.loss_weights)
    assert [(v.path, v.shape, v.trainable) for v in copy.variables] == [
        (v.path, v.shape, v.trainable) for v in model.variables
    ]
    assert {layer.dtype_policy.name for layer in (copy, copy.backbone.stem.conv, copy.heads["fc_head"].fc1)} == {
        precision
    }
    clone = keras.models.clone_model(model)
    assert [v.shape for v in clone.variables] == [v.shape for v in model.variables]
    assert not any(ours is theirs for ours, theirs in zip(clone.variables, model.variables, strict=True))


LOAD = """
import sys
import dh_keras
assert "keras" not in sys.modules
import keras
import numpy as np
import tensorflow as tf
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
exported = tf.saved_model.load(f"{folder}/exported")
served = exported.serve(images)
assert "dh_keras.modeling" not in sys.modules
model = keras.models.load_model(f"{folder}/model.keras")
found = model.predict(images, verbose=0)
for name, values in found.items():
    np.testing.assert_allclose(served[name], values, rtol=1e-4, atol=1e-3, err_msg=name)
np.savez(f"{folder}/found.npz", iterations=model.optimizer.iterations.numpy(), accumulate=model.accumulate, **found)
"""


def test_a_saved_and_an_exported_model_detect_the_same_in_another_process(config, tmp_path):
    model = assemble_detector(config, num_classes=3, seed=5)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 10)
    model.compile(RecipeSGD(schedule, l2=1e-3, clip_norm=5.0), accumulate=2, run_eagerly=True)
    model.optimizer.iterations.assign(3)
    np.save(tmp_path / "images.npy", IMAGES[:2])
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=False)
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    run = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    for index, image in enumerate(IMAGES[:2]):
        assert_detections(found, alone(model, image), index)
    assert (found["iterations"], found["accumulate"]) == (3, 2)


def some_backbone():
    images = keras.Input([None, None, 3])
    features, outputs = images, {}
    for stage, channels in {"C1": 4, "C2": 8, "C3": 8, "C4": 12, "C5": 12}.items():
        features = keras.layers.Conv2D(channels, 3, strides=2, padding="same", activation="relu")(features)
        outputs[stage] = features
    return keras.Model(images, {stage: outputs[stage] for stage in ("C2", "C3", "C4", "C5")}, name="mine")


@keras.saving.register_keras_serializable(package="tests")
class LayerBackbone(keras.layers.Layer):
    """One that is not built and cannot tell its shapes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.network = some_backbone()

    def call(self, images):
        return self.network(images)


@pytest.mark.parametrize("make", [some_backbone, LayerBackbone])
def test_another_backbone_is_all_that_has_to_be_given(detector, make):
    other = detector.with_layers(backbone=make())
    assert other.rpn_head is detector.rpn_head
    assert other.heads["fc_head"] is detector.heads["fc_head"]
    assert other.fpn is not detector.fpn
    assert [layer.kernel.shape[2] for layer in other.fpn.laterals] == [8, 8, 12, 12]
    other.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    assert np.isfinite(other.train_on_batch(IMAGES[:1], {name: values[:1] for name, values in BOXES.items()})[0])
    expected = alone(other, IMAGES[0])
    assert_detections(alone(inference_copy(other), IMAGES[0]), expected)


def test_other_channels_of_the_pyramid_and_other_sizes_of_roi_features_make_what_reads_them_anew(detector):
    other = detector.with_layers(fpn=FPN(channels=24))
    assert other.backbone is detector.backbone
    assert other.rpn_head.conv.kernel.shape[2] == 24
    assert other.heads["fc_head"].fc1.kernel.shape[0] == 7 * 7 * 24
    assert list(other.heads) == list(detector.heads)
    assert alone(other, IMAGES[0])["boxes"].shape == (1, 10, 4)
    settings = {"sampling_ratio": 2, "geometry": "continuous", "output_size": (5, 3)}
    other = detector.with_layers(roi_align={kind: RoIAlign(scale=1.0, **settings) for kind in ("fc", "conv")})
    assert other.rpn_head is detector.rpn_head
    assert other.heads["fc_head"].fc1.kernel.shape[0] == 5 * 3 * 16
    assert alone(other, IMAGES[0])["boxes"].shape == (1, 10, 4)
