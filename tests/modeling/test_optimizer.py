"""SGD and AdamW against plain NumPy versions of PyTorch's rules: clip, decay, running means, step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.schema import TrainConfig
from dh_keras.modeling.optimizer import RecipeAdamW, RecipeSGD, make_optimizer


def plain_sgd(weights, gradients, rates, *, momentum, l2, clip_norm, biases=(), bias_lr_factor=1.0, bias_l2=0.0):
    """torch.optim.SGD(momentum, weight_decay=l2) after clip_grad_norm_, in float64; biases are a group of their own."""
    weights = [np.array(w, np.float64) for w in weights]
    velocities = [np.zeros_like(w) for w in weights]
    for step_gradients, rate in zip(gradients, rates, strict=True):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in step_gradients))
        factor = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for index, gradient in enumerate(step_gradients):
            decay = bias_l2 if index in biases else l2
            velocities[index] = momentum * velocities[index] + gradient * factor + decay * weights[index]
            weights[index] = weights[index] - rate * (bias_lr_factor if index in biases else 1.0) * velocities[index]
    return weights


@pytest.mark.parametrize("clip_norm", [None, 2.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_across_a_drop_of_the_learning_rate_follow_pytorchs_rule(momentum, clip_norm):
    random = np.random.default_rng(3)
    start = [random.normal(size=shape).astype(np.float32) for shape in ((3, 2), (4,))]
    gradients = [[random.normal(size=w.shape).astype(np.float32) for w in start] for _ in range(8)]
    rates = [0.1, 0.2, 0.3, 0.3, 0.03, 0.03, 0.03, 0.003]

    class Table(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return tf.gather(tf.constant(rates), tf.cast(step, tf.int32))

    variables = [keras.Variable(w) for w in start]
    optimizer = RecipeSGD(Table(), momentum=momentum, l2=0.01, clip_norm=clip_norm)
    for step_gradients in gradients:
        optimizer.apply([tf.constant(g) for g in step_gradients], variables)
    expected = plain_sgd(start, gradients, rates, momentum=momentum, l2=0.01, clip_norm=clip_norm)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


def test_ten_steps_with_faster_biases_that_do_not_decay_follow_the_authors_parameter_groups():
    """The offset of a norm is called bias in PyTorch; its scale, and the kernels, learn as ever."""
    layers = [keras.layers.Conv2D(2, 1), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((2, 2, 1)), *layers])
    variables = model.trainable_variables
    biases = [index for index, v in enumerate(variables) if v.path.rsplit("/", 1)[1] not in ("kernel", "gamma")]
    assert [variables[index].path.rsplit("/", 1)[1] for index in biases] == ["bias", "beta", "bias"]
    random = np.random.default_rng(4)
    start = [random.normal(size=v.shape).astype(np.float32) for v in variables]
    gradients = [[random.normal(size=w.shape).astype(np.float32) for w in start] for _ in range(10)]
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    optimizer = RecipeSGD(0.1, momentum=0.9, l2=0.01, bias_lr_factor=2.0, bias_l2=0.0, clip_norm=2.0)
    for step_gradients in gradients:
        optimizer.apply([tf.constant(g) for g in step_gradients], variables)
    group = {"biases": biases, "bias_lr_factor": 2.0, "bias_l2": 0.0}
    expected = plain_sgd(start, gradients, [0.1] * 10, momentum=0.9, l2=0.01, clip_norm=2.0, **group)
    alike = plain_sgd(start, gradients, [0.1] * 10, momentum=0.9, l2=0.01, clip_norm=2.0)
    for index, (variable, value) in enumerate(zip(variables, expected, strict=True)):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
        assert np.allclose(value, alike[index]) == (index not in biases)


def test_a_variable_without_a_gradient_is_left_alone():
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer = RecipeSGD(0.1, l2=0.5)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.constant([1.0, 1.0]), None], variables)
    np.testing.assert_allclose(variables[0].numpy(), [1 - 0.1 * 1.5, 2 - 0.1 * 2.0])
    np.testing.assert_array_equal(variables[1].numpy(), [3.0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_that_is_not_finite_changes_no_weight_and_no_velocity(momentum):
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer = RecipeSGD(0.1, momentum=momentum, l2=0.5, clip_norm=4.0)
    optimizer.apply([tf.constant([1.0, -1.0]), tf.constant([2.0])], variables)
    kept = [*variables, *(optimizer.momentums if momentum else [])]
    before = [variable.numpy() for variable in kept]
    optimizer.apply([tf.constant([1.0, -1.0]), tf.constant([np.inf])], variables)
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_optimizer_comes_back_from_its_config():
    optimizer = RecipeSGD(0.25, momentum=0.5, l2=0.125, bias_lr_factor=2.0, bias_l2=0.5, clip_norm=3.0)
    copy = RecipeSGD.from_config(optimizer.get_config())
    assert (float(copy.learning_rate), copy.momentum, copy.global_clipnorm) == (0.25, 0.5, 3.0)
    assert (copy.l2, copy.bias_lr_factor, copy.bias_l2) == (0.125, 2.0, 0.5)


def plain_adamw(weights, gradients, rates, *, l2, clip_norm, biases=(), bias_lr_factor=1.0, bias_l2=0.0):
    """torch.optim.AdamW after clip_grad_norm_, in float64, with Keras' place of epsilon; biases are another group."""
    weights = [np.array(w, np.float64) for w in weights]
    means, squares = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for step, (step_gradients, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in step_gradients))
        factor = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for index, gradient in enumerate(step_gradients):
            own, decay = (rate * bias_lr_factor, bias_l2) if index in biases else (rate, l2)
            means[index] = 0.9 * means[index] + 0.1 * gradient * factor
            squares[index] = 0.999 * squares[index] + 0.001 * (gradient * factor) ** 2
            mean, square = means[index] / (1 - 0.9**step), squares[index] / (1 - 0.999**step)
            weights[index] *= 1 - own * decay
            weights[index] -= own * mean / (np.sqrt(square) + 1e-7 / np.sqrt(1 - 0.999**step))
    return weights


