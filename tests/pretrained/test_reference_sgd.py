"""Ten training steps on a reference photograph against PyTorch's SGD rule written out, and against PyTorch's own."""

import importlib.util

import numpy as np
import parity
import pytest
import tensorflow as tf

from dh_keras.config.schema import TrainConfig
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.pretrained.importer import convert_checkpoint
from dh_keras.training.schedule import make_schedule

pytestmark = [
    pytest.mark.usefixtures("quick_graphs"),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is needed to read checkpoints"),
    pytest.mark.skipif(
        not parity.REFERENCE.is_dir(), reason=f"no reference folder at {parity.REFERENCE}; set DH_KERAS_REFERENCE"
    ),
]

STEPS = 10
SETTINGS = TrainConfig(steps=STEPS, drops=[7], lr=0.01, warmup_steps=4, warmup_factor=1 / 3, momentum=0.9, l2=0.01)
# The reference's random predictors have gradients in the thousands; with these weights ten steps lower the loss.
LOSS_SCALE = 1e-4


def make_model(family, optimizer):
    model = convert_checkpoint(parity.REFERENCE / parity.FOLDERS[family] / "checkpoint.pth").model
    model.rpn.batch_size = model.roi.batch_size = parity.SAMPLE_ALL
    model.rpn.positive_fraction = model.roi.foreground_fraction = 1.0
    model.rpn.post_nms_train = 200  # fewer RoIs, for the time it takes
    model.loss_weights = {name: LOSS_SCALE * weight for name, weight in model.loss_weights.items()}
    model.compile(optimizer=optimizer, report="step")
    return model


def plain_learning_rate(step):
    rate = SETTINGS.lr * (1 / 3 + 2 / 3 * step / 4 if step < 4 else 1.0)
    return rate * 0.1 if step >= 7 else rate


@pytest.mark.parametrize("family", ["authors", pytest.param("mmdetection", marks=pytest.mark.slow)])
def test_ten_steps_with_momentum_decay_warm_up_and_a_drop_are_pytorch_s(family):
    import torch

    batch = parity.training_batch(parity.load_case(family), 2)
    model = make_model(
        family, RecipeSGD(make_schedule(SETTINGS, batch_size=8, steps_per_epoch=1), momentum=0.9, l2=0.01)
    )
    start = [variable.numpy() for variable in model.trainable_variables]
    train_step = tf.function(lambda: (model.reset_metrics(), model.train_step(batch))[1]["total_loss"])
    losses = [float(train_step()) for _ in range(STEPS)]

    other = make_model(family, RecipeSGD(0.0))
    variables = other.trainable_variables

    @tf.function
    def gradients_and_loss():
        with tf.GradientTape() as tape:
            total = other.weighted_total(other.compute_losses(batch, training=True))
        return tape.gradient(total, variables), total

    weights = [value.astype(np.float64) for value in start]
    velocities = [np.zeros_like(value) for value in weights]
    tensors = [torch.nn.Parameter(torch.tensor(value)) for value in start]
    sgd = torch.optim.SGD(tensors, lr=0.0, momentum=0.9, weight_decay=0.01)
    for step in range(STEPS):
        gradients, loss = gradients_and_loss()
        np.testing.assert_allclose(losses[step], float(loss), rtol=1e-5)
        sgd.param_groups[0]["lr"] = plain_learning_rate(step)
        for index, gradient in enumerate(gradients):
            tensors[index].grad = torch.tensor(gradient.numpy())
            decayed = gradient.numpy().astype(np.float64) + 0.01 * weights[index]
            velocities[index] = 0.9 * velocities[index] + decayed
            weights[index] = weights[index] - plain_learning_rate(step) * velocities[index]
            variables[index].assign(weights[index].astype(np.float32))
        sgd.step()
    assert losses[-1] < 0.9 * losses[0]

    worst = 0.0
    for variable, before, plain, tensor in zip(model.trainable_variables, start, weights, tensors, strict=True):
        moved = np.linalg.norm(plain - before)
        apart = np.linalg.norm(variable.numpy() - plain)
        assert apart <= 1e-3 * moved + 1e-12, (variable.path, apart, moved)
        assert np.linalg.norm(tensor.detach().numpy() - plain) <= 1e-3 * moved + 1e-12, variable.path
        worst = max(worst, apart / moved)
    print(f"largest difference of ten steps' movement: {worst:.1e}; loss {losses[0]:.3e} -> {losses[-1]:.3e}")
