"""Keras' private methods that the package leans on: they exist, Keras calls them as we think, and nobody else does."""

import ast
import inspect
import random
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import dh_keras
from dh_keras.modeling.keras_hooks import (
    BuiltModel,
    TakesSummedGradients,
    own_random_numbers,
    slot_of,
    weights_to_come,
)

PACKAGE = Path(dh_keras.__file__).parent
HOOKS = [
    (keras.Model, BuiltModel, "_maybe_symbolic_build"),
    (keras.optimizers.SGD, TakesSummedGradients, "_all_reduce_sum_gradients"),
    (keras.optimizers.SGD, TakesSummedGradients, "_backend_update_step"),
]


@pytest.mark.parametrize(("base", "ours", "name"), HOOKS, ids=[name for _, _, name in HOOKS])
def test_keras_has_the_method_with_the_arguments_of_ours(base, ours, name):
    theirs = inspect.signature(getattr(base, name)).parameters.values()
    overridden = inspect.signature(vars(ours)[name]).parameters.values()
    assert [(p.name, p.kind, p.default) for p in overridden] == [(p.name, p.kind, p.default) for p in theirs]


def test_fit_and_evaluate_would_build_symbolically_first():
    calls = []

    class Watched(BuiltModel):
        def _maybe_symbolic_build(self, *arguments, **options):
            calls.append("build")
            return super()._maybe_symbolic_build(*arguments, **options)

        def train_step(self, batch):
            calls.append("step")
            return {"loss": tf.reduce_mean(batch)}

        test_step = train_step

    model = Watched()
    model.compile(optimizer=keras.optimizers.SGD(), run_eagerly=True)
    batches = tf.data.Dataset.from_tensors(tf.ones([2, 1]))
    model.fit(batches, verbose=0)
    model.evaluate(batches, verbose=0)
    assert calls == ["build", "step"] * 2


@pytest.mark.parametrize("scaled", [False, True])
def test_keras_clips_gradients_before_it_sums_them_over_replicas(scaled):
    calls = []

    class Watched(keras.optimizers.SGD):
        def _clip_gradients(self, grads):
            calls.append(("clip", len(grads)))
            return super()._clip_gradients(grads)

        def _all_reduce_sum_gradients(self, grads_and_vars):
            calls.append(("sum", len(list(grads_and_vars))))
            return super()._all_reduce_sum_gradients(grads_and_vars)

    optimizer = keras.optimizers.LossScaleOptimizer(Watched(0.1)) if scaled else Watched(0.1)
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer.apply_gradients(zip([tf.ones([2]), tf.ones([1])], variables, strict=True))
    assert calls == [("clip", 2), ("sum", 2)]


def test_our_optimizer_clips_by_the_norm_of_the_sum_and_sums_no_more():
    """Two replicas that have the same gradients, without devices for them."""
    calls = []

    class Replicas(keras.optimizers.SGD):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            calls.append("sum")
            return [(2.0 * gradient, variable) for gradient, variable in grads_and_vars]

    class Ours(TakesSummedGradients, Replicas):
        pass

    variable = keras.Variable([0.0, 0.0])
    Ours(1.0, global_clipnorm=5.0).apply([tf.constant([6.0, 8.0])], [variable])
    np.testing.assert_allclose(variable.numpy(), [-3.0, -4.0], rtol=1e-6)  # of norm 10, cut to 5
    assert calls == []


@pytest.mark.parametrize("clip_norm", [None, 5.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_gradient_that_is_not_finite_makes_the_learning_rate_of_every_variable_so(bad, clip_norm):
    rates = []

    class Ours(TakesSummedGradients, keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            rates.append(float(learning_rate))

    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer = Ours(0.5, global_clipnorm=clip_norm)
    optimizer.apply([tf.ones([2]), tf.ones([1])], variables)
    optimizer.apply([tf.constant([1.0, bad]), tf.ones([1])], variables)
    np.testing.assert_array_equal(rates, [0.5, 0.5, np.nan, np.nan])


def test_what_a_step_has_for_all_variables_is_made_once():
    made, given = [], []

    class Ours(TakesSummedGradients, keras.optimizers.SGD):
        def scalars_of_step(self, learning_rate, finite):
            made.append((float(learning_rate), bool(finite)))
            return made

        def update_step(self, gradient, variable, scalars):
            given.append(scalars)

    Ours(0.5).apply([tf.ones([2]), tf.ones([1])], [keras.Variable([1.0, 2.0]), keras.Variable([3.0])])
    assert made == [(0.5, True)]
    assert [one is made for one in given] == [True, True]


def test_a_slot_is_found_by_the_variable_and_by_what_it_holds():
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0]), keras.Variable([4.0])]
    optimizer = keras.optimizers.SGD(0.1, momentum=0.5)
    optimizer.build(variables)
    for index, variable in enumerate(variables):
        for asked in (variable, variable.value):
            assert slot_of(optimizer, optimizer.momentums, asked) is optimizer.momentums[index]


def drawn():
    layer = keras.layers.Dense(3, kernel_initializer="glorot_uniform")
    layer.build((None, 5))
    dropped = keras.layers.Dropout(0.5)(tf.ones([4, 4]), training=True)
    return np.concatenate([layer.kernel.numpy().ravel(), dropped.numpy().ravel()])


def test_what_has_no_seed_takes_it_from_pythons_random_numbers_alone():
    results = []
    for other, seed in ((1, 7), (2, 7), (1, 8)):
        keras.utils.set_random_seed(other)
        with own_random_numbers(seed):
            results.append(drawn())
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_pythons_random_numbers_go_on_also_after_an_error():
    random.seed(5)
    expected = [random.random() for _ in range(3)]
    random.seed(5)
    found = [random.random()]
    with own_random_numbers(0):
        random.random()
    found.append(random.random())
    with pytest.raises(IndexError), own_random_numbers(0):
        random.choice([])
    assert [*found, random.random()] == expected


def private_names(*classes):
    names = {name for one in classes for name in dir(one) if name.startswith("_") and not name.startswith("__")}
    return {name for name in names if not name.startswith(tuple(f"_{one.__name__}__" for one in classes))}


def used_names(path):
    """Names of attributes that a file reads, and of functions that it defines, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node.lineno


def test_no_other_file_touches_a_private_name_of_keras():
    optimizers = (keras.optimizers.SGD, keras.optimizers.LossScaleOptimizer)
    theirs = private_names(keras.Model, keras.layers.Conv2D, *optimizers, keras.metrics.Mean, keras.Variable)
    assert {name for _, _, name in HOOKS} | {"_get_variable_index", "_flatten_layers"} <= theirs
    found = {
        str(path.relative_to(PACKAGE)): uses
        for path in PACKAGE.rglob("*.py")
        if (uses := [use for use in used_names(path) if use[0] in theirs])
    }
    assert found.keys() == {"modeling/keras_hooks.py"}, found
    assert {name for name, _ in found["modeling/keras_hooks.py"]} == {
        *(name for _, _, name in HOOKS),
        "_get_variable_index",
    }


def test_weights_that_will_be_read_are_not_drawn_and_those_made_afterwards_are(make_tiny_detector):
    def drawn_kernels():
        return [bool(np.any(v.numpy())) for v in make_tiny_detector().weights if v.path.endswith("kernel")]

    with weights_to_come():
        assert not any(drawn_kernels())
    after = drawn_kernels()
    assert all(after)
    assert len(after) > 40


def test_weights_are_drawn_again_also_after_an_error():
    with pytest.raises(KeyError), weights_to_come():
        raise KeyError
    assert np.any(keras.initializers.HeNormal(0)([3, 3]))