def biased_variables(random):
    """Kernel, scale and offset of a norm, bias; which are biases, and values for all."""
    layers = [keras.layers.Dense(2, use_bias=False), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    variables = keras.Sequential([keras.Input((2,)), *layers]).trainable_variables
    names = [variable.name for variable in variables]
    assert names == ["kernel", "gamma", "beta", "kernel", "bias"]
    for variable in variables:
        variable.assign(random.normal(size=variable.shape))
    return variables, [2, 4]


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_ten_steps_of_adamw_follow_pytorchs_rule_with_the_biases_of_the_recipe(clip_norm):
    random = np.random.default_rng(5)
    variables, biases = biased_variables(random)
    start = [variable.numpy() for variable in variables]
    rates = [0.01, 0.02, 0.03, 0.03, 0.03, 0.02, 0.01, 0.003, 0.001, 0.0]

    class Table(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return tf.gather(tf.constant(rates), tf.cast(step, tf.int32))

    gradients = [[random.normal(size=w.shape).astype(np.float32) for w in start] for _ in rates]
    group = {"l2": 0.5, "bias_lr_factor": 2.0, "bias_l2": 0.0, "clip_norm": clip_norm}
    optimizer = RecipeAdamW(Table(), **group)
    for step_gradients in gradients:
        optimizer.apply([tf.constant(g) for g in step_gradients], variables)
    expected = plain_adamw(start, gradients, rates, biases=biases, **group)
    alike = plain_adamw(start, gradients, rates, l2=0.5, clip_norm=clip_norm)
    for index, (variable, value) in enumerate(zip(variables, expected, strict=True)):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
        assert np.allclose(value, alike[index]) == (index not in biases)


def test_adamw_without_biases_of_its_own_is_that_of_keras():
    random = np.random.default_rng(6)
    variables, _ = biased_variables(random)
    others = [keras.Variable(variable.numpy()) for variable in variables]
    ours, theirs = RecipeAdamW(0.02, l2=0.1), keras.optimizers.AdamW(0.02, weight_decay=0.1)
    for _ in range(5):
        gradients = [tf.constant(random.normal(size=v.shape), tf.float32) for v in variables]
        ours.apply(gradients, variables)
        theirs.apply(gradients, others)
    for variable, other in zip(variables, others, strict=True):
        np.testing.assert_allclose(variable.numpy(), other.numpy(), rtol=1e-5, atol=1e-7)


def test_a_gradient_that_is_not_finite_changes_no_weight_and_no_mean_of_adamw():
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer = RecipeAdamW(0.1, l2=0.5, clip_norm=4.0)
    optimizer.apply([tf.constant([1.0, -1.0]), tf.constant([2.0])], variables)
    kept = [*variables, *(v for v in optimizer.variables if "momentum" in v.path or "velocity" in v.path)]
    assert len(kept) == 6
    before = [variable.numpy() for variable in kept]
    optimizer.apply([tf.constant([1.0, -1.0]), tf.constant([np.inf])], variables)
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_config_makes_the_optimizer_that_it_asks_for_and_it_comes_back_from_its_own():
    settings = {"momentum": 0.75, "l2": 0.125, "bias_lr_factor": 2.0, "bias_l2": 0.5, "clip_norm": 3.0}
    made = {}
    for name, kind in (("sgd", RecipeSGD), ("adamw", RecipeAdamW)):
        first = make_optimizer(TrainConfig(optimizer=name, ema_momentum=0.25, **settings), 0.001)
        for optimizer in (first, kind.from_config(first.get_config())):
            assert type(optimizer) is kind
            assert (optimizer.l2, optimizer.bias_lr_factor, optimizer.bias_l2) == (0.125, 2.0, 0.5)
            assert (optimizer.global_clipnorm, optimizer.use_ema, optimizer.ema_momentum) == (3.0, True, 0.25)
            assert float(optimizer.learning_rate) == pytest.approx(0.001)
        made[name] = first
    assert made["sgd"].momentum == made["adamw"].beta_1 == 0.75
    plain = make_optimizer(TrainConfig(), 0.1)
    assert (plain.global_clipnorm, plain.use_ema, plain.bias_l2) == (None, False, plain.l2)
