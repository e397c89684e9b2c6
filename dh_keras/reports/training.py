"""A training with its report, as the command line and Python have it."""

from collections.abc import Sequence
from pathlib import Path

import keras

from dh_keras.config.schema import Config
from dh_keras.pretrained.fetch import published_run
from dh_keras.reports import run_report
from dh_keras.reports.run_data import names_validation
from dh_keras.run.run_folder import RunFolder
from dh_keras.training import loop
from dh_keras.training.workers.cluster import read_cluster


def train(
    config: Config | None,
    *,
    output: str | Path,
    strategy: str = "none",
    resume: bool = False,
    init: str | Path | None = None,
    worker_timeout: float = 180.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> RunFolder:
    """Train a detector and, where there are validation images, write the report of its run; see `analyze_run`.

    SIGTERM or Ctrl-C ends training after the running step, with everything saved that `resume` needs.

    Args:
        config: validated; paths to data may be null for the generated shapes dataset. With resume it may differ from
            the run's own where nothing of a step changes, and None takes the run's.
        output: the run folder; must be new or empty, unless resume.
        strategy: "none" for one device, "mirrored" for all GPUs of this machine, "multi_worker" for all of TF_CONFIG.
        resume: go on from the run folder's state, to the same weights and losses as if it had not stopped.
        init: run folder, weights file or name of published weights to start from.
        worker_timeout: seconds to wait for the other workers of "multi_worker", all of which must be given the same
            arguments and see the run folder; the first one writes it.
        callbacks: of Keras. Logs of a batch are the losses of its step, those of an epoch the means with, after an
            evaluation, "val_loss", the other losses and AP; "loss" is the weighted total. An error of theirs ends
            training, and the run can be resumed from its last checkpoint.

    Returns:
        The run folder, with weights, metrics, pictures and the report in it.

    Raises:
        DataError, ConfigError, TrainingError, WriteError: one line that says what to change.
        Interrupted: when a signal ended training and everything is saved.
    """
    run = loop.train(
        config,
        output=output,
        strategy=strategy,
        resume=resume,
        init=init and published_run(init),
        worker_timeout=worker_timeout,
        callbacks=callbacks,
    )
    is_chief = strategy != "multi_worker" or read_cluster().index == 0
    if is_chief and names_validation(run.config.data):
        run_report.analyze_run(run.path)
    return run
