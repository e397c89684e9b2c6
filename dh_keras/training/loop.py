"""One training run, from a config to a run folder."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from dh_keras.config.schema import Config
from dh_keras.data.verification import verify_images
from dh_keras.errors import TrainingError, WriteError
from dh_keras.files import CHOOSE_OR_RESUME, new_folder, require_new_folder, require_writable
from dh_keras.inference.detector import Detector, ModelDetector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.hub_backbone import resolve_model
from dh_keras.modeling.optimizer import make_optimizer
from dh_keras.paths import to_path
from dh_keras.pretrained.build import build_detector
from dh_keras.run.run_folder import PICTURES_DIR, STATE_FILE, RunFolder, open_run, write_run
from dh_keras.run.weights import initialize_weights, load_weights
from dh_keras.training.callbacks import EvaluationHelper, RunRecorder, StepCounter
from dh_keras.training.fitting import fit, worker_batches
from dh_keras.training.look import check_evaluation, format_model_table, write_pictures
from dh_keras.training.memory import check_memory
from dh_keras.training.progress import Progress, ProgressBar
from dh_keras.training.resume import (
    check_classes,
    check_config,
    cut_back,
    plan_fingerprint,
    restore,
    resume_command,
    save_state,
)
from dh_keras.training.schedule import describe_schedule, make_schedule
from dh_keras.training.signals import StopRequest
from dh_keras.training.strategy import join_workers, make_strategy, strategy_name
from dh_keras.training.training_data import TrainingData, load_training_data
from dh_keras.training.user_callbacks import UserCallbacks, check_callbacks
from dh_keras.training.validation import KeepRawWeights, validate
from dh_keras.training.workers.facts import config_facts, data_facts, program_facts, weights_facts
from dh_keras.training.workers.workers import Workers

# State, the one it replaces, the best and the last weights with theirs: together at most this many times the state.
COPIES_OF_STATE = 4
BYTES_PER_VALUE = 4


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
    """Train a detector; `reports.training.train`, which is the public one, says the rest.

    Args:
        config: with resume it may differ from the run's own in the keys of `resume.MAY_CHANGE` only.
        strategy: see `make_strategy`.
        init: run folder or weights file to start from.
        output, resume, worker_timeout, callbacks: as there.

    Returns:
        The run folder, with weights, metrics and pictures in it.
    """
    output = to_path(output)
    check_callbacks(callbacks)
    with join_workers(strategy, timeout=worker_timeout) as workers:
        begun = open_run(output) if resume else None
        config = config or begun.config
        _check_start(config, output, resume=resume, workers=workers)
        if config.train.deterministic:  # for the rest of this process
            tf.config.experimental.enable_op_determinism()
        distribution = make_strategy(strategy)
        config = _resolve(config, begun)
        job = _prepare(config, output, distribution=distribution, begun=begun, init=init, workers=workers)
        if job.progress.is_over(job.data.length, config.train.patience) and (output / PICTURES_DIR).is_dir():
            print(
                f"{output}: has finished, after {job.progress.step} of {job.data.length.steps} steps; "
                "nothing to go on with"
            )
            return job.run
        _look_first(job)
        try:
            _fit(job, callbacks)
            if workers.is_chief:
                _finish(job)
        except WriteError as error:
            raise WriteError(f"{error}, then go on with: {resume_command(job.run, strategy)}") from error
        return job.run


def _check_start(config: Config, output: Path, *, resume: bool, workers: Workers) -> None:
    """Refuse what cannot be begun before anything costly."""
    if workers.is_chief and not resume:
        require_new_folder(output, CHOOSE_OR_RESUME)
    if workers.is_chief:
        require_writable(output, 0)
    facts = program_facts(addresses=workers.cluster.addresses, resume=resume)
    workers.agree({**facts, **config_facts(config)})


def _resolve(config: Config, begun: RunFolder | None) -> Config:
    """Return the config with its backbone's architecture, for which TensorFlow may compute; `begun` is resumed."""
    config = replace(config, model=resolve_model(config.model))
    if begun is not None:
        check_config(config, begun)
    return config


