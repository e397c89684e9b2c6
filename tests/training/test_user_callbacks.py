"""Keras callbacks of the caller's: what they are told and when; that they may end training; what an error leaves."""

from types import SimpleNamespace

import keras
import pytest
from training.run_comparison import differences, rows_of

import dh_keras
from dh_keras.config.load import load_config
from dh_keras.config.schema import Config
from dh_keras.errors import ConfigError
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.training.callbacks import EvaluationHelper
from dh_keras.training.loop import train
from dh_keras.training.progress import Progress
from dh_keras.training.schedule import Length
from dh_keras.training.user_callbacks import UserCallbacks

LENGTH = Length(steps=14, epochs=2, steps_per_epoch=7)


class Diary(keras.callbacks.Callback):
    """Writes down what it is told; `at` is when it does something, and `do` what."""

    def __init__(self, at=None, do=None):
        super().__init__()
        self.told = []
        self.at = at
        self.do = do

    def write(self, *entry):
        self.told.append(entry)
        if entry[:2] == self.at:
            self.do(self)

    def on_train_begin(self, logs=None):
        self.write("train begins", self.params["epochs"], self.params["steps"], self.model.name)

    def on_train_end(self, logs=None):
        self.write("train ends", logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.write("epoch begins", epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.write("epoch ends", epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self.write("batch begins", batch)

    def on_train_batch_end(self, batch, logs=None):
        self.write("batch ends", batch, logs)

    def seen(self, kind):
        return [entry[1:] for entry in self.told if entry[0] == kind]


@pytest.fixture
def config(tiny_overrides, shapes_arguments, short_training):
    """Two epochs of seven steps with an evaluation each, those of `tiny_run`."""
    return load_config(overrides=[*tiny_overrides, *shapes_arguments, *short_training, "train.sanity_images=0"])


def fail(diary):
    raise RuntimeError("no connection")


def stop(diary):
    diary.model.stop_training = True


def test_callbacks_are_told_what_keras_would_tell_them_and_an_error_or_their_stop_costs_no_step(
    config, tiny_run, tmp_path, capsys
):
    run, failing, stopping, last = (
        tmp_path / "run",
        Diary(("epoch ends", 0), fail),
        Diary(("batch ends", 2), stop),
        Diary(),
    )
    with pytest.raises(RuntimeError, match="no connection"):
        train(config, output=run, callbacks=[failing])
    assert failing.told[0] == ("train begins", 2, 7, "double_head_rcnn")
    assert failing.seen("train ends") == []
    assert [batch for batch, _ in failing.seen("batch ends")] == [*range(7)]
    ((epoch, logs),) = failing.seen("epoch ends")
    row = rows_of(tiny_run)[0]
    assert (epoch, set(logs) >= {"loss", "val_loss", "AP", "AP50", *LOSS_NAMES}) == (0, True)
    assert not set(logs) & {"total_loss", "val_total_loss", "previous_gradient_norm", "data_wait", "step"}
    columns = {"loss": "total_loss", "val_loss": "val_total_loss"}
    for name in ("loss", "val_loss", "AP", *LOSS_NAMES):
        column = columns.get(name, name)
        assert logs[name] == pytest.approx(float(row[column]), rel=1e-4)
    steps = [logs for _, logs in failing.seen("batch ends")]
    assert all(set(one) == {"loss", *LOSS_NAMES} for one in steps)
    assert sum(one["loss"] for one in steps) / 7 == pytest.approx(logs["loss"], rel=1e-5)

    train(None, output=run, resume=True, callbacks=[stopping])
    assert stopping.seen("epoch begins") == [(1,)]
    assert [batch for batch, _ in stopping.seen("batch ends")] == [0, 1, 2]
    assert stopping.seen("epoch ends") == []
    assert stopping.seen("train ends") == [({},)]
    said = capsys.readouterr().out
    assert f"a callback ended training after step 10; go on with: dh-keras train --resume --output {run}" in said

    history = keras.callbacks.History()
    train(None, output=run, resume=True, callbacks=[last, history])
    assert [batch for (batch,) in last.seen("batch begins")] == [3, 4, 5, 6]
    assert [epoch for epoch, _ in last.seen("epoch ends")] == history.epoch == [1]
    assert last.seen("train ends") == [(last.seen("epoch ends")[0][1],)]
    assert history.history["val_loss"] == [pytest.approx(float(rows_of(tiny_run)[1]["val_total_loss"]), rel=1e-4)]
    assert set(differences(run, tiny_run).values()) == {0.0}


def test_an_epoch_without_an_evaluation_has_losses_only_and_numbers_that_are_not_defined_are_left_out():
    diary, progress = Diary(), Progress(step=7)
    users = UserCallbacks([diary], model=keras.Model(), progress=progress, length=LENGTH)
    users.begin()
    users.epoch_is_recorded(0, {"step": 7, "total_loss": 2.5, "rpn_box_loss": 1.0, "lr": 0.1, "data_wait": None})
    users.epoch_is_recorded(1, {"total_loss": 2.0, "val_total_loss": 3.0, "AP": 0.5, "APs": None})
    users.end()
    assert diary.seen("epoch ends") == [
        (0, {"loss": 2.5, "rpn_box_loss": 1.0}),
        (1, {"loss": 2.0, "val_loss": 3.0, "AP": 0.5}),
    ]
    assert diary.seen("train ends") == [({"loss": 2.0, "val_loss": 3.0, "AP": 0.5},)]


def test_a_worker_that_is_not_the_chief_tells_its_callbacks_the_same():
    diary = Diary()
    sums = {name: 14.0 for name in (*LOSS_NAMES, "total_loss")}
    progress = Progress(step=7, loss_sums=sums)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd")
    helper = EvaluationHelper(
        run=SimpleNamespace(config=Config()),
        progress=progress,
        length=LENGTH,
        evaluate=lambda: {"AP": 0.5, "APs": None, "val_total_loss": 3.0, "images": 6},
        users=UserCallbacks([diary], model=model, progress=progress, length=LENGTH),
    )
    helper.set_model(model)
    helper.on_epoch_end(0)
    means = dict.fromkeys((*LOSS_NAMES, "loss"), 2.0)
    assert diary.seen("epoch ends") == [(0, {**means, "val_loss": 3.0, "AP": 0.5})]
    assert (progress.recorded_step, progress.best_ap) == (7, 0.5)


def test_what_is_no_callback_is_refused_before_anything_is_read(config, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^`callbacks`: expected objects of keras\.callbacks\.Callback, got <function"
    ):
        train(config, output=tmp_path / "run", callbacks=[fail])
    assert not (tmp_path / "run").exists()


def test_python_gets_the_report_that_the_command_line_gets(tiny_run, tmp_path, monkeypatch):
    from dh_keras.reports import training
    from dh_keras.run.run_folder import open_run

    calls = []

    def pretend(config, **options):
        calls.append(options)
        return open_run(tiny_run)

    monkeypatch.setattr(training.loop, "train", pretend)
    monkeypatch.setattr(training.run_report, "analyze_run", calls.append)
    callbacks = [Diary()]
    run = dh_keras.train(load_config(), output=tmp_path / "run", init="weights.h5", callbacks=callbacks)
    assert run.path == tiny_run
    assert (calls[0]["output"], calls[0]["init"], calls[0]["callbacks"]) == (tmp_path / "run", "weights.h5", callbacks)
    assert calls[1:] == [tiny_run]
