"""The learning rate of every step, and how long training is."""

import numpy as np
import pytest

from dh_keras.config.schema import TrainConfig
from dh_keras.training.schedule import Length, WarmupStepSchedule, make_schedule, training_length


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