class Job(NamedTuple):
    """What a training works with.

    Args:
        run: the folder that is written.
        data: the images, and which of them each step sees.
        model: compiled; its variables are those of the step that progress says.
        detector: the model as it is evaluated.
        distribution: what the model was made under.
        progress: of the run.
        workers: this process among those that train together.
    """

    run: RunFolder
    data: TrainingData
    model: DoubleHeadRCNN
    detector: ModelDetector
    distribution: tf.distribute.Strategy
    progress: Progress
    workers: Workers


def _prepare(
    config: Config,
    output: Path,
    *,
    distribution: tf.distribute.Strategy,
    begun: RunFolder | None,
    init: str | Path | None,
    workers: Workers,
) -> Job:
    """Read the data, build the model, and make the run folder or take up the one that was begun."""
    data = _load_in_turn(config, workers)
    run = RunFolder(output, config, tuple(data.train.categories))
    if begun is not None:
        check_classes(data.train.categories, begun, data.train.annotations_path)
    if not tf.config.list_physical_devices("GPU"):
        images, classes = config.data.batch_size // workers.count, data.train.num_classes
        check_memory(config, canvas_index=data.plan.canvas_index, num_classes=classes, images=images)
    with distribution.scope():
        model = _build(config, data, distribution, pretrained=begun is None and init is None)
        if init is not None and begun is None:
            skipped = initialize_weights(model, init, data.train.categories)
            print(f"initial weights: {init}, {len(skipped)} predictor arrays skipped")
            for line in skipped:
                print(f"  skipped {line}")
    progress = _begin(model, data, run, workers) if begun is None else _resume(model, data, run)
    saved = [*model.weights, *model.optimizer.variables]
    workers.agree({"step to go on from": progress.step, **weights_facts(saved)})
    detector = Detector.from_model(model, run.categories, min_size=config.data.min_size, max_size=config.data.max_size)
    return Job(run, data, model, detector, distribution, progress, workers)


def _begin(model: DoubleHeadRCNN, data: TrainingData, run: RunFolder, workers: Workers) -> Progress:
    """Make the run folder, with a state from which a run that is killed at once can be resumed."""
    progress = Progress(plan=_fingerprint(data, run))
    if workers.is_chief:
        values = sum(math.prod(variable.shape) for variable in (*model.variables, *model.optimizer.variables))
        require_writable(run.path, COPIES_OF_STATE * BYTES_PER_VALUE * values)
        with new_folder(run.path, CHOOSE_OR_RESUME) as folder:
            write_run(folder, run.config, run.categories)
            save_state(model, progress.as_dict(), folder / STATE_FILE)
    return progress


def _resume(model: DoubleHeadRCNN, data: TrainingData, run: RunFolder) -> Progress:
    progress = restore(model, run, data.length, _fingerprint(data, run))
    print(
        f"resumed {run.path}: {progress.step} of {data.length.steps} steps done, {progress.recorded_step} of them "
        f"evaluated, best AP {progress.best_ap}"
    )
    return progress


def _fingerprint(data: TrainingData, run: RunFolder) -> str:
    return plan_fingerprint(data.train, data.plan.epochs(), run.config.data.augment_file)


def _load_in_turn(config: Config, workers: Workers) -> TrainingData:
    """Read the data, and make sure that all workers have read the same."""
    generated = config.data.train_annotations is None and config.data.train_tfrecords is None
    if generated and not workers.is_chief:
        workers.broadcast()  # the chief has written them
    data = load_training_data(config)
    if generated and workers.is_chief:
        workers.broadcast()
    for split in (data.train, data.val):
        if split is not None:
            verify_images(split, config.data.verify, shard=(workers.index, workers.count))
    workers.agree(data_facts(data.train, data.val, config.data.augment_file))
    workers.expect_beats()
    return data


