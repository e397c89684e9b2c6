"""Kill a training run again and again with SIGKILL, resume it each time, and compare it with one that never stopped.

    python tests/training/kill_and_resume.py --kills 20 --seed 0 --output FOLDER
    python tests/training/kill_and_resume.py --kills 20 --in-evaluations
    python tests/training/kill_and_resume.py --kills 5 train.optimizer=adamw train.lr=0.001

Half of the kills come at a random time within a random step. The others come when the process itself has said that it
is in the middle of writing a file, or between two files, or in the middle of an evaluation, and is waiting there.

With --in-evaluations every kill comes in an evaluation, and what it measures counts as it is: before the first image,
after one or some of the images, before and after AP is computed, and at a random time of one that goes on.
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest
import numpy as np
import tensorflow as tf
from training.run_comparison import differences

from dh_keras.config.load import load_config
from dh_keras.data.shapes import write_shapes
from dh_keras.training import callbacks, loop, validation
from dh_keras.training.workers import shared_evaluation

CHECKPOINT_EVERY = 5
EPOCHS = 10
MOMENTS = (
    ("state.npz", "half"),
    ("state.npz", "before"),
    ("best.weights.h5", "half"),
    ("best.weights.h5", "after"),
    ("last.weights.h5", "half"),
    ("metrics.csv", "before"),
    ("metrics.csv", "after"),
    ("evaluation", "within"),
)
IN_EVALUATIONS = (
    ("evaluation", "before"),
    ("evaluation", "within"),
    ("evaluation", "any"),
    ("measures", "before"),
    ("measures", "after"),
)


def overrides(data, changes):
    """The tiny job: 7 steps in an epoch, an evaluation after each."""
    paths = [f"data.{name}={value}" for name, value in dataclasses.asdict(data).items()]
    return [
        *conftest.TINY,
        *paths,
        f"train.epochs={EPOCHS}",
        "train.evaluate_every=1",
        f"train.checkpoint_every={CHECKPOINT_EVERY}",
        "train.drops=[8]",
        "train.pictures=1",
        "train.sanity_images=0",
        "model.score_threshold=0.0",
        *changes,
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="new folder for both runs (default: a temporary one)")
    parser.add_argument("--in-evaluations", action="store_true", help="kill in evaluations only")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="of the tiny job")
    args = parser.parse_args()
    folder = args.output or Path(tempfile.mkdtemp())
    return compare(folder, args.kills, args.seed, args.in_evaluations, args.changes)


def compare(folder, kills, seed, in_evaluations, changes=()):
    """Both runs, the table, and what differs."""
    data = write_shapes(folder / "shapes", train_images=12, val_images=6, seed=1)
    settings = {"overrides": overrides(data, changes), "always_best": not in_evaluations}
    whole, killed = folder / "whole", folder / "killed"
    last = Run({**settings, "run": str(whole), "resume": False}).wait_for_end()
    print(f"uninterrupted: {last} steps")
    print(f"{'kill':>4}  {'moment':<26}{'step at kill':>13}{'resumed from':>14}{'steps lost':>12}")
    planned = plan(kills, last, random.Random(seed), IN_EVALUATIONS if in_evaluations else None)
    for number, (step, moment) in enumerate(planned, start=1):
        run = Run({**settings, "run": str(killed), "resume": number > 1, "moment": moment, "step": step})
        at = run.wait_and_kill(random.Random(seed * 1000 + number))
        resumed_from = progress_of(killed)["step"]
        shown = " ".join(moment) if moment else "any"
        print(f"{number:>4}  {shown:<26}{at:>13}{resumed_from:>14}{at - resumed_from:>12}", flush=True)
        assert 0 <= at - resumed_from <= CHECKPOINT_EVERY
        assert run.evaluating or not in_evaluations, f"it was no evaluation any more, see {run.log}"
    Run({**settings, "run": str(killed), "resume": True}).wait_for_end()
    print(f"best AP: {progress_of(killed)['best_ap']}, uninterrupted {progress_of(whole)['best_ap']}")
    found = differences(killed, whole)
    print("difference to the uninterrupted run: " + ", ".join(f"{name} {value:g}" for name, value in found.items()))
    return int(any(found.values()))


def plan(kills, last, rng, only=None):
    """When each kill comes: from which step on, and in which moment; None is at any time within the step."""
    steps = sorted(rng.sample(range(1, last * 3 // 4), kills))  # each moment comes again after the last of them
    if only:
        return [(step, only[index % len(only)]) for index, step in enumerate(steps)]
    special = set(rng.sample(range(kills), kills // 2))
    moments = iter(rng.sample(MOMENTS * 2, len(special)))
    return [(step, next(moments) if index in special else None) for index, step in enumerate(steps)]


def progress_of(run):
    """What a resumed run goes on from."""
    with np.load(run / "state.npz") as state:
        return json.loads(str(state["progress"]))


class Run:
    """A run in a process of its own, which says on a pipe what it is doing.

    The process is a fork of this one, which has imported TensorFlow but never used it: that is most of the start.
    """

    def __init__(self, settings):
        reading, writing = os.pipe()
        self.log = Path(settings["run"]).with_suffix(".log")
        self.step = 0
        self.evaluating = False
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            os.close(reading)
            status = 1
            try:
                log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                with os.fdopen(writing, "w") as pipe:
                    train(pipe, **settings)
                status = 0
            finally:
                sys.stdout.flush()
                traceback.print_exc()
                os._exit(status)
        os.close(writing)
        self.pipe = os.fdopen(reading)

    def wait_for_end(self):
        """Return the last step."""
        for line in self.pipe:
            self._read(line)
        assert self._status() == 0, f"see {self.log}"
        return self.step

    def wait_and_kill(self, rng):
        """Kill at the moment that was asked for, and return the step."""
        assert any(self._read(line) for line in self.pipe), f"the moment never came, see {self.log}"
        time.sleep(rng.uniform(0, 0.2))
        os.kill(self.process, signal.SIGKILL)
        for line in self.pipe:
            self._read(line)
        assert self._status() == -signal.SIGKILL, f"see {self.log}"
        return self.step

    def _status(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def _read(self, line):
        word, _, rest = line.strip().partition(" ")
        if word == "step":
            self.step = int(rest)
        if word == "evaluation":
            self.evaluating = rest == "begins"
        return word == "now"


def train(pipe, run, overrides, resume, always_best, moment=None, step=0):
    """Train, telling of every step, and wait to be killed in the moment that was asked for."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # halves the start
    seen = {"step": progress_of(Path(run))["step"] if resume else 0}

    def say(line):
        print(line, file=pipe, flush=True)

    say(f"step {seen['step']}")

    def wait_if(what, which):
        if moment is not None and [what, which] == list(moment) and seen["step"] >= step:
            say("now")
            time.sleep(600)

    count, replace = callbacks.StepCounter.on_train_batch_end, os.replace
    detect, measure, evaluate = (
        loop.Detector.detect_dataset,
        shared_evaluation.evaluate_detections,
        validation.evaluate_together,
    )

    def counted(self, batch, logs=None):
        count(self, batch, logs)
        seen["step"] = self.progress.step
        say(f"step {self.progress.step}")
        if moment is None and step and seen["step"] >= step:
            say("now")

    def replaced(source, target):
        name = Path(target).name
        wait_if(name, "before")
        if moment is not None and list(moment) == [name, "half"] and seen["step"] >= step:
            os.truncate(source, os.path.getsize(source) // 2)
            wait_if(name, "half")
        replace(source, target)
        wait_if(name, "after")

    def detected(self, dataset, *, on_images=None, **options):
        done = 0

        def with_pause(count):
            nonlocal done
            done += count
            if done > step % len(dataset):
                wait_if("evaluation", "within")
            if on_images:
                on_images(count)

        return detect(self, dataset, on_images=with_pause, **options)

    def measured(*args, **options):
        wait_if("measures", "before")
        metrics = measure(*args, **options)
        wait_if("measures", "after")
        return metrics

    def evaluated(detector, *args, **options):
        say("evaluation begins")
        if moment is not None and list(moment) == ["evaluation", "any"] and seen["step"] >= step:
            say("now")
        wait_if("evaluation", "before")
        metrics = evaluate(detector, *args, **options)
        say("evaluation over")
        if always_best:  # so that there are best weights to write each time
            metrics["AP"] += int(detector.model.optimizer.iterations)
        return metrics

    callbacks.StepCounter.on_train_batch_end = counted
    os.replace = replaced
    loop.Detector.detect_dataset = detected
    shared_evaluation.evaluate_detections = measured
    validation.evaluate_together = evaluated
    loop.train(None if resume else load_config(overrides=overrides), output=run, resume=resume)


if __name__ == "__main__":
    sys.exit(main())
