"""The reference checkpoints give the numbers of their own implementations, stage by stage."""

import importlib.util

import numpy as np
import parity
import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is needed to read checkpoints"),
    pytest.mark.skipif(
        not parity.REFERENCE.is_dir(), reason=f"no reference folder at {parity.REFERENCE}; set DH_KERAS_REFERENCE"
    ),
]

images = pytest.mark.parametrize("image", parity.IMAGES)
runs = pytest.mark.parametrize("run", [parity.run_from_input, parity.run_from_photograph])

# In the third photograph about sixty detections of the authors' random conv-head score exactly 1 in float32.
TIED = {("authors", 2, "conv/conv"), ("authors", 2, "fused/conv")}
# A bias in front of a batch norm has no gradient; both frameworks' numbers are rounding.
WITHOUT_GRADIENT = ("shared_nonlocal.0.W.0.bias", "shared_nonlocal.1.W.0.bias")


@pytest.fixture(params=list(parity.FOLDERS))
def case(request):
    return parity.load_case(request.param)


@images
def test_features_roi_features_and_head_outputs_are_the_reference_s(case, image):
    found = parity.compare_forward(case, image)
    assert {"P2", "P6", "RoIAlign fc", "RoIAlign conv", "fc_class_logits", "conv_box_deltas"} <= set(found)
    for stage, (_, relative) in found.items():
        assert relative < (1e-3 if "logits" in stage or "deltas" in stage else 1e-4), stage


@images
def test_a_decoded_photograph_is_the_reference_s_input(case, image):
    normalised = case.model.normalization(case.photograph(image), case.image_sizes(image))
    np.testing.assert_array_equal(normalised, case.stages(image)["input"])


@images
@runs
def test_proposals_and_detections_are_the_reference_s(case, image, run):
    outputs = run(case, image)
    matched, score_difference = parity.compare_proposals(case, image, outputs)
    assert matched >= 0.99
    assert score_difference < 1e-4
    detections = parity.compare_detections(case, image, outputs)
    assert len(detections) == (4 if case.family == "authors" else 1)
    for name, (matched, score_difference) in detections.items():
        if (case.family, image, name) in TIED:
            matched, score_difference = parity.compare_tied_detections(case, image, outputs, name)
        assert matched >= 0.99, name
        assert score_difference < 1e-3, name


@images
def test_training_losses_and_gradient_norms_are_the_reference_s(case, image):
    losses, norms = parity.compare_training(case, image)
    assert len(losses) == (6 if case.family == "authors" else 4)
    for name, pair in losses.items():
        assert parity.relative(pair) < 1e-4, (name, pair)
    for name, (ours, theirs) in norms.items():
        if name.endswith(WITHOUT_GRADIENT):
            beside = norms[name.replace("W.0.bias", "W.bn.bias")][1]
            assert max(ours, theirs) < 1e-4 * beside, name
        else:
            assert parity.relative((ours, theirs)) < 1e-3, (name, ours, theirs)


def test_every_trainable_tensor_of_the_reference_has_a_gradient_of_ours(case):
    names = set(parity.meta(case.family)["grad_norms"][0])
    trained = {rule.sources[0] for rule in parity.rules_of(case) if rule.target in parity.trainable_paths(case)}
    assert trained <= names
    # MMDetection trains scale and offset of its backbone's norms, which are frozen here as in the paper.
    assert all(".bn" in name or ".downsample.1." in name for name in names - trained)


def test_from_a_photograph_through_a_run_folder(tmp_path):
    from dh_keras.inference.detector import Detector
    from dh_keras.pretrained.importer import import_checkpoint

    case = parity.load_case("authors")
    folder = parity.REFERENCE / parity.FOLDERS["authors"]
    import_checkpoint(folder / "checkpoint.pth", tmp_path / "run")
    height, width = case.stages(0)["image_hw"]
    detector = Detector.load(
        tmp_path / "run", [f"data.min_size={min(height, width)}", f"data.max_size={max(height, width)}"]
    )
    result = detector(folder / "image_0.jpg")
    stages, prefix = case.stages(0), parity.MODES["fused/conv"]
    theirs = (case.boxes(stages[f"{prefix}_boxes"]), stages[f"{prefix}_scores"], stages[f"{prefix}_classes"])
    matched, score_difference = parity.match(result.boxes, result.scores, result.category_ids - 1, theirs)
    assert matched >= 0.99
    assert score_difference < 1e-3
