"""Axis permutations and folds, on numbers small enough to follow."""

import numpy as np
import pytest

from dh_keras.errors import DataError
from dh_keras.modeling.constants import BATCH_NORM_EPSILON
from dh_keras.pretrained import tensors


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_deltas_swap_in_groups_of_four():
    assert tensors.xy_to_yx(np.arange(8)).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    swapped = tensors.xy_to_yx(random(8, 3))
    np.testing.assert_array_equal(swapped, random(8, 3)[[1, 0, 3, 2, 5, 4, 7, 6]])
    np.testing.assert_array_equal(tensors.xy_to_yx(swapped), random(8, 3))


def test_a_fully_connected_layer_after_a_flatten_sees_the_same_cells():
    features, kernel = random(1, 5, 7, 7), random(6, 5 * 7 * 7)
    expected = kernel @ features.reshape(-1)
    converted = tensors.FIRST_DENSE[0].convert(kernel)
    assert tensors.FIRST_DENSE[0].shape(converted.shape) == kernel.shape
    np.testing.assert_allclose(features.transpose(0, 2, 3, 1).reshape(-1) @ converted, expected, rtol=1e-4, atol=1e-4)


def test_background_moves_from_first_to_last_and_loses_its_deltas():
    logits = tensors.BACKGROUND_FIRST[0].convert(random(4, 2))
    np.testing.assert_array_equal(logits, random(4, 2)[[1, 2, 3, 0]].T)
    assert tensors.BACKGROUND_FIRST[1].convert(np.arange(4)).tolist() == [1, 2, 3, 0]
    assert tensors.BACKGROUND_DELTAS[1].convert(np.arange(12)).tolist() == [5, 4, 7, 6, 9, 8, 11, 10]
    deltas = tensors.BACKGROUND_DELTAS[0].convert(random(12, 2))
    np.testing.assert_array_equal(deltas[:, 1], random(12, 2)[4])
    assert tensors.BACKGROUND_DELTAS[0].shape(deltas.shape) == (12, 2)


def test_kernels_move_their_channels_to_the_end():
    assert tensors.CONV[0].convert(random(2, 3, 5, 4)).shape == (5, 4, 3, 2)
    assert tensors.CONV[0].shape((5, 4, 3, 2)) == (2, 3, 5, 4)
    anchors = tensors.ANCHOR_DELTAS[0].convert(random(8, 3, 1, 1))
    np.testing.assert_array_equal(anchors[0, 0, :, 4], random(8, 3, 1, 1)[5, :, 0, 0])


@pytest.mark.parametrize("epsilon", [0.0, 1.001e-5, 1e-3])
def test_a_norm_with_another_epsilon_gives_the_same_numbers(epsilon):
    gamma, variance = np.array([0.5, -2.0, 1.0]), np.array([1e-7, 1.0, 300.0])
    ours = tensors.rescale_gamma(epsilon)(gamma, variance) / np.sqrt(variance + BATCH_NORM_EPSILON)
    np.testing.assert_allclose(ours, gamma / np.sqrt(variance + epsilon), rtol=1e-12)


def test_nothing_is_assigned_unless_everything_fits():
    class Variable:
        shape = (2,)
        value = None

        def assign(self, value):
            self.value = value

    variables = {"a/bias": Variable(), "b/bias": Variable()}
    rules = [tensors.Rule(f"{name}/bias", (f"{name}.bias",), tensors.SAME) for name in "ab"]
    good, bad = np.zeros(2, np.float32), np.zeros(3, np.float32)
    with pytest.raises(DataError, match=r"f\.pth: tensor b\.bias has shape \[3\], expected \[2\]"):
        tensors.assign_tensors({"a.bias": good, "b.bias": bad}, rules, variables, source="f.pth")
    assert variables["a/bias"].value is None
    with pytest.raises(DataError, match=r"f\.pth: tensor b\.bias is missing"):
        tensors.unused_tensors({"a.bias": good}, rules, unused=(), source="f.pth")
    with pytest.raises(DataError, match=r"other layers than its config; first b/bias"):
        tensors.assign_tensors({"a.bias": good}, rules[:1], variables, source="f.pth")
    tensors.assign_tensors({"a.bias": good, "b.bias": good}, rules, variables, source="f.pth")
    assert variables["b/bias"].value.tolist() == [0.0, 0.0]
