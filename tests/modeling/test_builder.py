"""A new detector: when its weights are made, what they depend on, and what building it leaves alone."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.errors import ConfigError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.folding import inference_copy
from dh_keras.modeling.layers.resnet import ResNet
from dh_keras.modeling.variables import variables_by_path
from dh_keras.modeling.variants import VARIANTS
from dh_keras.pretrained.build import build_detector

HUB = (
    "model.backbone.name=keras_hub:DenseNetBackbone",
    "model.backbone.hub_arguments={stackwise_num_repeats: [1, 1, 1, 1], growth_rate: 4}",
    "model.backbone.norm=batch",
)
EVERY_KIND_OF_LAYER = ("model.variant=double_head_ext", "model.conv_head.non_local.channels=8")


@pytest.fixture(params=["resnet", "keras_hub"])
def config(request, tiny_overrides):
    if request.param == "keras_hub":
        pytest.importorskip("keras_hub")
    hub = HUB if request.param == "keras_hub" else ()
    return load_config(overrides=[*tiny_overrides, *EVERY_KIND_OF_LAYER, *hub]).model


def random_numbers(between):
    """The caller's numbers from every generator before and after something else happens."""
    keras.utils.set_random_seed(3)
    generator = tf.random.get_global_generator()
    generator.reset_from_seed(3)
    shuffled = iter(tf.data.Dataset.range(50).shuffle(50))

    def draw():
        yield [random.random(), random.gauss(0, 1)]
        yield np.random.random(2)
        yield tf.random.uniform([2])
        yield tf.random.uniform([2], seed=9)
        yield keras.random.uniform([2])
        yield generator.uniform([2])
        yield [next(shuffled)]
        yield [keras.initializers.GlorotUniform().seed, keras.random.SeedGenerator().next()[0]]

    before = np.concatenate([*draw()])
    between()
    return np.concatenate([before, *draw()])


def test_building_leaves_the_callers_random_numbers_alone(config):
    built = []

    def build():
        detector = assemble_detector(config, num_classes=3, seed=5)
        built.append(inference_copy(detector))

    np.testing.assert_array_equal(random_numbers(build), random_numbers(lambda: None))
    assert len(built) == 1


def test_initial_weights_depend_on_the_seed_alone(config):
    found = []
    for others, seed in ((1, 5), (2, 5), (1, 6)):
        keras.utils.set_random_seed(others)
        detector = assemble_detector(config, num_classes=3, seed=seed)
        found.append([variable.numpy() for variable in detector.trainable_variables])
    is_random = [np.std(array) > 0 and array.ndim > 1 for array in found[0]]
    assert sum(is_random) > 25
    for first, again, other, differs in zip(*found, is_random, strict=True):
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(first, other) != differs


