"""The learning rate of every step, and how long training is."""

import math

import keras
import numpy as np
import pytest

from dh_keras.config.schema import TrainConfig
from dh_keras.training.schedule import Length, WarmupStepSchedule, describe_schedule, make_schedule, training_length


def test_the_authors_schedule_at_its_corners():
    schedule = make_schedule(TrainConfig(), batch_size=8, steps_per_epoch=14_659)
    rates = {step: float(schedule(step)) for step in (0, 250, 500, 119_999, 120_000, 159_999, 160_000, 179_999)}
    assert rates == pytest.approx(
        {
            0: 0.01 / 3,
            250: 0.01 * 2 / 3,
            500: 0.01,
            119_999: 0.01,
            120_000: 0.001,
            159_999: 0.001,
            160_000: 0.0001,
            179_999: 0.0001,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(("batch_size", "lr"), [(1, 0.00125), (2, 0.0025), (8, 0.01), (16, 0.02)])
def test_the_rate_grows_with_the_batch(batch_size, lr):
    schedule = make_schedule(
        TrainConfig(epochs=2, steps=None, drops=[], warmup_steps=0), batch_size=batch_size, steps_per_epoch=10
    )
    assert float(schedule(0)) == pytest.approx(lr)


def test_drops_in_epochs_become_steps():
    schedule = make_schedule(
        TrainConfig(epochs=12, steps=None, drops=[8, 11], warmup_steps=0), batch_size=8, steps_per_epoch=7
    )
    assert schedule.drops == [56, 77]
    assert float(schedule(55)) == pytest.approx(0.01)
    assert float(schedule(56)) == pytest.approx(0.001)


def test_a_schedule_comes_back_from_its_config():
    schedule = WarmupStepSchedule(lr=0.3, warmup_steps=7, warmup_factor=0.2, drops=[9, 12], drop_factor=0.5)
    copy = WarmupStepSchedule.from_config(schedule.get_config())
    np.testing.assert_array_equal([copy(s) for s in range(15)], [schedule(s) for s in range(15)])
    assert float(copy(12)) == pytest.approx(0.3 * 0.25)


def test_the_length_counts_a_shorter_last_epoch():
    assert training_length(TrainConfig(epochs=3, steps=None), 10) == Length(steps=30, epochs=3, steps_per_epoch=10)
    assert training_length(TrainConfig(steps=25), 10) == Length(steps=25, epochs=3, steps_per_epoch=10)
    assert training_length(TrainConfig(steps=30), 10) == Length(steps=30, epochs=3, steps_per_epoch=10)


@pytest.mark.parametrize("warmup", [0, 4])
def test_a_cosine_falls_from_the_end_of_the_warm_up_to_zero_at_the_end_of_training(warmup):
    config = TrainConfig(
        epochs=3, steps=None, drops=[], schedule="cosine", lr=0.02, warmup_steps=warmup, warmup_factor=0.25
    )
    schedule = make_schedule(config, batch_size=4, steps_per_epoch=7)
    top, steps = 0.01, 21

    def plain(step):
        if step < warmup:
            return top * (0.25 + 0.75 * step / warmup)
        return top / 2 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    np.testing.assert_allclose(
        [float(schedule(step)) for step in range(steps)], [plain(step) for step in range(steps)], rtol=1e-5
    )
    assert float(schedule(warmup)) == pytest.approx(top)
    assert float(schedule(steps)) == pytest.approx(0, abs=1e-9)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert float(copy(9)) == float(schedule(9))


def test_what_is_going_to_be_done_is_said_in_one_line():
    steps = TrainConfig(epochs=3, steps=None, drops=[2], lr=0.02, warmup_steps=5, accumulate=2)
    assert describe_schedule(steps, Length(21, 3, 7), batch_size=2) == (
        "schedule: 21 steps (3 epochs of 7) of sgd, lr 0.02 for a batch of 8 -> 0.01 for a batch of 4 (2 of 2 for one "
        "step), warm-up 5 steps, drops after steps [14]"
    )
    cosine = TrainConfig(steps=20, drops=[], schedule="cosine", optimizer="adamw", lr=1e-4, warmup_steps=5)
    assert describe_schedule(cosine, Length(20, 3, 7), batch_size=8) == (
        "schedule: 20 steps (3 epochs of 7) of adamw, lr 0.0001 for a batch of 8 -> 0.0001 for a batch of 8, warm-up 5 "
        "steps, then a cosine to 0"
    )
