"""The whole detector: training steps of every variant, empty images, the guard, saving."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.modeling.ops.machine import traced_for
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.proposals import Proposals
from dh_keras.modeling.training_step import PREVIOUS_NORM
from dh_keras.modeling.variants import VARIANTS
from dh_keras.run.weights import load_weights, save_weights

pytestmark = pytest.mark.usefixtures("quick_graphs")


@functools.lru_cache(maxsize=1)
def traced_step(detector):
    """Tracing takes seconds, and a test may take its steps in several goes."""
    return tf.function(detector.train_step, autograph=False)


def losses_of(detector, batch, steps):
    """Losses of each of several steps, each step's own."""
    step, history = traced_step(detector), []
    for _ in range(steps):
        detector.reset_metrics()
        history.append({name: float(value) for name, value in step(batch).items() if name != "data_wait"})
    return history


# Nothing averages over a batch of two images, every RoI is sampled, and the heads are wide enough to learn it by heart.
LEARNS_A_BATCH = (
    "model.backbone.norm=group",
    "model.conv_head.norm=group",
    "model.conv_head.channels=64",
    "model.fc_head.channels=64",
    "model.roi.batch_size=24",
    "model.roi.foreground_fraction=0.75",
)


def proposals_around(batch):
    """Ground truth moved by a tenth of its size in four directions, with some boxes of background."""
    shifts = tf.constant([[0.1, 0.0], [-0.1, 0.05], [0.05, -0.12], [0.0, 0.12]])
    boxes = batch["gt_boxes"]
    moves = shifts[None, :, None, :] * (boxes[..., 2:] - boxes[..., :2])[:, None]
    moved = tf.reshape(boxes[:, None] + tf.concat([moves, moves], axis=-1), [2, -1, 4])
    background = tf.constant([[0.0, 60, 30, 80], [60, 60, 80, 100], [70, 0, 95, 20]])[None]
    boxes = tf.concat([moved, tf.tile(background, [2, 1, 1])], axis=1)
    valid = tf.concat([tf.tile(batch["gt_valid"], [1, 4]), tf.ones([2, 3], tf.bool)], axis=1)
    return Proposals(boxes, tf.zeros(tf.shape(valid)), valid)


# Each head alone and both together are in every run of the suite; the other variants combine the same.
USUAL = ("single_fc", "single_conv", "double_head", "double_head_ext")


@pytest.mark.parametrize(
    "variant", [pytest.param(one, marks=[] if one in USUAL else pytest.mark.slow) for one in VARIANTS]
)
def test_every_loss_of_every_variant_falls(make_tiny_detector, batch, variant, monkeypatch):
    non_local = 8 if variant == "double_head_ext" else 0
    overrides = (f"model.variant={variant}", f"model.conv_head.non_local.channels={non_local}")
    detector = make_tiny_detector(*overrides, *LEARNS_A_BATCH, lr=0.02, clip_norm=5.0)
    # The better the RPN, the more foreground RoIs the box loss counts; with the same proposals in every step it falls.
    monkeypatch.setattr(detector, "propose", lambda *arguments, **options: proposals_around(batch))
    history = losses_of(detector, batch, 80)
    start, end = (
        {name: np.mean([one[name] for one in part]) for name in history[0]} for part in (history[:4], history[-8:])
    )
    present = {f"{name}_loss" for name in VARIANTS[variant].loss_weights}
    for name in ("rpn_objectness_loss", "rpn_box_loss", "total_loss", *present):
        assert 0 <= end[name] < 0.6 * start[name], (name, start[name], end[name])
    assert all(one[name] == 0 for one in history for name in set(LOSS_NAMES[2:]) - present)
    weights = {"rpn_objectness_loss": 1, "rpn_box_loss": 1}
    weights |= {f"{name}_loss": weight for name, weight in VARIANTS[variant].loss_weights.items()}
    expected = sum(weight * history[0][name] for name, weight in weights.items())
    assert history[0]["total_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "predictors"),
    [
        ("single_fc", {"fc_head": {"class", "box"}}),
        ("single_conv", {"conv_head": {"class", "box"}}),
        ("double_fc", {"fc_class_head": {"class"}, "fc_box_head": {"box"}}),
        ("double_conv", {"conv_class_head": {"class"}, "conv_box_head": {"box"}}),
        ("double_head", {"fc_head": {"class"}, "conv_head": {"box"}}),
        ("double_head_reverse", {"fc_head": {"box"}, "conv_head": {"class"}}),
        ("double_head_ext", {"fc_head": {"class", "box"}, "conv_head": {"class", "box"}}),
    ],
)
def test_a_variant_has_variables_for_its_own_tasks_only(make_tiny_detector, variant, predictors):
    detector = make_tiny_detector(f"model.variant={variant}")
    found = {name: set() for name in detector.heads}
    for name, head in detector.heads.items():
        for variable in head.variables:
            for task in ("class", "box"):
                if f"{task}_predictor" in variable.path:
                    found[name].add(task)
    assert found == predictors
    assert set(detector.roi_align) == {spec.kind for spec in VARIANTS[variant].heads}


