"""What a graph is traced for, and the few sizes that a GPU sees."""

import pytest
import tensorflow as tf

from dh_keras.modeling.ops.machine import FEW_SIZES, few_sizes, for_gpu, machine_target, pad_rows, traced_for


def test_a_graph_is_for_what_the_machine_has_unless_it_is_traced_for_something_else(monkeypatch):
    assert (machine_target(), for_gpu()) == ("cpu", False)
    with traced_for("gpu"):
        assert for_gpu()
        with traced_for("cpu"):
            assert not for_gpu()
        with pytest.raises(KeyError), traced_for("cpu"):
            raise KeyError
        assert for_gpu()
    assert not for_gpu()
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["GPU:0"])
    assert (machine_target(), for_gpu()) == ("gpu", True)
    with traced_for("cpu"):
        assert not for_gpu()


def test_few_sizes_hold_every_number_and_the_next_smaller_one_does_not():
    traced = tf.function(few_sizes, input_signature=[tf.TensorSpec([], tf.int32)], autograph=False)
    for count in (0, 1, 63, 64, 65, 128, 129, 1000, 4000, 65537, FEW_SIZES[-1] - 1, FEW_SIZES[-1]):
        expected = min(size for size in FEW_SIZES if size >= count)
        assert int(traced(count)) == expected, count
    assert int(traced(FEW_SIZES[-1] + 1)) == FEW_SIZES[-1] + 1


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64", "bool", "bfloat16"])
def test_rows_are_padded_with_zeros(dtype):
    values = tf.cast([[1, 2], [3, 4]], dtype)
    padded = pad_rows(values, 5)
    assert padded.dtype == values.dtype
    assert tf.cast(padded, tf.int32).numpy().tolist() == [*tf.cast(values, tf.int32).numpy().tolist(), *[[0, 0]] * 3]
    assert pad_rows(values[:, 0], 2).shape == (2,)
