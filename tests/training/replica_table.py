"""Train the same global batches on 1, 2 and 4 logical CPU devices and in 2 processes; print how far the runs differ.

    python tests/training/replica_table.py --steps 100 [--all-anchors] [--devices 2 4] [--workers 2] [--recompute]

Compared with one device: the largest relative difference of any logged loss of any step, and the largest difference of
any trained weight, moving statistic and momentum after the last step. With momentum, L2, clipping, sync batch norm in
backbone and conv-head, and a frozen first stage. The row "1, reversed" is one device with every batch in reversed
order: what rounding alone does. With --all-anchors no choice hangs on rounding: every anchor and every RoI counts.
With --recompute the replicas compute their heads twice, the one device does not.
--accumulate lets several devices take each batch in so many parts, with --group-norm in the place of batch norms.
With --adamw the optimiser is AdamW, with an epsilon of 0.001.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
IMAGES, SIDE, BATCHES = 4, 64, 5
OVERRIDES = (
    "model.backbone.norm=sync",
    "model.backbone.frozen_stages=1",
    "model.conv_head.norm=sync",
    "model.rpn.anchor_ratios=[1.0]",
)
GROUP_NORM = ("model.backbone.norm=group", "model.conv_head.norm=group")
ALL_ANCHORS = (
    "model.rpn.batch_size=1000",
    "model.rpn.positive_fraction=1.0",
    "model.rpn.pre_nms_train=1000",
    "model.rpn.post_nms_train=1000",
    "model.rpn.nms_iou=1.0",
    "model.roi.batch_size=2000",
    "model.roi.foreground_fraction=1.0",
)


def make_batches(*, reverse):
    """Images with one to three bright boxes, as the arrays of a few batches."""
    random = np.random.default_rng(3)
    batches = []
    for number in range(BATCHES):
        images = random.integers(0, 90, (IMAGES, SIDE, SIDE, 3)).astype(np.uint8)
        boxes, classes = np.zeros((IMAGES, 3, 4), np.float32), random.integers(0, 3, (IMAGES, 3)).astype(np.int32)
        valid = np.arange(3) < random.integers(1, 4, (IMAGES, 1))
        for image, rows, labels, used in zip(images, boxes, classes, valid, strict=True):
            for row in np.flatnonzero(used):
                (y1, x1), (height, width) = random.integers(0, 30, 2), random.integers(14, 32, 2)
                rows[row] = [y1, x1, y1 + height, x1 + width]
                image[y1 : y1 + height, x1 : x1 + width, labels[row]] = 255
        batch = {
            "images": images,
            "image_sizes": np.full((IMAGES, 2), SIDE, np.int32),
            "gt_boxes": boxes,
            "gt_classes": classes,
            "gt_valid": valid,
            "image_ids": np.arange(IMAGES, dtype=np.int64) + number * IMAGES,
        }
        batches.append({name: array[::-1].copy() if reverse else array for name, array in batch.items()})
    return batches


def train(args):
    """In a process of its own: train and write losses and variables; a worker that is not the chief writes nothing."""
    sys.path.insert(0, str(TESTS))
    import conftest
    import keras
    import tensorflow as tf

    from dh_keras.config.load import load_config
    from dh_keras.modeling.builder import assemble_detector
    from dh_keras.modeling.constants import LOSS_NAMES
    from dh_keras.modeling.optimizer import RecipeAdamW, RecipeSGD

    if args.fast_tracing:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    strategy = make_strategy(args, tf)
    overrides = [*OVERRIDES, *(ALL_ANCHORS if args.all_anchors else ()), *(GROUP_NORM if args.group_norm else ())]
    config = load_config(overrides=[*conftest.TINY, *overrides])
    with strategy.scope():
        detector = assemble_detector(config.model, num_classes=3, recompute_heads=args.recompute)
        if args.adamw:
            # Where a gradient is zero but for rounding, a small epsilon makes steps of rounding alone.
            optimizer = RecipeAdamW(0.01, l2=0.1, bias_lr_factor=2.0, bias_l2=0.0, clip_norm=5.0, epsilon=1e-3)
        else:
            optimizer = RecipeSGD(0.01, momentum=0.9, l2=1e-3, clip_norm=5.0)
        detector.compile(optimizer, accumulate=args.accumulate, report="step")
    start = {v.path: keras.ops.convert_to_numpy(v) for v in detector.variables}
    losses = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            losses.append([float(logs[name]) for name in (*LOSS_NAMES, "total_loss")])
            self.model.reset_metrics()

    batches = make_batches(reverse=args.order == "reversed")

    def dataset(context=None):
        shard = slice(None)
        if context is not None:
            share = IMAGES // context.num_replicas_in_sync
            shard = slice(context.input_pipeline_id * share, (context.input_pipeline_id + 1) * share)
        parts = [{name: array[shard] for name, array in batch.items()} for batch in batches]
        stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        return tf.data.Dataset.from_tensor_slices(stacked).repeat()

    data = strategy.distribute_datasets_from_function(dataset) if args.workers > 1 else dataset()
    detector.fit(data, epochs=1, steps_per_epoch=args.steps, callbacks=[Keep()], shuffle=False, verbose=0)
    if args.index == 0:
        arrays = {f"weight {v.path}": keras.ops.convert_to_numpy(v) for v in detector.trainable_variables}
        arrays |= {f"statistic {v.path}": keras.ops.convert_to_numpy(v) for v in detector.non_trainable_variables}
        arrays |= {f"momentum {i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(detector.optimizer.variables)}
        arrays |= {f"start {path}": value for path, value in start.items()}
        np.savez(args.write, losses=np.array(losses), **arrays)


def make_strategy(args, tf):
    """The strategy of a child process."""
    if args.workers > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * args.devices[0])
    if args.devices[0] == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])


def start_children(args, path, *, devices=1, workers=1, order="plain"):
    """Train in new processes, one per worker."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    command = [sys.executable, __file__, "--steps", str(args.steps), "--devices", str(devices), "--write", str(path)]
    command += ["--workers", str(workers), "--order", order]
    if args.recompute and (devices, workers) != (1, 1):
        command.append("--recompute")
    flags = ("adamw", "all_anchors", "fast_tracing", "group_norm")
    command += [f"--{name.replace('_', '-')}" for name in flags if getattr(args, name)]
    command += ["--accumulate", str(args.accumulate if devices > 1 else 1)]
    # oneDNN's convolution gradients crash when several CPU devices of one process share them.
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": str(TESTS.parent)}
    children = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        extra = {"TF_CONFIG": json.dumps(task)} if workers > 1 else {}
        children.append(subprocess.Popen([*command, "--index", str(index)], env={**environment, **extra}))
    if any(child.wait() for child in children):
        raise SystemExit(f"training on {devices} devices in {workers} processes failed")
    with np.load(path) as archive:
        return dict(archive)