def test_without_a_seed_and_a_precision_keras_own_are_taken(tiny_overrides):
    config = load_config(overrides=tiny_overrides).model

    def build(**given):
        keras.utils.set_random_seed(4)
        return build_detector(config, num_classes=3, **given)

    first, again = build(), build()
    other = build_detector(config, num_classes=3)
    kernels = [model.heads["fc_head"].fc1.kernel.numpy() for model in (first, again, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert first.seed == again.seed != other.seed
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        policies = [build(**given).heads["fc_head"].fc1.dtype_policy.name for given in ({}, {"precision": "float32"})]
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert policies == ["mixed_bfloat16", "float32"]
    assert build(seed=9).seed == 9


def test_no_two_kernels_of_one_shape_are_alike(config):
    detector = assemble_detector(config, num_classes=3)
    kernels = [v.numpy() for v in detector.trainable_variables if v.ndim > 1 and np.std(v.numpy()) > 0]
    of_shape = {shape: [k.ravel() for k in kernels if k.shape == shape] for shape in {k.shape for k in kernels}}
    repeated = [shape for shape, same in of_shape.items() if len({k.tobytes() for k in same}) < len(same)]
    assert repeated == []
    assert sum(len(same) > 1 for same in of_shape.values()) > 5
    for same in of_shape.values():  # nor multiples of each other, as from one seed with other deviations
        if len(same) > 1 and same[0].size > 200:
            correlations = np.corrcoef(same) - np.eye(len(same))
            assert np.abs(correlations).max() < 6 / np.sqrt(same[0].size)


def test_initial_weights_are_distributed_as_published(tiny_overrides):
    wide = ("model.fc_head.channels=64", "model.conv_head.channels=64", "model.fpn.channels=64")
    config = load_config(overrides=[*tiny_overrides, *EVERY_KIND_OF_LAYER, *wide]).model
    weights = variables_by_path(assemble_detector(config, num_classes=20, seed=11))
    normal = {
        "rpn_head/conv": 0.01,
        "rpn_head/objectness_predictor": 0.01,
        "rpn_head/delta_predictor": 0.01,
        "fc_head/predictors/class_predictor": 0.01,
        "fc_head/predictors/box_predictor": 0.001,
        "conv_head/predictors/class_predictor": 0.01,
        "conv_head/predictors/box_predictor": 0.001,
        "conv_head/non_local0/theta": 0.01,
    }
    for layer, deviation in normal.items():
        kernel = weights[f"{layer}/kernel"].numpy()
        error = 5 * deviation / np.sqrt(kernel.size)
        assert abs(kernel.mean()) < error, layer
        assert abs(kernel.std() - deviation) < error, layer
    for layer in ("fc_head/fc1", "fc_head/fc2", "fpn/lateral_c5", "fpn/output_p2"):  # Xavier uniform
        kernel = weights[f"{layer}/kernel"].numpy()
        cells = np.prod(kernel.shape[:-2])
        limit = np.sqrt(6 / (cells * sum(kernel.shape[-2:])))
        assert 0.98 * limit < np.abs(kernel).max() <= limit, layer
        assert abs(kernel.mean()) < 5 * limit / np.sqrt(3 * kernel.size), layer
        assert abs(kernel.std() - limit / np.sqrt(3)) < 5 * limit / np.sqrt(3 * kernel.size), layer
    assert not any(v.numpy().any() for path, v in weights.items() if path.endswith("/bias"))


def test_the_users_data_format_does_not_matter_and_stays(config):
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)).astype(np.uint8)
    inputs = {"images": tf.constant(images), "image_sizes": tf.constant([[64, 96]])}

    def detect(detector):
        return detector.detect(detector(inputs), inputs["image_sizes"])

    expected = detect(assemble_detector(config, num_classes=3, seed=5))
    keras.config.set_image_data_format("channels_first")
    try:
        detector = assemble_detector(config, num_classes=3, seed=5)
        copy = inference_copy(detector)
        assert keras.config.image_data_format() == "channels_first"
        for found in (detect(detector), detect(copy)):
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-6)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_another_float_than_float32_is_refused_by_name(config, monkeypatch):
    monkeypatch.setattr("keras.config.floatx", lambda: "float16")
    with pytest.raises(
        ConfigError, match=r"^Keras' floatx: expected float32, got float16; correct ~/\.keras/keras\.json"
    ):
        assemble_detector(config, num_classes=3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_weights_are_there_before_the_first_image(make_tiny_detector, batch, variant, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(keras.layers.Layer, "__call__", lambda *arguments, **options: pytest.fail("computed"))
        detector = make_tiny_detector(f"model.variant={variant}", "model.conv_head.non_local.channels=8")
    before = [(variable.path, variable.shape) for variable in detector.variables]
    assert all(path.startswith("double_head_rcnn/") for path, _ in before if not path.startswith(("sgd", "recipe")))
    assert len({path for path, _ in before}) == len(before) > 60
    detector({name: batch[name] for name in ("images", "image_sizes")})
    assert [(variable.path, variable.shape) for variable in detector.variables] == before


@pytest.mark.parametrize("depth", [18, 50])
def test_the_backbone_tells_the_channels_that_it_gives(depth):
    backbone = ResNet(depth=depth, width=8, stride_in_1x1=False, frozen_stages=0, norm="group")
    outputs = backbone(tf.constant(np.zeros((2, 64, 96, 3), np.float32)))
    shapes = backbone.compute_output_shape((2, 64, 96, 3))
    assert {name: (2, None, None, output.shape[-1]) for name, output in outputs.items()} == shapes