def test_images_without_ground_truth_train_without_a_foreground_loss(make_tiny_detector, batch):
    detector = make_tiny_detector()
    nothing = {**batch, "gt_valid": tf.zeros_like(batch["gt_valid"]), "gt_boxes": tf.zeros_like(batch["gt_boxes"])}
    for _ in range(2):
        logs = losses_of(detector, nothing, 1)[0]
        assert logs["conv_box_loss"] == 0.0
        assert logs["rpn_box_loss"] == 0.0
        assert 0 < logs["fc_class_loss"] < 5
        assert 0 < logs["rpn_objectness_loss"] < 5
    one_empty = {**batch, "gt_valid": tf.constant([[True, True, True], [False, False, False]])}
    logs = losses_of(detector, one_empty, 1)[0]
    assert logs["conv_box_loss"] > 0
    no_columns = {
        **batch,
        "gt_boxes": tf.zeros([2, 0, 4]),
        "gt_classes": tf.zeros([2, 0], tf.int32),
        "gt_valid": tf.zeros([2, 0], tf.bool),
    }
    assert np.isfinite(losses_of(detector, no_columns, 1)[0]["total_loss"])
    assert all(np.isfinite(variable.numpy()).all() for variable in detector.variables)


def test_padded_ground_truth_changes_nothing(make_tiny_detector, batch):
    wider = {
        **batch,
        "gt_boxes": tf.pad(batch["gt_boxes"], [[0, 0], [0, 4], [0, 0]], constant_values=50.0),
        "gt_classes": tf.pad(batch["gt_classes"], [[0, 0], [0, 4]]),
        "gt_valid": tf.pad(batch["gt_valid"], [[0, 0], [0, 4]]),
    }
    detector = make_tiny_detector()
    # Sampling draws by position among ground truth and proposals, so only the RPN sees the same anchors.
    ours, theirs = (detector.compute_losses(one, training=False) for one in (batch, wider))
    for name in LOSS_NAMES[:2]:
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-6)


def test_a_non_finite_loss_changes_nothing_and_the_step_after_it_knows(make_tiny_detector, batch):
    detector = make_tiny_detector()
    assert np.isfinite(losses_of(detector, batch, 2)[1][PREVIOUS_NORM])
    head = detector.heads["fc_head"].predictors.class_predictor
    bias = head.bias.numpy()
    head.bias.assign(bias + np.inf)
    kept = [*detector.trainable_variables, *detector.optimizer.variables]
    before = [variable.numpy() for variable in kept]
    last = losses_of(detector, batch, 1)[0]
    assert [name for name in LOSS_NAMES if not np.isfinite(last[name])] == ["fc_class_loss"]
    assert np.isfinite(last[PREVIOUS_NORM])
    assert not np.isfinite(detector.gradient_norm.numpy())
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    head.bias.assign(bias)
    assert not np.isfinite(losses_of(detector, batch, 1)[0][PREVIOUS_NORM])
    assert np.isfinite(detector.gradient_norm.numpy())
    assert int(detector.optimizer.iterations) == 3


def test_no_gradient_waits_for_the_host_to_see_whether_it_is_finite(make_tiny_detector, batch):
    graph = tf.function(make_tiny_detector().train_step, autograph=False).get_concrete_function(batch).graph
    kinds = {op.type for op in graph.get_operations()}
    assert kinds.isdisjoint({"Assert", "AsString", "StringFormat", "StringJoin", "If", "StatelessIf"})


def test_a_test_step_measures_the_same_losses_without_changing_anything(make_tiny_detector, batch):
    detector = make_tiny_detector()
    before = [variable.numpy() for variable in detector.trainable_variables + detector.optimizer.variables]
    logs = detector.test_step(batch)
    again = detector.compute_losses(batch, training=False)
    for name in LOSS_NAMES:
        assert float(logs[name]) == pytest.approx(float(again[name]), rel=1e-5)
    after = detector.trainable_variables + detector.optimizer.variables
    assert all(np.array_equal(v.numpy(), value) for v, value in zip(after, before, strict=True))


def test_frozen_statistics_stay_frozen_and_stem_and_first_stage_get_no_gradient(make_tiny_detector, batch):
    detector = make_tiny_detector("model.backbone.norm=frozen", "model.backbone.frozen_stages=1", l2=1e-2)
    before = {v.path: v.numpy() for v in detector.backbone.variables}
    head_before = {v.path: v.numpy() for v in detector.heads["conv_head"].non_trainable_variables}
    losses_of(detector, batch, 2)
    changed = {v.path for v in detector.backbone.variables if not np.array_equal(v.numpy(), before[v.path])}
    assert changed
    assert all("conv/kernel" in path and "stem" not in path and "c2" not in path for path in changed)
    assert all(
        not np.array_equal(v.numpy(), head_before[v.path])
        for v in detector.heads["conv_head"].non_trainable_variables
        if "moving" in v.path
    )


