"""Stochastic gradient descent as the published recipes use it."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.keras_hooks import ClipsSummedGradients, slot_of


@keras.saving.register_keras_serializable(package="dh_keras")
class RecipeSGD(ClipsSummedGradients, keras.optimizers.SGD):
    """SGD with PyTorch's momentum, L2 decay on the gradient, and clipping of the gradient summed over replicas.

    velocity = momentum * velocity + (gradient + l2 * weight); weight -= learning_rate * velocity. Keras keeps the
    learning rate inside the velocity, which differs at every change of it, and decays weights apart from the gradient.

    Args:
        learning_rate: number or schedule.
        momentum: share of the velocity that is kept.
        l2: added to the clipped gradient as l2 * weight, for every trainable variable.
        clip_norm: largest global norm of the gradients; None does not clip.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        momentum: float = 0.9,
        l2: float = 0.0,
        clip_norm: float | None = None,
        name: str = "recipe_sgd",
        **kwargs: Any,
    ):
        kwargs.pop("global_clipnorm", None)
        super().__init__(learning_rate, momentum=momentum, global_clipnorm=clip_norm, name=name, **kwargs)
        self.l2 = l2

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: Any) -> None:
        """Update one variable and its velocity."""
        gradient = tf.cast(gradient, variable.dtype) + self.l2 * tf.convert_to_tensor(variable)
        if self.momentum:
            velocity = slot_of(self, self.momentums, variable)
            gradient += self.momentum * tf.convert_to_tensor(velocity)
            self.assign(velocity, gradient)
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * gradient)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = super().get_config()
        return {**config, "l2": self.l2, "clip_norm": config.pop("global_clipnorm")}
