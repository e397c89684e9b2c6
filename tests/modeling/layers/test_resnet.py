"""The backbone against plain NumPy; random weights and statistics, odd and non-square images."""

import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import Weights, conv_norm, max_pool, random_input, randomise, relu, residual_block

from dh_keras.modeling.layers.resnet import ResidualBlock, ResNet, run_blocks

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
STAGES = ("C2", "C3", "C4", "C5")
ARGUMENTS = {"width": 4, "stride_in_1x1": False, "frozen_stages": 0, "norm": "batch"}


def expected_features(w, resnet, images, *, depth, stride_in_1x1, training=False):
    """He et al. 2016, table 1 and figure 5."""
    features = max_pool(relu(conv_norm(w, resnet.stem, images, stride=2, training=training)))
    outputs = {}
    for stage, (name, count) in enumerate(zip(STAGES, BLOCKS[depth], strict=True)):
        assert len(resnet.stages[stage]) == count
        for index, block in enumerate(resnet.stages[stage]):
            stride = 2 if stage > 0 and index == 0 else 1
            if depth == 18:
                strides, projection = (stride, 1), stage > 0 and index == 0
            else:
                strides, projection = ((stride, 1, 1) if stride_in_1x1 else (1, stride, 1)), index == 0
            features = residual_block(w, block, features, strides=strides, projection=projection, training=training)
        outputs[name] = features
    return outputs


def build(seed=0, **arguments):
    resnet = ResNet(**ARGUMENTS | arguments)
    resnet.build((None, None, None, 3))
    return resnet, randomise(resnet, seed)


def assert_features_equal(actual, expected, tolerance=1e-4):
    assert list(actual) == list(expected) == list(STAGES)
    for name in STAGES:
        scale = np.abs(expected[name]).max()
        assert scale > 0.1
        np.testing.assert_allclose(actual[name] / scale, expected[name] / scale, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("depth", "stride_in_1x1"), [(18, False), (50, False), (50, True)])
def test_features_equal_the_definition_at_odd_sizes(depth, stride_in_1x1):
    resnet, w = build(depth=depth, stride_in_1x1=stride_in_1x1)
    images = random_input(2, 75, 101, 3)
    expected = expected_features(w, resnet, images, depth=depth, stride_in_1x1=stride_in_1x1)
    channels = 1 if depth == 18 else 4
    shapes = [(2, 19, 26, 4), (2, 10, 13, 8), (2, 5, 7, 16), (2, 3, 4, 32)]
    assert [x.shape for x in expected.values()] == [(*shape[:3], shape[3] * channels) for shape in shapes]
    assert_features_equal(resnet(images, training=False), expected)


def test_unfrozen_batch_norms_use_batch_statistics_in_training():
    resnet, w = build(depth=18)
    images = random_input(2, 75, 101, 3)
    expected = expected_features(w, resnet, images, depth=18, stride_in_1x1=False, training=True)
    assert_features_equal(resnet(images, training=True), expected, tolerance=1e-3)