def free_ports(count):
    """Ports that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def compare(ours, theirs):
    """Largest differences between two runs: losses relative, variables absolute."""
    found = {"loss": float((np.abs(ours["losses"] - theirs["losses"]) / np.maximum(theirs["losses"], 1e-3)).max())}
    for kind in ("weight", "statistic", "momentum"):
        names = [name for name in theirs if name.startswith(f"{kind} ")]
        found[kind] = max((float(np.abs(ours[name] - theirs[name]).max()) for name in names), default=0.0)
    return found


def frozen_and_moved(run):
    """Whether nothing of the frozen first stage changed, and the largest change of a weight and of a statistic."""
    change = {name: float(np.abs(value - run[f"start {name.split(' ', 1)[1]}"]).max())
              for name, value in run.items() if name.startswith(("weight ", "statistic "))}  # fmt: skip
    frozen = [name for name in change if "backbone/stem" in name or "c2_block" in name]
    kinds = ("weight", "statistic")
    largest = {kind: max((v for name, v in change.items() if name.startswith(kind)), default=0.0) for kind in kinds}
    return {"frozen": bool(frozen) and all(change[name] == 0 for name in frozen), "moved": largest}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--all-anchors", action="store_true")
    parser.add_argument("--devices", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--group-norm", action="store_true")
    parser.add_argument("--adamw", action="store_true", help="in the place of SGD")
    parser.add_argument("--json", action="store_true", help="one line for a test")
    parser.add_argument("--fast-tracing", action="store_true", help="without TensorFlow's graph optimisation")
    for name in ("--write", "--order"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        return train(args)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.npz"
        single = start_children(args, path)
        if not args.json:
            rows["1, reversed"] = start_children(args, path, order="reversed")
        for devices in args.devices:
            if devices > 1:
                rows[f"{devices} devices"] = start_children(args, path, devices=devices)
        if args.workers > 1:
            rows[f"{args.workers} workers"] = start_children(args, path, workers=args.workers)
    found = {name: compare(run, single) | frozen_and_moved(run) for name, run in rows.items()}
    if args.json:
        return print(json.dumps(found))
    print(f"{args.steps} steps, {IMAGES} images each, {'all anchors' if args.all_anchors else 'sampling and NMS'}")
    print(f"{'compared with 1 device':<24}{'loss':>10}{'weight':>10}{'statistic':>11}{'momentum':>10}  frozen")
    for name, row in found.items():
        numbers = f"{row['loss']:>10.1e}{row['weight']:>10.1e}{row['statistic']:>11.1e}{row['momentum']:>10.1e}"
        print(f"{name:<24}{numbers}  {row['frozen']}")
    print(f"one device moved weights by up to {frozen_and_moved(single)['moved']['weight']:.2g}")


if __name__ == "__main__":
    main()
