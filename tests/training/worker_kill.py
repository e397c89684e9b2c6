"""Kill one of two workers, then send SIGTERM to one, resuming each time; compare with a run that was left alone.

    python tests/training/worker_kill.py FOLDER

Prints for each interruption the step it came after, how every worker ended, after how many seconds, and the last line
of the chief; at the end the largest differences of weights, momentum and metrics from the uninterrupted run. Takes four
trainings.
"""

import argparse
import csv
import dataclasses
import json
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest
from local_workers import start_workers

from dh_keras.data.shapes import write_shapes

JOB = ("train.epochs=6", "train.drops=[]", "train.evaluate_every=3", "train.checkpoint_every=3", "train.pictures=0")
EXACT = ("model.backbone.norm=group", "model.conv_head.norm=group", "model.score_threshold=0.0")
TIMED = ("images_per_second", "data_wait")


def steps_saved(run):
    """Steps of the last checkpoint; 0 before the first."""
    try:
        with np.load(run / "state.npz") as state:
            return json.loads(str(state["progress"]))["step"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return 0


def interrupt(workers, run, number, *, after):
    """Send a signal to the second worker once a checkpoint of `after` steps is there; report how all ended."""
    while steps_saved(run) < after:
        if any(worker.poll() is not None for worker in workers):
            raise SystemExit("a worker ended before its time, see the logs")
        time.sleep(0.02)
    workers[1].send_signal(number)
    start, ends = time.time(), {}
    while len(ends) < len(workers):
        for index, worker in enumerate(workers):
            if index not in ends and worker.poll() is not None:
                ends[index] = (worker.returncode, round(time.time() - start, 1))
        time.sleep(0.05)
    print(f"{signal.Signals(number).name} to worker 1, checkpoint of step {steps_saved(run)}")
    for index, (status, seconds) in sorted(ends.items()):
        print(f"  worker {index}: status {status} after {seconds} s")


def last_line(logs, index):
    lines = [line for line in (logs / f"{index}.txt").read_text().splitlines() if line.strip()]
    return lines[-1]


def rows_of(run):
    with open(run / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMED} for row in csv.DictReader(file)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    files = write_shapes(folder / "shapes", train_images=12, val_images=6, seed=1)
    paths = [f"data.{name}={value}" for name, value in dataclasses.asdict(files).items()]
    common = ["--strategy", "multi_worker", *conftest.TINY, *JOB, *EXACT, *paths]
    left_alone, run = folder / "left_alone", folder / "interrupted"
    workers = start_workers(2, [*common, "--output", left_alone], folder / "logs0")
    print("left alone:", [worker.wait() for worker in workers], flush=True)
    for number, (kind, after) in enumerate([(signal.SIGKILL, 6), (signal.SIGTERM, 18)], start=1):
        resume = ["--resume", "--strategy", "multi_worker"] if number > 1 else common
        logs = folder / f"logs{number}"
        interrupt(start_workers(2, [*resume, "--output", run], logs), run, kind, after=after)
        print("  worker 0 said:", last_line(logs, 0), flush=True)
    workers = start_workers(2, ["--resume", "--strategy", "multi_worker", "--output", run], folder / "logs3")
    print("resumed to the end:", [worker.wait() for worker in workers])
    with np.load(left_alone / "state.npz") as theirs, np.load(run / "state.npz") as ours:
        names = [name for name in theirs.files if name != "progress"]
        print("largest difference of weights and momentum:", max(np.abs(ours[n] - theirs[n]).max() for n in names))
    print("metrics.csv the same but for speed:", rows_of(run) == rows_of(left_alone), f"({len(rows_of(run))} rows)")


if __name__ == "__main__":
    main()