@pytest.mark.parametrize("frozen_stages", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_frozen_stages_have_no_trainable_variables_and_keep_their_statistics(norm, frozen_stages):
    resnet, w = build(depth=18, frozen_stages=frozen_stages, norm=norm)
    frozen = [resnet.stem, *(block for stage in resnet.stages[:frozen_stages] for block in stage)]
    free = [block for stage in resnet.stages[frozen_stages:] for block in stage]
    assert not [variable for layer in frozen for variable in layer.trainable_variables]
    free_variables = [variable for layer in free for variable in layer.trainable_variables]
    assert len(free_variables) == len(resnet.trainable_variables) > 0
    resnet(random_input(2, 65, 97, 3), training=True)
    changed = {v.path for v in resnet.variables if not np.array_equal(v.numpy(), np.float32(w(v)))}
    assert changed == {v.path for layer in free for v in layer.non_trainable_variables if "moving" in v.name}
    assert len(changed) == 2 * len(free_variables) / 3


def test_freezing_changes_the_features_of_no_frozen_stage_in_training():
    resnet, w = build(depth=50, frozen_stages=2, stride_in_1x1=True)
    images = random_input(1, 65, 97, 3)
    expected = expected_features(w, resnet, images, depth=50, stride_in_1x1=True)
    actual = resnet(images, training=True)
    for name in ("C2", "C3"):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(actual[name] / scale, expected[name] / scale, atol=1e-4)


def test_frozen_norms_leave_the_kernels_trainable_and_ignore_the_batch():
    resnet, w = build(depth=18, norm="frozen")
    images = random_input(1, 65, 97, 3)
    expected = expected_features(w, resnet, images, depth=18, stride_in_1x1=False)
    assert_features_equal(resnet(images, training=True), expected)
    assert {variable.name for variable in resnet.trainable_variables} == {"kernel"}
    assert len(resnet.trainable_variables) == 1 + 16 + 3


def test_depth_101_has_23_blocks_in_its_fourth_stage():
    assert [len(stage) for stage in ResNet(depth=101, **ARGUMENTS).stages] == [3, 4, 23, 3]


def test_an_unknown_depth_is_rejected_by_value():
    with pytest.raises(ValueError, match=r"\[18, 50, 101\], got 34"):
        ResNet(depth=34, **ARGUMENTS)


@pytest.mark.parametrize("training", [True, False])
def test_a_bottleneck_without_projection_adds_its_input(training):
    block = ResidualBlock(filters=2, stride_in_1x1=False, norm="batch")
    block.build((None, None, None, 8))
    w = randomise(block)
    x = random_input(3, 5, 4, 8)
    np.testing.assert_allclose(block(x, training=training), residual_block(w, block, x, training=training), atol=2e-5)
    assert block.shortcut is None


@pytest.mark.parametrize("bottleneck", [True, False])
def test_a_new_block_with_identity_start_passes_its_shortcut_on(bottleneck):
    block = ResidualBlock(
        filters=2,
        bottleneck=bottleneck,
        stride=2,
        stride_in_1x1=False,
        projection=True,
        norm="batch",
        identity_start=True,
    )
    block.build((None, None, None, 8))
    x = random_input(3, 5, 4, 8)
    expected = relu(conv_norm(Weights(block), block.shortcut, x, stride=2))
    np.testing.assert_allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_new_network_equals_the_definition_with_features_of_moderate_size(norm):
    resnet = ResNet(depth=18, **ARGUMENTS | {"norm": norm})
    resnet.build((None, None, None, 3))
    images = random_input(1, 64, 96, 3)
    expected = expected_features(Weights(resnet), resnet, images, depth=18, stride_in_1x1=False)
    assert_features_equal(resnet(images), expected)
    assert 0.01 < np.abs(expected["C5"]).mean() < 100


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_blocks_in_pairs_have_the_values_gradients_and_statistics_of_one_by_one(number, norm):
    blocks = [ResidualBlock(filters=2, stride_in_1x1=False, norm=norm, name=f"block{index}") for index in range(number)]
    inputs, upstream = tf.constant(random_input(3, 5, 4, 8)), random_input(3, 5, 4, 8, seed=2)
    found = []
    for in_pairs in (True, False):
        for block in blocks:
            if not block.built:
                block.build((None, None, None, 8))
            randomise(block)
        variables = [variable.value for block in blocks for variable in block.trainable_variables]

        @tf.function(autograph=False)
        def step(inputs, in_pairs=in_pairs, variables=variables):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = inputs
                for block in [] if in_pairs else blocks:
                    outputs = block(outputs, training=True)
                outputs = run_blocks(blocks, outputs, training=True) if in_pairs else outputs
                outputs = tf.identity(outputs)
            return [outputs, *tape.gradient(outputs, [inputs, *variables], output_gradients=upstream)]

        found.append([*step(inputs), *(v.numpy() for block in blocks for v in block.non_trainable_variables)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
