"""Stochastic gradient descent as the published recipes use it."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.config.schema import TrainConfig
from dh_keras.modeling.keras_hooks import TakesSummedGradients, slot_of

# What PyTorch calls bias: of convolutions and fully connected layers, and the offset of a norm.
BIAS_NAMES = ("bias", "beta")


@keras.saving.register_keras_serializable(package="dh_keras")
class RecipeSGD(TakesSummedGradients, keras.optimizers.SGD):
    """SGD with PyTorch's momentum, L2 decay on the gradient, and clipping of the gradient.

    velocity = momentum * velocity + (gradient + l2 * weight); weight -= learning_rate * velocity. Keras keeps the
    learning rate inside the velocity, which differs at every change of it, and decays weights apart from the gradient.
    Gradients are those of all replicas together; when any is not finite, no weight and no velocity changes.

    Args:
        learning_rate: number or schedule.
        momentum: share of the velocity that is kept.
        l2: added to the clipped gradient as l2 * weight, for every trainable variable but biases.
        bias_lr_factor: the learning rate of biases is so many times that of the other variables.
        bias_l2: the l2 of biases; None takes l2.
        clip_norm: largest global norm of the gradients; None does not clip.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        momentum: float = 0.9,
        l2: float = 0.0,
        bias_lr_factor: float = 1.0,
        bias_l2: float | None = None,
        clip_norm: float | None = None,
        name: str = "recipe_sgd",
        **kwargs: Any,
    ):
        kwargs.pop("global_clipnorm", None)
        super().__init__(learning_rate, momentum=momentum, global_clipnorm=clip_norm, name=name, **kwargs)
        self.l2 = l2
        self.bias_lr_factor = bias_lr_factor
        self.bias_l2 = l2 if bias_l2 is None else bias_l2

    def build(self, variables: list[Any]) -> None:
        """Create the velocities, and find out which variables are biases: those that their layer calls so."""
        super().build(variables)
        self._are_biases = [variable.name in BIAS_NAMES for variable in variables]

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: Any) -> None:
        """Update one variable and its velocity, unless the learning rate is not finite."""
        finite, factor, l2 = tf.math.is_finite(learning_rate), 1.0, self.l2
        if slot_of(self, self._are_biases, variable):
            factor, l2 = self.bias_lr_factor, self.bias_l2
        gradient = tf.cast(gradient, variable.dtype) + l2 * tf.convert_to_tensor(variable)
        velocity = 0.0
        if self.momentum:
            slot = slot_of(self, self.momentums, variable)
            velocity = tf.convert_to_tensor(slot)
            gradient += self.momentum * velocity
        gradient = tf.where(finite, gradient, velocity)
        if self.momentum:
            self.assign(slot, gradient)
        rate = factor * tf.where(finite, learning_rate, 0.0)
        self.assign_sub(variable, tf.cast(rate, variable.dtype) * gradient)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = super().get_config()
        own = {name: getattr(self, name) for name in ("l2", "bias_lr_factor", "bias_l2")}
        return {**config, **own, "clip_norm": config.pop("global_clipnorm")}


def recipe_optimizer() -> RecipeSGD:
    """The optimizer of the published recipe, with its learning rate for a batch of 8 images and no schedule."""
    recipe = TrainConfig()
    return RecipeSGD(
        recipe.lr,
        momentum=recipe.momentum,
        l2=recipe.l2,
        bias_lr_factor=recipe.bias_lr_factor,
        bias_l2=recipe.bias_l2,
    )