def test_the_step_is_traced_once_for_all_canvases(make_tiny_detector, batch):
    detector = make_tiny_detector()
    specs = {
        name: tf.TensorSpec([2, *[None] * (tensor.shape.rank - 1)], tensor.dtype) for name, tensor in batch.items()
    }
    specs["images"] = tf.TensorSpec([2, None, None, 3], tf.uint8)
    step = tf.function(detector.train_step, input_signature=[specs], autograph=False)
    portrait = {
        **batch,
        "images": tf.transpose(batch["images"], [0, 2, 1, 3]),
        "image_sizes": batch["image_sizes"][:, ::-1],
    }
    for one in (batch, portrait, {**batch, "images": batch["images"][:, :96, :96], "image_sizes": tf.fill([2, 2], 96)}):
        step(one)
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("variant", ["double_head", "double_head_ext"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_for_a_gpu_the_conv_head_sees_few_numbers_of_rois_and_detections_stay(
    make_tiny_detector, batch, variant, threshold, monkeypatch
):
    detector = make_tiny_detector(f"model.variant={variant}", f"model.score_threshold={threshold}")
    rows, head = [], detector.heads["conv_head"]
    feature_map = head.feature_map
    monkeypatch.setattr(head, "feature_map", lambda x, **options: rows.append(len(x)) or feature_map(x, **options))
    inputs = {name: batch[name] for name in ("images", "image_sizes")}
    expected = detector(inputs)
    with traced_for("gpu"):
        padded = detector(inputs)
    assert rows == [max(len(expected["rois"]), 1), 64]
    assert rows[0] == (1 if variant == "double_head" and threshold else 48)
    for name in expected.keys() - {"proposals"}:
        np.testing.assert_allclose(padded[name], expected[name], atol=1e-5, err_msg=name)
    ours, theirs = (detector.detect(outputs, batch["image_sizes"]) for outputs in (padded, expected))
    np.testing.assert_array_equal(ours.num_detections, theirs.num_detections)


def test_compiling_turns_xla_off_even_where_a_gpu_is_visible(make_tiny_detector, monkeypatch):
    detector = make_tiny_detector()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a gpu"])
    assert detector.jit_compile is False
    assert all(layer.supports_jit is False for layer in detector.roi_align.values())


def test_sampling_depends_on_image_and_step_not_on_the_place_in_the_batch(make_tiny_detector, batch):
    detector = make_tiny_detector("model.rpn.batch_size=8")
    swapped = {name: tf.reverse(tensor, [0]) for name, tensor in batch.items()}
    ours, theirs = (detector.compute_losses(one, training=False) for one in (batch, swapped))
    for name in LOSS_NAMES:
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-6)
    other = detector.compute_losses({**batch, "image_ids": batch["image_ids"] + 5}, training=False)
    assert float(other["rpn_objectness_loss"]) != float(ours["rpn_objectness_loss"])


def test_detections_depend_on_the_weights_alone_and_survive_saving(make_tiny_detector, batch, tmp_path):
    detector = make_tiny_detector("model.variant=double_head_ext", "model.conv_head.non_local.channels=8")
    losses_of(detector, batch, 2)
    save_weights(detector, tmp_path / "a.weights.h5")
    assert isinstance(detector.optimizer, RecipeSGD)
    other = make_tiny_detector("model.variant=double_head_ext", "model.conv_head.non_local.channels=8", seed=5)
    load_weights(other, tmp_path / "a.weights.h5")
    for ours, theirs in zip(detector.variables, other.variables, strict=True):
        if "heads" in ours.path or "backbone" in ours.path:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    inputs = {name: batch[name] for name in ("images", "image_sizes")}
    for score_from in ("fc", "conv", "fused"):
        ours, theirs = (d.detect(d(inputs), batch["image_sizes"], score_from=score_from) for d in (detector, other))
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        assert np.all(ours.boxes >= 0)
        assert np.all(ours.boxes[1, :, 2] <= 80)
        assert np.all(ours.boxes[1, :, 3] <= 100)


def test_an_image_alone_gets_the_detections_it_gets_in_a_batch(make_tiny_detector, batch):
    detector = make_tiny_detector("model.score_threshold=0.0")
    inputs = {name: batch[name] for name in ("images", "image_sizes")}
    together = detector.detect(detector(inputs), batch["image_sizes"])
    alone_inputs = {name: tensor[1:] for name, tensor in inputs.items()}
    alone = detector.detect(detector(alone_inputs), alone_inputs["image_sizes"])
    np.testing.assert_allclose(together.scores[1], alone.scores[0], atol=1e-5)
    np.testing.assert_allclose(together.boxes[1], alone.boxes[0], atol=1e-2)


def test_a_head_without_classes_is_refused():
    from dh_keras.config.load import load_config
    from dh_keras.modeling.builder import assemble_detector

    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        assemble_detector(load_config().model, num_classes=0)
