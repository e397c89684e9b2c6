"""What may be left out of a training step or done in another precision, and what must not change by it."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.modeling import targets
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.folding import inference_copy
from dh_keras.modeling.ops.machine import traced_for
from dh_keras.modeling.ops.sampling import sample_balanced
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.training_step import _for_reduction
from dh_keras.modeling.variables import variables_by_path

pytestmark = pytest.mark.usefixtures("quick_graphs")


def losses_and_gradients(detector, batch):
    with tf.GradientTape() as tape:
        losses = detector.compute_losses(batch, training=True)
        total = detector.weighted_total(losses)
    gradients = tape.gradient(total, detector.trainable_variables)
    return losses, dict(zip((v.path for v in detector.trainable_variables), gradients, strict=True))


def assert_same(ours, theirs, tolerance):
    for name in LOSS_NAMES:
        assert float(ours[0][name]) == pytest.approx(float(theirs[0][name]), rel=tolerance, abs=1e-7), name
    assert set(ours[1]) == set(theirs[1])
    for path, gradient in theirs[1].items():
        if gradient is None:
            assert ours[1][path] is None
            continue
        expected = tf.convert_to_tensor(gradient).numpy()
        np.testing.assert_allclose(
            tf.convert_to_tensor(ours[1][path]), expected, atol=tolerance * np.abs(expected).max() + 1e-8, err_msg=path
        )


@pytest.mark.parametrize("norm", ["group", "frozen"])
@pytest.mark.parametrize("variant", ["double_head", "double_head_reverse"])
def test_a_head_that_only_places_boxes_sees_foreground_alone_and_nothing_changes(
    make_tiny_detector, batch, variant, norm, monkeypatch
):
    detector = make_tiny_detector(f"model.variant={variant}", f"model.conv_head.norm={norm}")
    kind = detector.variant.boxes_from
    assert detector.foreground_only == {kind}
    seen = {}
    run_heads = detector.run_heads
    monkeypatch.setattr(
        detector,
        "run_heads",
        lambda pyramid, rois, *rest, **options: (
            seen.update({options["kinds"]: len(rois)}) or run_heads(pyramid, rois, *rest, **options)
        ),
    )
    pruned = losses_and_gradients(detector, batch)
    assert 0 < seen[(kind,)] < seen[("fc" if kind == "conv" else "conv",)]
    monkeypatch.setattr(type(detector), "foreground_only", set())
    everything = losses_and_gradients(detector, batch)
    assert seen[("fc",)] == seen[("conv",)]
    assert float(everything[0][f"{kind}_box_loss"]) > 0
    assert_same(pruned, everything, tolerance=2e-5)


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (("model.conv_head.norm=batch",), set()),
        (("model.conv_head.norm=sync",), set()),
        (("model.variant=double_head_ext", "model.conv_head.norm=group"), set()),
        (("model.variant=single_conv", "model.conv_head.norm=group"), set()),
        (("model.variant=double_conv", "model.conv_head.norm=group"), set()),
        (("model.variant=double_head_reverse", "model.conv_head.norm=batch"), {"fc"}),
    ],
)
def test_heads_with_classes_or_with_statistics_over_rois_see_all(make_tiny_detector, overrides, kinds):
    assert make_tiny_detector(*overrides).foreground_only == kinds


def test_without_any_foreground_the_box_loss_is_zero_and_the_gradients_finite(make_tiny_detector, batch):
    detector = make_tiny_detector("model.conv_head.norm=group")
    empty = {**batch, "gt_valid": tf.zeros_like(batch["gt_valid"]), "gt_boxes": tf.zeros_like(batch["gt_boxes"])}
    losses, gradients = losses_and_gradients(detector, empty)
    assert float(losses["conv_box_loss"]) == 0.0
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients.values() if g is not None)


@pytest.mark.parametrize("norm", ["group", "frozen"])
@pytest.mark.parametrize("has_foreground", [True, False])
def test_for_a_gpu_the_conv_head_sees_as_many_rois_as_can_be_foreground_and_nothing_changes(
    make_tiny_detector, batch, norm, has_foreground, monkeypatch
):
    detector = make_tiny_detector(f"model.conv_head.norm={norm}", "model.roi.foreground_fraction=0.75")
    if not has_foreground:
        batch |= {name: tf.zeros_like(batch[name]) for name in ("gt_valid", "gt_boxes")}
    rows, head = [], detector.heads["conv_head"]
    feature_map = head.feature_map
    monkeypatch.setattr(head, "feature_map", lambda x, **options: rows.append(len(x)) or feature_map(x, **options))
    expected = losses_and_gradients(detector, batch)
    with traced_for("gpu"):
        padded = losses_and_gradients(detector, batch)
    assert rows[1] == 2 * 12  # three quarters of the 16 RoIs of two images
    assert 1 < rows[0] < 24 if has_foreground else rows[0] == 1
    assert (float(expected[0]["conv_box_loss"]) > 0) == has_foreground
    assert_same(padded, expected, tolerance=2e-6)


@pytest.mark.parametrize("geometry", ["continuous", "legacy"])
def test_blank_rois_leave_the_gradients_of_float16_finite(batch, tiny_overrides, geometry):
    overrides = [*tiny_overrides, "model.conv_head.norm=group", f"model.geometry={geometry}"]
    config = load_config(overrides=[*overrides, "model.roi.sampling_ratio=0"]).model
    detector = assemble_detector(config, num_classes=3, precision="mixed_float16")
    detector.compile(RecipeSGD(0.01), report="step")
    with traced_for("gpu"):
        _, gradients = losses_and_gradients(detector, batch)
    for path, gradient in gradients.items():
        assert gradient is None or np.isfinite(tf.convert_to_tensor(gradient)).all(), path


def statistics_of(detector):
    return {path: v.numpy() for path, v in variables_by_path(detector).items() if "moving" in path}


@pytest.mark.parametrize(
    ("variant", "norm"),
    [pytest.param("double_head_ext", "group", marks=pytest.mark.slow), ("double_head", "batch")],
)
def test_recomputed_heads_have_the_same_gradients_and_moving_statistics(batch, tiny_overrides, variant, norm):
    overrides = [*tiny_overrides, f"model.variant={variant}", f"model.conv_head.norm={norm}"]
    config = load_config(overrides=[*overrides, "model.conv_head.non_local.channels=8"]).model
    found, moved = [], []
    for recompute in (False, True):
        detector = assemble_detector(config, num_classes=3, recompute_heads=recompute)
        detector.compile(RecipeSGD(0.01), report="step")
        before = statistics_of(detector)
        found.append(tf.function(lambda detector=detector: losses_and_gradients(detector, batch), autograph=False)())
        moved.append({path: value - before[path] for path, value in statistics_of(detector).items()})
    assert_same(found[1], found[0], tolerance=1e-5)
    in_the_head = [np.abs(move).max() for path, move in moved[0].items() if "conv_head" in path]
    assert len(in_the_head) == (0 if norm == "group" else 14)
    assert max(in_the_head, default=0.2) > 0.1
    for path, move in moved[0].items():
        np.testing.assert_allclose(moved[1][path], move, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(("precision", "dtype"), [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")])
def test_mixed_precision_keeps_weights_and_losses_in_float32_and_the_losses_close(
    batch, tiny_overrides, precision, dtype
):
    config = load_config(overrides=[*tiny_overrides, "model.variant=double_head_ext", "model.conv_head.norm=group"])
    exact = assemble_detector(config.model, num_classes=3)
    mixed = assemble_detector(config.model, num_classes=3, precision=precision)
    for detector in (exact, mixed):
        detector.compile(RecipeSGD(0.01), report="step")
    for path, variable in variables_by_path(mixed).items():
        assert variable.dtype == "float32", path
        np.testing.assert_array_equal(variable, variables_by_path(exact)[path])
    pyramid = mixed.extract_features(batch, training=True)
    assert {features.dtype.name for features in pyramid.values()} == {dtype}
    ours, theirs = (detector.compute_losses(batch, training=False) for detector in (mixed, exact))
    for name in LOSS_NAMES:
        assert ours[name].dtype == tf.float32
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=0.05, abs=1e-3), name


def test_float16_scales_its_loss_and_skips_a_step_whose_gradients_overflow(batch, tiny_overrides):
    config = load_config(overrides=list(tiny_overrides)).model
    detector = assemble_detector(config, num_classes=3, precision="mixed_float16")
    detector.compile(RecipeSGD(0.01), report="step")
    detector.optimizer.dynamic_scale.assign(1e30)
    step = tf.function(detector.train_step, autograph=False)
    before = [variable.numpy() for variable in detector.trainable_variables]
    step(batch)
    assert float(detector.optimizer.dynamic_scale) == pytest.approx(5e29)
    assert all(np.array_equal(v, b) for v, b in zip(detector.trainable_variables, before, strict=True))
    detector.optimizer.dynamic_scale.assign(64.0)
    logs = step(batch)
    assert np.isfinite(float(logs["total_loss"]))
    assert not all(np.array_equal(v, b) for v, b in zip(detector.trainable_variables, before, strict=True))


def test_two_batches_make_the_update_of_one_that_is_twice_as_large(make_tiny_detector, batch):
    batch = {name: tf.concat([values, values], axis=0) for name, values in batch.items()}
    batch["image_ids"] = tf.range(4, dtype=tf.int64)
    # Every image has its eight anchors and eight RoIs.
    sampled = ("model.rpn.batch_size=8", "model.rpn.ignore_border=false", "model.roi.batch_size=8")
    runs = []
    for accumulate in (1, 2):
        detector = make_tiny_detector(*sampled, "model.backbone.norm=frozen", "model.conv_head.norm=group")
        detector.compile(RecipeSGD(0.1, momentum=0.9, l2=1e-3, clip_norm=5.0), accumulate=accumulate, report="step")
        compute_losses, seen = detector.compute_losses, []
        detector.compute_losses = lambda part, training, seen=seen, compute_losses=compute_losses: (
            seen.append(part["image_ids"].shape[0]) or compute_losses(part, training=training)
        )
        start = [variable.numpy() for variable in detector.trainable_variables]
        step = tf.function(detector.train_step, autograph=False)
        losses = [step(batch) for _ in range(3)]
        assert seen == [4 // accumulate] * accumulate
        assert int(detector.optimizer.iterations) == 3
        runs.append((losses, [variable.numpy() for variable in detector.trainable_variables]))
    for ours, theirs in zip(runs[1][0], runs[0][0], strict=True):
        for name in (*LOSS_NAMES, "total_loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-6), name
    for ours, theirs in zip(runs[1][1], runs[0][1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert max(np.abs(ours - first).max() for ours, first in zip(runs[1][1], start, strict=True)) > 1e-2


def test_a_part_begins_when_the_gradients_of_the_one_before_are_there(make_tiny_detector, batch):
    """Else TensorFlow computes them beside each other, and needs the memory of the whole batch."""
    detector = make_tiny_detector()
    detector.compile(RecipeSGD(0.1), accumulate=2, report="step")
    graph = tf.function(detector.train_step, autograph=False).get_concrete_function(batch).graph
    splits = {output.ref() for op in graph.get_operations() if op.type == "Split" for output in op.outputs}
    parts = [op for op in graph.get_operations() if op.type == "Identity" and op.inputs[0].ref() in splits]
    assert [bool(op.control_inputs) for op in parts] == [False] * len(batch) + [True] * len(batch)
    (barrier,) = {control for op in parts for control in op.control_inputs}
    waited_for = {op for group in barrier.control_inputs for op in group.control_inputs} | set(barrier.control_inputs)
    assert len(waited_for) > 20


class TrainsItsBiasesToo(DoubleHeadRCNN):
    """A detector whose criterion has one term more."""

    def compute_losses(self, batch, *, training):
        biases = [tf.convert_to_tensor(v) for v in self.trainable_variables if v.name == "bias"]
        losses = super().compute_losses(batch, training=training)
        return losses | {"bias_loss": tf.add_n([tf.reduce_sum((bias - 1.0) ** 2) for bias in biases])}


def test_a_subclass_trains_by_losses_of_its_own(make_tiny_detector, batch):
    published = make_tiny_detector()
    names = inspect.signature(DoubleHeadRCNN.__init__).parameters.keys() - {"self", "kwargs"}
    settings = {name: getattr(published, name) for name in names}
    weights = published.loss_weights
    detector = TrainsItsBiasesToo(**settings | {"loss_weights": {**weights, "bias_loss": 0.5}}, name=published.name)
    detector.build()
    detector.compile(RecipeSGD(0.1, momentum=0.0))
    number = sum(v.shape[0] for v in detector.trainable_variables if v.name == "bias")
    history = detector.fit(tf.data.Dataset.from_tensors(batch).repeat(3), verbose=0, epochs=2, steps_per_epoch=1)
    logs = {name: values[0] for name, values in history.history.items()}
    assert logs["bias_loss"] == pytest.approx(number, rel=1e-6)  # new biases are zero
    expected = sum(weights[name] * logs[name] for name in LOSS_NAMES) + 0.5 * number
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert history.history["bias_loss"][1] < 0.9 * number
    detector.reset_metrics()
    assert detector.test_step(batch)["bias_loss"] < history.history["bias_loss"][1]
    assert type(inference_copy(detector)) is TrainsItsBiasesToo


def test_the_rpn_losses_of_two_shapes_in_a_batch_are_those_of_each_alone(make_tiny_detector, batch):
    """Features beyond an image's own canvas are zero, as a convolution's padding is where the image is alone."""
    detector = make_tiny_detector(
        "model.rpn.ignore_border=false",
        "model.rpn.batch_size=100000",
        "model.rpn.positive_fraction=1.0",
        "model.rpn.positive_iou=0.5",
        "model.rpn.negative_iou=0.5",  # so that all anchors are sampled
    )
    sizes, canvases = [[90, 40], [30, 120]], [[96, 64], [32, 128]]
    batch = {**batch, "image_sizes": tf.constant(sizes)}
    batch["gt_boxes"] = tf.constant([[[8.0, 10.0, 40.0, 30.0]] * 3, [[2.0, 60.0, 28.0, 119.0]] * 3])
    strides = {f"P{level}": 2**level for level in range(2, 7)}
    random = np.random.default_rng(0)
    maps, alone = {}, [{}, {}]
    for level, stride in strides.items():
        maps[level] = np.zeros([2, -(-96 // stride), -(-128 // stride), 16], np.float32)
        for image, canvas in enumerate(canvases):
            height, width = (-(-side // stride) for side in canvas)
            alone[image][level] = random.normal(size=(1, height, width, 16), scale=50).astype(np.float32)
            maps[level][image, :height, :width] = alone[image][level][0]

    def losses(pyramid, some):
        pyramid = {level: tf.constant(features) for level, features in pyramid.items()}
        anchors = detector.anchors(pyramid)
        seeds = tf.zeros([len(some["image_ids"]), 2], tf.int64)
        count = sum(len(boxes) for boxes in anchors.values())
        return {name: float(loss) for name, loss in detector.rpn_losses(pyramid, anchors, some, seeds).items()}, count

    together, _ = losses(maps, batch)
    apart = [losses(alone[i], {name: values[i : i + 1] for name, values in batch.items()}) for i in range(2)]
    anchors = sum(count for _, count in apart)
    for name, loss in together.items():
        assert loss == pytest.approx(sum(own[name] * count for own, count in apart) / anchors, rel=1e-5), name
        assert apart[0][0][name] != pytest.approx(apart[1][0][name], rel=1e-3)


def test_no_sampling_of_anchors_or_rois_draws_as_another_one_does(make_tiny_detector, batch, monkeypatch):
    """Whatever the step, and for images whose ids follow each other."""
    detector, drawn = make_tiny_detector(), []

    def record(foreground, background, seeds, **options):
        drawn.extend(tuple(row) for row in seeds.numpy().tolist())
        return sample_balanced(foreground, background, seeds, **options)

    monkeypatch.setattr(targets, "sample_balanced", record)
    for step in range(3):
        detector.optimizer.iterations.assign(step)
        detector.compute_losses(batch, training=True)
    assert len(set(drawn)) == len(drawn) == 3 * 2 * 2


def test_the_logs_of_a_job_of_one_worker_are_scalars(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        assert _for_reduction({"total_loss": tf.constant(2.0)})["total_loss"].shape == ()
