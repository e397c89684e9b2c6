"""The convolution head against plain NumPy, with gradients against central differences."""

import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import conv_head, numerical_gradient, random_input, randomise, up_block

from dh_keras.modeling.layers.conv_head import ConvHead, UpBlock

ARGUMENTS = {
    "channels": 8,
    "blocks": 2,
    "norm": "batch",
    "non_local_channels": 0,
    "non_local_groups": 4,
    "non_local_mode": "dot_product",
    "num_classes": 5,
    "classes": True,
    "boxes": True,
}


def build(input_shape=(None, 5, 3, 6), **arguments):
    head = ConvHead(**ARGUMENTS | arguments)
    head.build(input_shape)
    return head, randomise(head)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_outputs_equal_the_definition(blocks, groups, training):
    head, w = build(blocks=blocks, non_local_channels=4 if groups else 0, non_local_groups=groups or 4)
    x = random_input(4, 5, 3, 6)
    outputs = head(x, training=training)
    expected = conv_head(w, head, x, blocks=blocks, non_local_groups=groups, num_classes=5, training=training)
    assert len(head.bottlenecks) == blocks
    assert len(head.non_local_blocks) == (blocks if groups else 0)
    assert outputs["class_logits"].shape == (4, 6)
    assert outputs["box_deltas"].shape == (4, 5, 4)
    for name in ("class_logits", "box_deltas"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_up_block_keeps_the_inner_width_and_projects_its_shortcut(training):
    block = UpBlock(channels=8, norm="batch")
    block.build((None, None, None, 6))
    w = randomise(block)
    x = random_input(4, 5, 3, 6)
    np.testing.assert_allclose(block(x, training=training), up_block(w, block, x, training=training), atol=2e-5)
    kernels = [tuple(variable.shape) for variable in block.variables if variable.name == "kernel"]
    assert sorted(kernels) == [(1, 1, 6, 8), (1, 1, 6, 8), (3, 3, 6, 6)]
    assert not [variable for variable in block.variables if variable.name == "bias"]


def test_new_kernels_are_he_normal_in_the_up_block_and_small_and_uniform_in_the_bottlenecks():
    head = ConvHead(**ARGUMENTS | {"channels": 128, "blocks": 1})
    head.build((None, 5, 3, 32))
    for conv in (head.up_block.conv1, head.up_block.conv2, head.up_block.shortcut):
        kernel = conv.conv.kernel.numpy()
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (kernel.size / kernel.shape[2])), rtol=0.1)
    for conv in head.bottlenecks[0].convs:
        kernel = conv.conv.kernel.numpy()
        limit = 1 / np.sqrt(np.prod(kernel.shape[:3]))
        assert np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.1)
    norms = [conv.norm for conv in [head.up_block.conv1, head.up_block.shortcut, *head.bottlenecks[0].convs]]
    assert all((norm.gamma.numpy() == 1).all() for norm in norms)


@pytest.mark.parametrize(("classes", "boxes"), [(True, False), (False, True)])
def test_a_predictor_that_is_not_asked_for_has_no_variables(classes, boxes):
    head, w = build(classes=classes, boxes=boxes)
    name, width = ("class_logits", 6) if classes else ("box_deltas", 20)
    assert list(head(random_input(4, 5, 3, 6))) == [name]
    assert [w(v).shape for v in head.predictors.variables] == [(8, width), (width,)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "blocks", "non_local"),
    [("batch", 1, 4), ("frozen", 1, 4), ("group", 1, 4), ("sync", 1, 4), ("batch", 2, 0)],
)
def test_no_rois_give_no_predictions_zero_gradients_and_finite_statistics(norm, blocks, non_local, training):
    head, _ = build(blocks=blocks, non_local_channels=non_local, norm=norm)
    run = tf.function(_loss_and_gradients, reduce_retracing=True)
    for call in (_loss_and_gradients, run):
        outputs, x_gradient, gradients = call(head, tf.zeros([0, 5, 3, 6]), training)
        assert outputs["class_logits"].shape == (0, 6)
        assert outputs["box_deltas"].shape == (0, 5, 4)
        assert x_gradient.shape == (0, 5, 3, 6)
        assert not any(gradient.numpy().any() for gradient in gradients)
    assert all(np.isfinite(variable.numpy()).all() for variable in head.variables)


def _loss_and_gradients(head, x, training):
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = head(x, training=training)
        loss = tf.add_n([tf.reduce_sum(output) for output in outputs.values()])
    x_gradient, *gradients = tape.gradient(loss, [x, *(variable.value for variable in head.trainable_variables)])
    return outputs, x_gradient, gradients


@pytest.mark.parametrize(("training", "blocks", "groups"), [(True, 1, 2), (False, 1, 2), (True, 3, 0)])
def test_gradients_equal_central_differences(training, blocks, groups):
    non_local = {"non_local_channels": 2 * groups, "non_local_groups": groups or 1}
    head, w = build((None, 3, 2, 3), blocks=blocks, num_classes=2, **non_local)
    x = random_input(2, 3, 2, 3)
    upstream = {"class_logits": random_input(2, 3, seed=2), "box_deltas": random_input(2, 2, 4, seed=3)}
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = head(inputs, training=training)
        loss = tf.add_n([tf.reduce_sum(outputs[name] * upstream[name]) for name in outputs])
    variables = head.trainable_variables
    actual = tape.gradient(loss, [inputs, *(variable.value for variable in variables)])
    x = np.float64(x)

    def loss_in_numpy():
        outputs = conv_head(w, head, x, blocks=blocks, non_local_groups=groups, num_classes=2, training=training)
        return sum(np.sum(outputs[name] * upstream[name]) for name in outputs)

    arrays = [x, *(w(variable) for variable in variables)]
    for gradient, array, name in zip(actual, arrays, ["input", *(v.path for v in variables)], strict=True):
        np.testing.assert_allclose(gradient, numerical_gradient(loss_in_numpy, array), atol=2e-4, err_msg=name)
