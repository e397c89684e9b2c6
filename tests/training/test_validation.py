"""What is measured on validation images while training, the averages of weights, and the end for want of progress."""

import dataclasses
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from training.run_comparison import differences, rows_of, state_of, weights_of

from dh_keras.config.load import load_config
from dh_keras.data.augment import size_limits
from dh_keras.data.canvases import canvas_of
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.pipeline import plan_batches, train_dataset
from dh_keras.errors import Interrupted
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.training_step import TrainingStep
from dh_keras.training import validation
from dh_keras.training.callbacks import StepCounter
from dh_keras.training.loop import train
from dh_keras.training.progress import Progress
from dh_keras.training.schedule import Length
from dh_keras.training.validation import averaged_weights, validation_losses
from dh_keras.training.workers.workers import Workers

pytestmark = pytest.mark.usefixtures("quick_graphs")


def values_of(variables):
    return [variable.numpy() for variable in variables]


def test_validation_losses_are_the_means_of_the_losses_of_unaugmented_batches(
    make_tiny_detector, tiny_shapes, tiny_overrides
):
    config = load_config(
        overrides=[*tiny_overrides, "data.flip_probability=1", "data.scale_jitter=[0.5,0.6]", "data.batch_size=4"]
    )
    dataset = load_coco(tiny_shapes.val_annotations, tiny_shapes.val_images)
    detector = make_tiny_detector(num_classes=dataset.num_classes)
    given = {"distribution": tf.distribute.get_strategy(), "workers": Workers()}
    found = validation_losses(detector, dataset, config, **given)
    assert validation_losses(detector, dataset, config, **given) == found
    plain = dataclasses.replace(config.data, augmentation="none", scale_jitter=None)
    plan = plan_batches(canvas_of(dataset.sizes, **size_limits(plain)), batch_size=4, epochs=1, seed=0)
    batches = list(train_dataset(dataset, plain, plan=plan, seed=0))
    assert set(np.concatenate([batch["image_ids"] for batch in batches])) == set(dataset.image_ids)
    losses = [detector.compute_losses(batch, training=False) for batch in batches]
    for name in LOSS_NAMES:
        expected = np.mean([batch[name].numpy() for batch in losses])
        np.testing.assert_allclose(found[f"val_{name}"], expected, rtol=1e-5, atol=1e-7, err_msg=name)
    total = sum(weight * found[f"val_{name}"] for name, weight in detector.loss_weights.items())
    np.testing.assert_allclose(found["val_total_loss"], total, rtol=1e-5)
    assert found["val_fc_class_loss"] > 0.1


class Wandering(TrainingStep):
    """A fully connected layer whose gradients are random numbers, the second not finite."""

    num_classes = 1

    def __init__(self, optimizer):
        super().__init__(loss_weights={}, seed=0)
        self.dense = keras.layers.Dense(2)
        self.dense.build((None, 3))
        self.compile(optimizer, report="step")

    def _gradients_and_losses(self, batch):
        step = batch["image_ids"][0]
        gradients = [
            self.optimizer.scale_loss(tf.random.stateless_normal(variable.shape, [step, number]))
            * tf.where(step == 1, float("nan"), 1.0)
            for number, variable in enumerate(self.trainable_variables)
        ]
        return gradients, {}


@pytest.mark.parametrize("scaled", [False, True])
def test_averages_follow_the_weights_and_are_shown_only_within(scaled):
    optimizer = RecipeSGD(0.1, use_ema=True, ema_momentum=0.8)
    model = Wandering(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer)
    for step in range(5):
        model.train_step(dict.fromkeys(["image_ids", "image_sizes", "gt_valid"], tf.constant([step])))
        weights = values_of(model.trainable_variables)
        if step == 0:
            expected = weights
        elif step > 1 or not scaled:  # Keras leaves a step out whose scaled gradients are not finite
            expected = [0.8 * average + 0.2 * weight for average, weight in zip(expected, weights, strict=True)]
    with averaged_weights(model):
        for variable, average, weight in zip(model.trainable_variables, expected, weights, strict=True):
            np.testing.assert_allclose(variable.numpy(), average, rtol=1e-5)
            assert np.abs(average - weight).max() > 0.01
    for variable, weight in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), weight)


@pytest.mark.slow
def test_a_run_ends_when_ap_does_not_rise_and_saves_averages_also_when_it_was_stopped_in_between(
    tmp_path, tiny_overrides, shapes_arguments, short_training, monkeypatch, capsys
):
    metrics = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 0.25)
    monkeypatch.setattr(validation, "evaluate_together", lambda *args, **kwargs: metrics)
    quick = ("train.sanity_images=0", "train.pictures=0", "train.epochs=5")
    asked = ("train.patience=1", "train.ema_momentum=0.7")
    config = load_config(overrides=[*tiny_overrides, *shapes_arguments, *short_training, *quick, *asked])
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config, output=whole)
    assert "no better AP in 1 evaluations: training ends here (train.patience)" in capsys.readouterr().out
    assert [row["epoch"] for row in rows_of(whole)] == ["1", "2"]
    assert all(float(row["val_total_loss"]) > 0 for row in rows_of(whole))

    count = StepCounter.on_train_batch_end

    def count_and_stop(self, batch, logs):
        if self.progress.step == 9:
            signal.raise_signal(signal.SIGTERM)
        count(self, batch, logs)

    monkeypatch.setattr(StepCounter, "on_train_batch_end", count_and_stop)
    with pytest.raises(Interrupted):
        train(config, output=run)
    monkeypatch.setattr(StepCounter, "on_train_batch_end", count)
    train(None, output=run, resume=True)
    assert set(differences(run, whole).values()) == {0.0}

    state, last, best = state_of(run), weights_of(run / "last.weights.h5"), weights_of(run / "best.weights.h5")
    shapes = sorted(array.shape for array in last.values())
    raw = [array for name, array in state.items() if name.startswith("model/")]
    for saved in (last, best):  # of arrays with unlike shapes there is only one that it could be
        for array in saved.values():
            if array.ndim > 1 and shapes.count(array.shape) == 1:
                assert not any(np.array_equal(array, other) for other in raw)
    capsys.readouterr()
    train(None, output=run, resume=True)
    assert f"{run}: has finished, after 14 of 35 steps; nothing to go on with" in capsys.readouterr().out


def test_evaluations_without_a_better_ap_are_counted_and_a_training_may_have_enough_of_them():
    progress, length = Progress(step=3, recorded_step=3), Length(steps=9, epochs=3, steps_per_epoch=3)
    given = [(0.0, True, 0), (0.3, True, 0), (0.3, False, 1), (0.1, False, 2), (0.4, True, 0)]
    for ap, is_best, since in given:
        assert progress.add_evaluation(ap) == is_best
        assert progress.evaluations_since_best == since
        assert progress.is_over(length, patience=2) == (since == 2)
        assert not progress.is_over(length, patience=0)
    assert progress.best_ap == 0.4
    assert Progress(step=9, recorded_step=9).is_over(length, patience=0)
    assert Progress.from_dict(progress.as_dict(), length) == progress
    for wrong in (-1, 1.0, "2", None):
        with pytest.raises(ValueError, match="evaluations"):
            Progress.from_dict({**progress.as_dict(), "evaluations_since_best": wrong}, length)