def _build(
    config: Config, data: TrainingData, distribution: tf.distribute.Strategy, *, pretrained: bool
) -> DoubleHeadRCNN:
    batch_size, settings = config.data.batch_size, config.train
    replicas = distribution.num_replicas_in_sync
    if batch_size % replicas:
        raise TrainingError(f"data.batch_size: expected a multiple of the {replicas} replicas, got {batch_size}")
    schedule = make_schedule(settings, batch_size=config.images_per_step, steps_per_epoch=data.length.steps_per_epoch)
    print(describe_schedule(settings, data.length, batch_size=batch_size))
    model = build_detector(
        config.model,
        num_classes=data.train.num_classes,
        seed=settings.seed,
        pretrained=pretrained,
        precision=settings.precision,
        recompute_heads=settings.recompute,
    )
    optimizer = make_optimizer(settings, schedule)
    if settings.precision == "mixed_float16" and not tf.config.list_physical_devices("GPU"):
        print("note: train.precision mixed_float16 has no fast kernels on a CPU; float32 is quicker here")
    model.compile(optimizer=optimizer, accumulate=settings.accumulate, report="step", timed=not settings.deterministic)
    print(f"model: {config.model.variant}, {model.count_params():,} parameters, {data.train.num_classes} classes")
    return model


def _look_first(job: Job) -> None:
    """Show what is about to be trained, and try an evaluation."""
    print(format_model_table(job.model))
    config, val = job.run.config, job.data.val
    if job.workers.is_chief and val is not None and config.train.sanity_images:
        check_evaluation(job.detector, val, count=config.train.sanity_images, batch_size=config.evaluate.batch_size)


def _fit(job: Job, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Train from where progress says; leave with `Interrupted` when a signal came."""
    config, data, progress, workers = job.run.config, job.data, job.progress, job.workers
    bar = ProgressBar(progress=progress, batch_size=config.images_per_step, length=data.length, show=workers.is_chief)
    make_batches = functools.partial(
        worker_batches,
        dataset=data.train,
        plan=data.plan,
        config=config.data,
        seed=job.model.seed,
        distribution=job.distribution,
        workers=workers,
    )
    with StopRequest(lambda: progress.step, resume_command(job.run, strategy_name(job.distribution))) as stop:
        evaluate = None
        if data.val is not None:
            evaluate = functools.partial(
                validate, job.detector, data.val, config, distribution=job.distribution, workers=workers, stop=stop
            )
        if workers.is_chief:
            cut_back(job.run, progress)
        counter = StepCounter(progress=progress, stop=stop, workers=workers, dataset=data.train, plan=data.plan)
        users = None
        if callbacks:
            users = UserCallbacks(callbacks, model=job.model, progress=progress, length=data.length)
            users.begin()
        given = {"run": job.run, "progress": progress, "length": data.length, "evaluate": evaluate, "users": users}
        chief = functools.partial(RunRecorder, progress_bar=bar, settle=counter.settle)
        recorder = (chief if workers.is_chief else EvaluationHelper)(**given)
        if progress.is_at_end_of_epoch(data.length):
            recorder.set_model(job.model)
            recorder.finish_epoch()
        if not progress.is_over(data.length, config.train.patience) and not job.model.stop_training:
            fit(
                job.model,
                make_batches,
                step=progress.step,
                length=data.length,
                # The recorder saves what the users' have left of a step.
                callbacks=[counter, bar, *([users] if users else []), recorder, KeepRawWeights()],
                dataset=data.train,
                plan=data.plan,
            )
        if users is not None:
            users.end()
            if (
                job.model.stop_training
                and stop.number is None
                and not progress.is_over(data.length, config.train.patience)
            ):
                command = resume_command(job.run, strategy_name(job.distribution))
                print(f"a callback ended training after step {progress.step}; go on with: {command}")
        stop.leave_if_asked()


def _finish(job: Job) -> None:
    """Pictures by the best weights, and the last words: where everything is, what to type next."""
    run, config = job.run, job.run.config
    load_weights(job.model, run.weights)
    pictured = job.data.val if job.data.val is not None else job.data.train
    folder = write_pictures(job.detector, pictured, run.path / PICTURES_DIR, count=config.train.pictures)
    print(f"\nwritten: {run.path} (weights {run.weights.name}, metrics.csv, tensorboard/; pictures in {folder})")
    photographs = (
        "PHOTO.jpg" if config.data.train_tfrecords and job.data.val is None else to_path(pictured.paths[0]).parent
    )
    print(f"next: dh-keras predict {run.path} {photographs} --output predictions")
