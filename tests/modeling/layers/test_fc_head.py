"""The fully connected head against plain NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import fc_head, random_input, randomise

from dh_keras.modeling.layers.fc_head import FCHead


def build(**arguments):
    head = FCHead(**{"channels": 11, "num_classes": 5, "classes": True, "boxes": True} | arguments)
    head.build((None, 3, 2, 4))
    return head


def test_outputs_equal_the_definition_with_rows_columns_channels_flattened_in_this_order():
    head = build()
    w = randomise(head)
    x = random_input(6, 3, 2, 4)
    outputs, expected = head(x), fc_head(w, head, x, num_classes=5)
    assert outputs.keys() == expected.keys()
    assert outputs["class_logits"].shape == (6, 6)
    assert outputs["box_deltas"].shape == (6, 5, 4)
    for name in outputs:
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)


@pytest.mark.parametrize(("classes", "boxes"), [(True, False), (False, True)])
def test_a_predictor_that_is_not_asked_for_has_no_variables(classes, boxes):
    head = build(classes=classes, boxes=boxes)
    w = randomise(head)
    name, width = ("class_logits", 6) if classes else ("box_deltas", 20)
    assert list(head(random_input(6, 3, 2, 4))) == [name]
    assert len(head.variables) == 6
    assert [w(v).shape for v in head.predictors.variables] == [(11, width), (width,)]


def test_no_rois_give_no_predictions_and_zero_gradients():
    head = build()
    randomise(head)
    x = tf.zeros([0, 3, 2, 4])
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = head(x)
        loss = tf.add_n([tf.reduce_sum(output) for output in outputs.values()])
    assert outputs["class_logits"].shape == (0, 6)
    assert outputs["box_deltas"].shape == (0, 5, 4)
    x_gradient, *gradients = tape.gradient(loss, [x, *(v.value for v in head.trainable_variables)])
    assert x_gradient.shape == (0, 3, 2, 4)
    for gradient in gradients:
        assert not gradient.numpy().any()


def test_initial_weights_are_xavier_uniform_and_small_normal_and_biases_zero():
    head = FCHead(channels=64, num_classes=20, classes=True, boxes=True)
    head.build((None, 3, 2, 32))
    limit = np.sqrt(6 / (192 + 64))
    kernel = head.fc1.kernel.numpy()
    assert np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(head.predictors.class_predictor.kernel.numpy().std(), 0.01, rtol=0.1)
    np.testing.assert_allclose(head.predictors.box_predictor.kernel.numpy().std(), 0.001, rtol=0.1)
    assert not any(variable.numpy().any() for variable in head.variables if variable.name == "bias")
