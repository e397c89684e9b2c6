"""Sums of whole numbers, as a GPU gets them."""

import numpy as np
import pytest
import tensorflow as tf
from gpu_placement import large, placement

from dh_keras.modeling.ops.indexing import SHORT_ROW, running_sum
from dh_keras.modeling.ops.machine import traced_for


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("number", [0, 1, SHORT_ROW - 1, SHORT_ROW, SHORT_ROW + 1, 5 * SHORT_ROW + 3])
def test_the_running_sum_is_exact_on_both_kinds_of_machines(target, number):
    values = np.random.default_rng(number).integers(-5, 2**40, number)
    traced = tf.function(running_sum, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    with traced_for(target):
        np.testing.assert_array_equal(traced(values), np.cumsum(values))


def test_a_gpu_adds_many_short_rows_and_copies_none():
    traced = tf.function(running_sum, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)
    with traced_for("gpu"):
        graph = traced.get_concrete_function().graph
    rows = [op.inputs[0].shape.as_list() for op in graph.get_operations() if op.type == "Cumsum"]
    assert rows == [[None, SHORT_ROW], [None]]
    found = placement(graph)
    assert (found.without_kernel, large(found.to_host)) == (set(), [])
