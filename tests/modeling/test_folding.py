"""The copy for inference gives the detector's numbers: batch norms folded, RoIs that cannot be detected left out."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.detections import class_probs
from dh_keras.modeling.folding import inference_copy
from dh_keras.modeling.variables import variables_by_path
from dh_keras.modeling.variants import VARIANTS

EXT = ("model.variant=double_head_ext", "model.conv_head.non_local.channels=8", "model.conv_head.blocks=2")


def with_random_norms(detector):
    """Give every norm and every zero-initialised kernel values that a trained network might have."""
    random = np.random.default_rng(3)
    for path, variable in variables_by_path(detector).items():
        part = path.rpartition("/")[2]
        if part in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif part in ("beta", "moving_mean", "bias") or "output_conv/kernel" in path or "predictor/kernel" in path:
            variable.assign(random.normal(0, 0.2, variable.shape))
    return detector


def inputs_of(batch):
    return {name: batch[name] for name in ("images", "image_sizes")}


def outputs_of(detector, batch):
    """Head outputs of all proposals, none left out."""
    pyramid = detector.extract_features(inputs_of(batch), training=False)
    _, rois, image_index = detector.propose_rois(pyramid, batch["image_sizes"], training=False)
    return {
        "rois": rois,
        "image_index": image_index,
        **detector.run_heads(pyramid, rois, image_index, training=False),
    }


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        EXT,
        ("model.backbone.norm=sync", "model.conv_head.norm=sync"),
        ("model.backbone.norm=frozen", "model.conv_head.norm=group"),
        ("model.variant=double_conv", "model.backbone.depth=50", "model.backbone.norm=group"),
    ],
)
def test_a_folded_detector_computes_what_the_original_does(make_tiny_detector, batch, overrides):
    original = with_random_norms(make_tiny_detector(*overrides))
    folded = inference_copy(original)
    paths = variables_by_path(folded)
    assert not [path for path in paths if "moving" in path]
    assert any("norm/gamma" in path for path in paths) == any("group" in override for override in overrides)
    ours = original.extract_features(inputs_of(batch), training=False)
    theirs = folded.extract_features(inputs_of(batch), training=False)
    for level, features in ours.items():
        np.testing.assert_allclose(theirs[level], features, atol=1e-4 * np.abs(features).max())
    rois, image_index = batch["gt_boxes"][0], tf.constant([0, 1, 0])
    outputs = original.run_heads(ours, rois, image_index, training=False)
    for name, output in folded.run_heads(theirs, rois, image_index, training=False).items():
        np.testing.assert_allclose(output, outputs[name], atol=1e-3 * np.abs(outputs[name]).max(), err_msg=name)


def test_a_folded_detector_gives_the_same_detections(make_tiny_detector, batch):
    original = with_random_norms(make_tiny_detector(*EXT, "model.score_threshold=0.2"))
    folded = inference_copy(original)
    ours, theirs = (d.detect(d(inputs_of(batch)), batch["image_sizes"]) for d in (original, folded))
    assert ours.num_detections.numpy().min() > 2
    np.testing.assert_array_equal(ours.num_detections, theirs.num_detections)
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)


def test_the_original_is_left_as_it_was(make_tiny_detector):
    original = with_random_norms(make_tiny_detector())
    before = {path: variable.numpy() for path, variable in variables_by_path(original).items()}
    folded = inference_copy(original, precision="bfloat16")
    for variable in folded.variables:
        variable.assign(tf.zeros_like(variable))
    for path, variable in variables_by_path(original).items():
        np.testing.assert_array_equal(variable, before[path])
        assert variable.dtype == "float32"


def test_only_layers_that_change_are_made_anew(make_tiny_detector):
    original = make_tiny_detector("model.variant=double_head")
    folded = inference_copy(original)
    assert folded.fpn is original.fpn
    assert folded.rpn_head is original.rpn_head
    assert folded.heads["fc_head"] is original.heads["fc_head"]
    assert not {id(variable) for variable in folded.backbone.weights} & {id(one) for one in original.backbone.weights}
    assert not set(map(id, folded.heads["conv_head"].weights)) & set(map(id, original.heads["conv_head"].weights))


def test_bfloat16_is_in_the_network_and_not_in_boxes_and_scores(make_tiny_detector, batch):
    original = with_random_norms(make_tiny_detector())
    half = inference_copy(original, precision="bfloat16")
    dtypes = {path: variable.dtype for path, variable in variables_by_path(half).items()}
    assert {dtype for path, dtype in dtypes.items() if "predictor" not in path} == {"bfloat16"}
    assert {dtype for path, dtype in dtypes.items() if "predictor" in path} == {"float32"}
    pyramid = half.extract_features(inputs_of(batch), training=False)
    assert {features.dtype for features in pyramid.values()} == {tf.bfloat16}
    outputs = outputs_of(half, batch)
    assert {output.dtype for name, output in outputs.items() if name != "image_index"} == {tf.float32}
    exact = original.extract_features(inputs_of(batch), training=False)
    for level, features in exact.items():
        difference = np.abs(tf.cast(pyramid[level], tf.float32) - features)
        assert 0 < difference.max() < 0.05 * np.abs(features).max()


def test_an_unknown_precision_is_refused(make_tiny_detector):
    with pytest.raises(ValueError, match="`precision` must be float32 or bfloat16, got 'int8'"):
        inference_copy(make_tiny_detector(), precision="int8")


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, "none", "every", "half"])
def test_rois_that_no_class_scores_are_left_out_and_no_detection_changes(make_tiny_detector, batch, threshold):
    detector = with_random_norms(make_tiny_detector())
    everything = outputs_of(detector, batch)
    best = np.sort(np.max(class_probs(everything, "fc"), axis=1))
    chosen = {"none": 1.0, "every": best[0] - 1e-4, "half": (best[len(best) // 2 - 1] + best[len(best) // 2]) / 2}
    detector.score_threshold = float(chosen.get(threshold, threshold))
    expected = detector.detect(everything, batch["image_sizes"])
    outputs = detector(inputs_of(batch))
    found = detector.detect(outputs, batch["image_sizes"])
    survivors = int((best > detector.score_threshold).sum())
    assert len(outputs["rois"]) == len(outputs["conv_box_deltas"]) == survivors
    if threshold in ("none", "every", "half"):
        assert survivors == {"none": 0, "every": len(best), "half": len(best) - len(best) // 2}[threshold]
    np.testing.assert_array_equal(found.num_detections, expected.num_detections)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)  # products of other sizes round differently


def test_one_image_may_lose_all_its_rois(make_tiny_detector, batch):
    detector = with_random_norms(make_tiny_detector())
    everything = outputs_of(detector, batch)
    best = np.max(class_probs(everything, "fc"), axis=1)
    index = everything["image_index"].numpy()
    loser = min((0, 1), key=lambda image: best[index == image].max())
    detector.score_threshold = float(best[index == loser].max())
    found = detector.detect(detector(inputs_of(batch)), batch["image_sizes"])
    assert found.num_detections[loser] == 0
    assert found.num_detections[1 - loser] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_a_score_that_does_not_need_the_conv_head_leaves_rois_out(make_tiny_detector, batch, variant):
    detector = make_tiny_detector(f"model.variant={variant}", "model.score_threshold=1.0")
    outputs = detector(inputs_of(batch))
    proposals = int(tf.math.count_nonzero(outputs["proposals"].valid))
    assert proposals > 20
    assert len(outputs["rois"]) == (0 if variant == "double_head" else proposals)
    assert int(detector.detect(outputs, batch["image_sizes"]).num_detections.numpy().sum()) == 0
