"""Training in a process of its own: what it is told, how it is stopped, and how its failure is said."""

import os
import signal
import sys
import threading
import time

import pytest

from dh_keras.config.load import load_config
from dh_keras.errors import Interrupted, TrainingError
from dh_keras.run.run_folder import write_run
from dh_keras.training.grid import GridRun, make_grid, train_one


def test_trainings_of_a_grid_are_equal_but_for_variant_and_seed_and_what_follows_from_the_variant(tmp_path):
    runs = make_grid(
        tmp_path / "grid",
        config_path=load_path(tmp_path),
        overrides=["train.seed=3", "model.rpn.box_loss_beta=0.5"],
        values={"data.train_tfrecords": "a #1", "data.val_annotations": "v.json", "data.val_images": "v"},
        variants=["double_head", "single_fc"],
        seeds=2,
    )
    assert [run.name for run in runs] == [
        "double_head, seed 3",
        "single_fc, seed 3",
        "double_head, seed 4",
        "single_fc, seed 4",
    ]
    for run in runs:
        written = load_config(run.config_file)
        assert written == run.config
        assert (written.model.variant, written.train.seed) == (run.variant, run.seed)
        assert written.data.train_tfrecords == "a #1"
        assert written.model.rpn.box_loss_beta == 0.5
        assert not run.is_finished
    assert [run.config.model.loss_weights.fc_class for run in runs[:2]] == [2.0, 1.0]
    assert len({run.folder for run in runs}) == 4


def load_path(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("train: {epochs: 2, drops: []}\n")
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A training whose process is what the test writes into a shell script."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    config_file = tmp_path / "config.yaml"
    config_file.write_text("")

    def make(script):
        (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\n{script}\n')
        (tmp_path / "python").chmod(0o755)
        return GridRun("single_fc", 1, load_config(), config_file, tmp_path / "run")

    return make


def test_a_training_is_begun_with_its_config_and_resumed_when_it_was_begun(run, tmp_path):
    planned = run("exit 0")
    train_one(planned, strategy="mirrored")
    words = (tmp_path / "words").read_text().split()
    assert words[:4] == ["-m", "dh_keras", "train", "--strategy"]
    assert words[4:] == ["mirrored", "--output", f"{tmp_path}/run", "--config", f"{tmp_path}/config.yaml"]
    planned.folder.mkdir()
    write_run(planned.folder, planned.config, ())
    train_one(planned, strategy="none")
    assert (tmp_path / "words").read_text().split()[4:] == ["none", "--output", f"{tmp_path}/run", "--resume"]


def test_a_training_that_fails_is_named(run):
    with pytest.raises(TrainingError, match=r"^single_fc, seed 1: training ended with status 7, its message is above"):
        train_one(run("exit 7"), strategy="none")


def test_a_signal_is_handed_on_and_waited_for(run, tmp_path):
    planned = run(
        f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 143' TERM\ntouch {tmp_path}/began\nwhile :; do sleep 0.05; done"
    )

    def stop():
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted, match="stopped by SIGTERM; the same command goes on from here") as stopped:
        train_one(planned, strategy="none")
    assert stopped.value.status == 143
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) == before
