"""The optimizers of a training: stochastic gradient descent as the published recipes use it, and AdamW."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dh_keras.config.schema import TrainConfig
from dh_keras.modeling.keras_hooks import TakesSummedGradients, slot_of

# What PyTorch calls bias: of convolutions and fully connected layers, and the offset of a norm.
BIAS_NAMES = ("bias", "beta")


class StepScalars(NamedTuple):
    """What a step has for all variables.

    Args:
        finite: bool [], whether all gradients are.
        learning_rate: float32 [], 0 when one of them is not.
        momentum: float32 [], the share of a velocity that is kept: all of it when one is not.
    """

    finite: tf.Tensor
    learning_rate: tf.Tensor
    momentum: tf.Tensor


class _Recipe(TakesSummedGradients):
    """Goes before a Keras optimizer's class: clips gradients by their norm, and has biases learn and decay otherwise.

    Gradients are those of all replicas together; when any is not finite, no weight and no slot changes.
    """

    momentum = 0.0  # of those that have no such argument

    def __init__(
        self,
        learning_rate: Any,
        *,
        l2: float,
        bias_lr_factor: float,
        bias_l2: float | None,
        clip_norm: float | None,
        **kwargs: Any,
    ):
        kwargs.pop("global_clipnorm", None)
        super().__init__(learning_rate, global_clipnorm=clip_norm, **kwargs)
        self.l2 = l2
        self.bias_lr_factor = bias_lr_factor
        self.bias_l2 = l2 if bias_l2 is None else bias_l2

    def build(self, variables: list[Any]) -> None:
        """Create the slots, and find out which variables are biases: those that their layer calls so."""
        super().build(variables)
        self._are_biases = [variable.name in BIAS_NAMES for variable in variables]

    def scalars_of_step(self, learning_rate: tf.Tensor, finite: tf.Tensor) -> StepScalars:
        """What `update_step` gets for every variable, whose updates would else repeat it."""
        return StepScalars(finite, tf.where(finite, learning_rate, 0.0), tf.where(finite, self.momentum, 1.0))

    def rate_and_decay(self, variable: Any, learning_rate: tf.Tensor) -> tuple[tf.Tensor, float]:
        """The learning rate of one variable, in its type, and its l2."""
        factor, l2 = 1.0, self.l2
        if slot_of(self, self._are_biases, variable):
            factor, l2 = self.bias_lr_factor, self.bias_l2
        return tf.cast(learning_rate if factor == 1.0 else factor * learning_rate, variable.dtype), l2

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = super().get_config()
        own = {name: getattr(self, name) for name in ("l2", "bias_lr_factor", "bias_l2")}
        return {**config, **own, "clip_norm": config.pop("global_clipnorm")}


@keras.saving.register_keras_serializable(package="dh_keras")
class RecipeSGD(_Recipe, keras.optimizers.SGD):
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
        own = {"l2": l2, "bias_lr_factor": bias_lr_factor, "bias_l2": bias_l2, "clip_norm": clip_norm}
        super().__init__(learning_rate, momentum=momentum, name=name, **own, **kwargs)

    def update_step(self, gradient: tf.Tensor, variable: Any, step: StepScalars) -> None:
        """Update one variable and its velocity in place, unless a gradient is not finite.

        A velocity that is assigned lies elsewhere after every step, in the midst of what the next step needs.
        """
        rate, l2 = self.rate_and_decay(variable, step.learning_rate)
        with tf.control_dependencies([step.finite]):  # or the weights would be copied before the gradients are there
            gradient = tf.cast(gradient, variable.dtype) + l2 * tf.convert_to_tensor(variable)
        gradient = tf.where(step.finite, gradient, 0.0)
        if not self.momentum:
            self.assign_sub(variable, rate * gradient)
            return
        tf.raw_ops.ResourceApplyMomentum(
            var=_handle(variable),
            accum=_handle(slot_of(self, self.momentums, variable)),
            lr=rate,
            grad=gradient,
            momentum=tf.cast(step.momentum, variable.dtype),
        )


@keras.saving.register_keras_serializable(package="dh_keras")
class RecipeAdamW(_Recipe, keras.optimizers.Adam):
    """Keras' AdamW, with the biases, the clipping and the sums over replicas of `RecipeSGD`.

    weight -= learning_rate * (l2 * weight + mean / (deviation + epsilon)), where mean and deviation are the running
    ones of the clipped gradient, corrected for their start at zero.

    Args:
        learning_rate: number or schedule; about how far a weight moves in a step, whatever its gradient.
        beta_1: share of the running mean that is kept.
        beta_2: share of the running square that is kept.
        epsilon: added to the deviation before its start is corrected for, as Keras does.
        l2: weight decay of every trainable variable but biases, apart from the gradient.
        bias_lr_factor: the learning rate of biases is so many times that of the other variables.
        bias_l2: the l2 of biases; None takes l2.
        clip_norm: largest global norm of the gradients; None does not clip.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        l2: float = 0.0,
        bias_lr_factor: float = 1.0,
        bias_l2: float | None = None,
        clip_norm: float | None = None,
        name: str = "recipe_adamw",
        **kwargs: Any,
    ):
        own = {"l2": l2, "bias_lr_factor": bias_lr_factor, "bias_l2": bias_l2, "clip_norm": clip_norm}
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, name=name, **own, **kwargs)

    def update_step(self, gradient: tf.Tensor, variable: Any, step: StepScalars) -> None:
        """Update one variable and its slots, unless a gradient is not finite."""
        finite, dtype = step.finite, variable.dtype
        rate, l2 = self.rate_and_decay(variable, step.learning_rate)
        gradient, weight = tf.cast(gradient, dtype), tf.convert_to_tensor(variable)
        moments = []
        for slots, beta, new in (
            (self._momentums, self.beta_1, gradient),
            (self._velocities, self.beta_2, tf.square(gradient)),
        ):
            slot = slot_of(self, slots, variable)
            old = tf.convert_to_tensor(slot)
            moments.append(tf.where(finite, old + (1.0 - beta) * (new - old), old))
            self.assign(slot, moments[-1])
        number = tf.cast(self.iterations + 1, dtype)
        correction = tf.sqrt(1.0 - self.beta_2**number) / (1.0 - self.beta_1**number)
        mean, square = moments
        self.assign_sub(variable, rate * (l2 * weight + correction * mean / (tf.sqrt(square) + self.epsilon)))


def make_optimizer(train: TrainConfig, learning_rate: Any) -> RecipeSGD | RecipeAdamW:
    """The optimizer that a config asks for.

    Args:
        train: its keys of the optimizer; lr and the schedule are not read.
        learning_rate: number or schedule.
    """
    given = {
        "l2": train.l2,
        "bias_lr_factor": train.bias_lr_factor,
        "bias_l2": train.bias_l2,
        "clip_norm": train.clip_norm or None,
        "use_ema": train.ema_momentum > 0,
        "ema_momentum": train.ema_momentum,
    }
    if train.optimizer == "adamw":
        return RecipeAdamW(learning_rate, beta_1=train.momentum, **given)
    return RecipeSGD(learning_rate, momentum=train.momentum, **given)


def _handle(variable: Any) -> tf.Tensor:
    """Of a variable of Keras, or of a replica's part of one."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def recipe_optimizer() -> RecipeSGD:
    """The optimizer of the published recipe, with its learning rate for a batch of 8 images and no schedule."""
    return make_optimizer(TrainConfig(), TrainConfig().lr)
