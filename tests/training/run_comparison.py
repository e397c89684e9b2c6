"""Whether two run folders hold the same training, to the last bit."""

import csv

import h5py
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

# How long something took is not the same twice.
TIMES = ("images_per_second", "data_wait")


def rows_of(run):
    """Rows of metrics.csv, dicts of text."""
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def events_of(run):
    """(step, tag, value) of everything that TensorBoard shows and is no time, in the order of the steps."""
    everything = {"scalars": 0}
    board = EventMultiplexer(tensor_size_guidance=everything).AddRunsFromDirectory(str(run / "tensorboard")).Reload()
    found = []
    for name, kinds in board.Runs().items():
        for tag in kinds["tensors"]:
            if tag.endswith(("loss", "lr")) or "AP" in tag:
                events = board.Tensors(name, tag)
                found += [(event.step, tag, float(tf.make_ndarray(event.tensor_proto))) for event in events]
    return sorted(found)


def weights_of(path):
    """Arrays of a weights file by name."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def state_of(run):
    """Arrays of the state by name; the progress is text."""
    with np.load(run / "state.npz") as archive:
        return {name: archive[name] for name in archive.files}


def differences(ours, theirs):
    """What differs between two runs, by what was compared: 0 for what is the same to the last bit."""
    our_state, their_state = state_of(ours), state_of(theirs)
    found = {"progress": float(str(our_state.pop("progress")) != str(their_state.pop("progress")))}
    for kind in ("model/", "optimizer/"):
        names = [name for name in their_state if name.startswith(kind)]
        found[kind.rstrip("/")] = _largest({n: our_state[n] for n in names}, {n: their_state[n] for n in names})
    for name in ("best.weights.h5", "last.weights.h5"):
        found[name] = _largest(weights_of(ours / name), weights_of(theirs / name))
    found["metrics.csv"] = float(_untimed_rows(ours) != _untimed_rows(theirs))
    found["events"] = float(events_of(ours) != events_of(theirs))
    return found


def _untimed_rows(run):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows_of(run)]


def _largest(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name].astype(np.float64) - theirs[name]).max(initial=0.0)) for name in theirs)
