"""The detector as people know a Keras model: `compile`, `fit`, `evaluate`, `predict`, saving and `export`."""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from dh_keras.errors import ConfigError
from dh_keras.modeling.keras_hooks import BuiltModel
from dh_keras.modeling.optimizer import recipe_optimizer
from dh_keras.modeling.user_data import as_arrays, first_rows, image_batch, training_batch

_OWN_LOSSES = "the model has its own losses; weigh them by model.loss_weights, or override compute_losses"
_REFUSED = {
    "loss": _OWN_LOSSES,
    "loss_weights": _OWN_LOSSES,
    "metrics": "measure AP with `dh-keras evaluate`, or in a callback",
    "weighted_metrics": "measure AP with `dh-keras evaluate`, or in a callback",
    "class_weight": "repeat the images of rare classes, as data.repeat_threshold does",
    "sample_weight": "leave out or repeat images",
}


class KerasModel(BuiltModel):
    """What `DoubleHeadRCNN` shares with the models that Keras' users know.

    `fit`, `evaluate`, `predict` and their kin `_on_batch` take arrays, and datasets of batches, as `training_batch` and
    `image_batch` of `user_data.py` describe them. Of arrays the first rows are looked at before anything starts.
    """

    def compile(
        self,
        optimizer: Any = None,
        loss: None = None,
        *,
        accumulate: int = 1,
        report: str = "epoch",
        timed: bool = True,
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        """As Keras does.

        Args:
            optimizer: of the weights; None takes the published recipe's: `RecipeSGD` with a constant learning rate of
                0.01, for batches of 8 images, momentum and L2 decay.
            loss: None, as the model has its own.
            accumulate: so many equal parts of a batch go through the network one after the other, for one update.
                Losses and gradients are the means of the parts', and those of the whole batch where every image has
                its full number of sampled anchors and RoIs, and no norm takes statistics of a batch.
            report: what a training step returns, and so what callbacks get as logs of a batch: "epoch", the means of
                the losses over the epoch so far, as Keras' own steps do; "step", the losses of this step alone, see
                `TrainingStep.train_step`.
            timed: whether a step that reports itself says how many seconds it waited for its batch, by this worker's
                own clock, which TensorFlow refuses to when it is deterministic.
            jit_compile: XLA has no kernels for RoIAlign.
            **kwargs: of Keras.

        Raises:
            ConfigError: for losses and metrics of the caller's.
        """
        _refuse({"loss": loss, **kwargs})
        if report not in ("epoch", "step"):
            raise ConfigError(f"`report`: expected epoch or step, got {report!r}")
        self.accumulate = accumulate
        self.report = report
        self.timed = timed
        with self.distribute_strategy.scope():
            optimizer = recipe_optimizer() if optimizer is None else optimizer
            super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
            self.optimizer.build(self.trainable_variables)  # inside a step of several replicas it would be too late
            # Not finite when the last step was not, and so changed nothing; finite with a loss scale.
            self.gradient_norm = tf.Variable(
                0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
            )

    def get_compile_config(self) -> dict[str, Any]:
        """Arguments of `compile`, the optimizer serialized; nothing for a model that is not compiled."""
        if not self.compiled:
            return {}
        names = ("accumulate", "report", "timed", "jit_compile", "run_eagerly", "steps_per_execution")
        optimizer = keras.saving.serialize_keras_object(self.optimizer)
        return {"optimizer": optimizer, **{name: getattr(self, name) for name in names}}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as a saved model was."""
        self.compile(**{**config, "optimizer": keras.saving.deserialize_keras_object(config["optimizer"])})

    def training_batch(self, data: Any) -> dict[str, tf.Tensor]:
        """See `user_data.training_batch`."""
        return training_batch(data, num_classes=self.num_classes)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As Keras does; the history has the means of every loss over the images of each epoch, "loss" is their
        weighted total, and with validation_data there is a val_ of each.
        """
        if isinstance(validation := kwargs.get("validation_data"), (tuple, list)):
            kwargs["validation_data"] = self._looked_at(*validation)
        return super().fit(*self._looked_at(x, y, **kwargs), *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Keras does: the mean losses, "loss" first."""
        return super().evaluate(*self._looked_at(x, y, **kwargs), *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: None = None, **kwargs: Any) -> Any:
        """As Keras does: one step."""
        return super().train_on_batch(*self._looked_at(x, y, sample_weight, **kwargs), **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: None = None, **kwargs: Any) -> Any:
        """As Keras does: the losses of one batch."""
        return super().test_on_batch(*self._looked_at(x, y, sample_weight, **kwargs), **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Keras does.

        Returns:
            Detections of all images in their order, as arrays: boxes float32 [N, D, 4], [y1, x1, y2, x2] in pixels of
            the images that were given, scores float32 [N, D], best first, classes int32 [N, D] and num_detections
            int32 [N], the rows that are not padding.
        """
        if rows := first_rows(x):
            image_batch(*rows)
        return super().predict(x, *args, **kwargs)

    def predict_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Detections of a batch; see `predict`."""
        batch = image_batch(data)
        return self.detect(self(batch, training=False), batch["image_sizes"])._asdict()

    def _looked_at(
        self, x: Any, y: Any = None, sample_weight: None = None, *, class_weight: None = None, **_: Any
    ) -> tuple[Any, Any]:
        """The same data, of which arrays are known to be usable as far as their first rows tell."""
        _refuse({"sample_weight": sample_weight, "class_weight": class_weight})
        x, y = as_arrays(x, y)
        if rows := first_rows(x, y):
            self.training_batch(rows)
        return x, y

    def export(self, filepath: str | Path, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """As Keras does: a SavedModel whose `serve` takes images uint8 [B, H, W, 3] and returns what `predict` does.

        `dh-keras export` writes one for TensorFlow Serving, which takes photographs of any size as bytes.

        Args:
            filepath: a new folder.
            format: "tf_saved_model".
            **kwargs: of `keras.export.ExportArchive.write_out`.

        Raises:
            ConfigError: for another format, and when the folder exists.
        """
        if format != "tf_saved_model":
            raise ConfigError(f"`format`: expected tf_saved_model, got {format!r}")
        if Path(filepath).exists():
            raise ConfigError(f"{filepath}: exists already; choose another folder")
        archive = keras.export.ExportArchive()
        archive.track(self)
        images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
        archive.add_endpoint("serve", lambda images: self.predict_step(images), input_signature=[images])
        archive.write_out(filepath, **kwargs)


def _refuse(arguments: dict[str, Any]) -> None:
    for name, advice in _REFUSED.items():
        if arguments.get(name) is not None:
            raise ConfigError(f"`{name}`: expected none: {advice}")
