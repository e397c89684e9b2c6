"""Private methods of Keras that this package overrides or calls. Nothing outside of this file touches one.

Each says what it does for us and what it would take to do without. `tests/modeling/test_keras_hooks.py` fails when
Keras changes them or no longer calls them.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


class BuiltModel(keras.Model):
    """A model that has all its variables before `fit` sees it."""

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Do nothing where Keras would read a batch, average it over the replicas and trace the model with it.

        `fit` and `evaluate` do so under every strategy, also with a model that is built, and a mean of bools
        (`gt_valid`) fails. To do without: masks of floats in the batches, a model that can be called with a whole
        training batch, and a first batch that is read twice.
        """


class TakesSummedGradients:
    """Goes before a Keras optimizer's class: it is given gradients that are summed over replicas, and checked.

    In the place of the learning rate `update_step` gets what `scalars_of_step` makes of it once for all variables.
    """

    def scalars_of_step(self, learning_rate: tf.Tensor, finite: tf.Tensor) -> Any:
        """The learning rate, float32 [], which is not finite when a gradient is not; for optimizers to say more."""
        return tf.where(finite, learning_rate, float("nan"))

    def _all_reduce_sum_gradients(self, grads_and_vars: list) -> list:
        """Nothing left to do.

        Keras clips what each replica has and sums the rest, but the norm of a part is not the norm of the whole; and
        its loss scaling looks at what one replica has. To do without: an optimizer that can be told.
        """
        return list(grads_and_vars)

    def _backend_update_step(self, grads: list, trainable_variables: list, learning_rate: Any) -> None:
        """Let `update_step` know whether all gradients are finite.

        It sees one variable only. To do without: apply the gradients in a `tf.cond`, which waits for the device and
        which no strategy allows around an update.
        """
        finite = tf.math.is_finite(tf.linalg.global_norm(grads))
        scalars = self.scalars_of_step(tf.convert_to_tensor(learning_rate), finite)
        super()._backend_update_step(grads, trainable_variables, scalars)


def slot_of(optimizer: keras.optimizers.Optimizer, slots: list[Any], variable: Any) -> Any:
    """What an optimizer keeps for a variable, from a list in the order in which it was built.

    Under a strategy `update_step` gets a replica's own part of a variable, and `_get_variable_index` knows whose part
    it is; Keras' own instructions for writing an optimizer use it. To do without: find out which part belongs to which
    variable, as `_var_key` does.
    """
    return slots[optimizer._get_variable_index(variable)]


@contextlib.contextmanager
def weights_to_come() -> Iterator[None]:
    """Layers that are made meanwhile begin with zeros where they would draw, for a model whose weights are read next.

    No public function leaves variables without a value, and to draw those of ResNet-50 takes half of the time it takes
    to build. To do without: wait for them. Other threads should not make layers meanwhile.
    """
    drawn = (keras.initializers.VarianceScaling, keras.initializers.RandomNormal)
    calls = {kind: kind.__call__ for kind in drawn}
    for kind in drawn:
        kind.__call__ = lambda self, shape, dtype=None, **options: keras.ops.zeros(shape, dtype)
    try:
        yield
    finally:
        for kind, call in calls.items():
            kind.__call__ = call


@contextlib.contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Layers that are made meanwhile have weights that depend on the seed alone; the caller's random numbers do not.

    Initializers, drop-out and all else in Keras that has no seed takes one from Python's `random` when it is made, and
    draws without a state from then on; no public function says so. So that generator is seeded and put back, and those
    of NumPy, TensorFlow and Keras are left alone (TensorFlow's could not be put back). To do without: a seed for every
    initializer by hand, which the layers of KerasHub do not take. Other threads should not draw meanwhile.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
