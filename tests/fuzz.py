"""Change inputs at random and see that every fault is one line of `dh_keras.errors`, quick and without growth.

python tests/fuzz.py --kind coco --mutations 2000
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dh_keras.errors import UserError

SECONDS_EACH = 20  # of the processor, whatever else the machine does
MAX_GROWTH = 600e6  # bytes; TensorFlow's own caches and threads take some
NASTY = (
    *(None, True, False, 0, 1, -1, 2, 3.5, 1e-300, 1e308, float("nan"), float("inf"), -0.0),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *("", " ", "x", "7", "07", "1e3", "1.0", "a\nb", "a\r\x1b[2Jb", "\u2028", "\u202e", "\x00", "\ud800", "🐈é"),
    *("$x^2$", "../../x", "/etc/passwd", ".", "%s{0}${run}", "${train.lr}", "${data}", "<b>&", "=1+1", "x" * 100_000),
    *([], {}, [[]], [1, 2, 3, 4], {"a": {}}, [0, 0, 1e300, 1e300], [1, "2", None, 4], [1e308] * 4, [-5, -5, 10, 10]),
    *([[1, 2, 3, 4, 5, 6]], ["DEEP"], "DEEP"),
)
SIGNS = list("[]{}:,#&*!|>'\"%@`$ \t\n1.eE-_~")
DEEP = "[" * 20_000 + "]" * 20_000

Random = np.random.Generator
Attempt = Callable[[Random], None]


class TooSlow(Exception):
    """A mutation took longer than it may."""


@dataclass
class Outcome:
    """What became of the mutations of a kind.

    Args:
        accepted: mutations that were taken as good.
        refused: error type: how many.
        slowest: seconds of the processor, and the seed of that mutation.
        faults: seed, and what is wrong.
        growth: bytes of memory, after the first fifth of the mutations.
    """

    accepted: int = 0
    refused: Counter = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)
    faults: list[tuple[int, str]] = field(default_factory=list)
    growth: float = 0.0

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {name}" for name, count in self.refused.most_common())
        return (
            f"{self.accepted} accepted, {refused or 'none refused'}, {len(self.faults)} faults, slowest "
            f"{self.slowest[0]:.2f} s (seed {self.slowest[1]}), memory grew by {self.growth / 1e6:.0f} MB"
        )


def run_kind(kind: str, folder: Path, *, mutations: int, seed: int = 0, seconds: float = float("inf")) -> Outcome:
    """Try mutations of a kind, numbered from `seed`, until there were enough, or at least five and the time is over."""
    attempt, outcome, process = KINDS[kind](folder), Outcome(), psutil.Process()
    end, before = time.perf_counter() + seconds, process.memory_info().rss
    for number in range(seed, seed + mutations):
        if time.perf_counter() > end and number - seed >= 5:
            break
        start = time.process_time()
        _try(attempt, number, outcome)
        outcome.slowest = max(outcome.slowest, (time.process_time() - start, number))
        if number - seed == mutations // 5:
            before = process.memory_info().rss
    outcome.growth = process.memory_info().rss - before
    if outcome.growth > MAX_GROWTH:
        outcome.faults.append((seed, f"memory grew by {outcome.growth / 1e6:.0f} MB"))
    return outcome


def _try(attempt: Attempt, number: int, outcome: Outcome) -> None:
    try:
        with _time_limit(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            attempt(np.random.default_rng(number))
        outcome.accepted += 1
    except UserError as error:
        outcome.refused[type(error).__name__] += 1
        told = str(error)
        if len(told.splitlines()) != 1 or not told.isprintable() or len(told) > 2000:
            outcome.faults.append((number, f"not one line: {told[:300]!r}"))
    except Exception:
        outcome.faults.append((number, traceback.format_exc(limit=-8)))


@contextlib.contextmanager
def _time_limit():
    def stop(*_: Any) -> None:
        raise TooSlow(f"more than {SECONDS_EACH} s of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
    faulthandler.dump_traceback_later(10 * SECONDS_EACH, exit=True, file=sys.__stderr__)  # stuck in a library
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# Mutations.


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Change, cut, remove, repeat or insert some bytes."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 6)):
        place, length = int(random.integers(len(changed) + 1)), int(2 ** random.uniform(0, 10))
        match random.integers(6):
            case 0 | 1 | 2:
                if place < len(changed):
                    changed[place] = random.choice([0, 255, int(random.integers(256)), changed[place] ^ 1])
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case 5:
                changed[place:place] = random.bytes(min(length, 64))
    return bytes(changed[: random.integers(len(changed) + 1)] if random.random() < 0.1 else changed)


def mutate_tree(tree: Any, random: Random) -> Any:
    """Put nasty values anywhere in a tree of lists and dicts, or take something away or twice."""
    tree = copy.deepcopy(tree)
    for _ in range(random.integers(1, 4)):
        node, places = tree, []
        while isinstance(node, (dict, list)) and node and (not places or random.random() < 0.85):
            key = random.choice(list(node)) if isinstance(node, dict) else int(random.integers(len(node)))
            key = str(key) if isinstance(node, dict) else key
            places.append((node, key))
            node = node[key]
        if not places:
            return NASTY[random.integers(len(NASTY))]
        parent, key = places[-1]
        match random.integers(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case 2 if isinstance(parent, dict):
                parent[str(NASTY[random.integers(len(NASTY))])[:50]] = parent.pop(key)
            case _:
                parent[key] = copy.deepcopy(NASTY[random.integers(len(NASTY))])
    return tree


def to_json(tree: Any) -> bytes:
    """The tree as text, in which half characters and nesting of any depth are possible."""
    return json.dumps(tree).replace('"DEEP"', DEEP).encode("utf-8", "surrogatepass")


# Kinds: each makes its good input in a folder, and returns what tries one mutation of it.


def _data(folder: Path) -> tuple[Path, Path]:
    from dh_keras.data.shapes import write_shapes

    written = write_shapes(folder / "shapes", train_images=4, val_images=1, seed=1)
    return Path(written.train_annotations), Path(written.train_images)


def coco(folder: Path) -> Attempt:
    """Annotation files: read for training, and diagnosed and cleaned."""
    from dh_keras.config.load import load_config
    from dh_keras.data.formats.coco import load_coco, read_image_ids
    from dh_keras.reports.data_doctor.inspection import diagnose, inspect_data

    annotations, images = _data(folder)
    text, config, target = annotations.read_bytes(), load_config(), folder / "mutated.json"
    tree = json.loads(text)
    tree["annotations"] = tree["annotations"][:8]

    def attempt(random: Random) -> None:
        raw = random.random() < 0.2
        target.write_bytes(mutate_bytes(text, random) if raw else to_json(mutate_tree(tree, random)))
        match random.integers(12):
            case 0:
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    fixed = Path(own) / "fixed.json"
                    inspect_data(target, images, config=config, output=Path(own) / "report", fix=fixed)
            case 1 | 2 | 3:
                diagnose(target, images, config=config)
            case 4:
                read_image_ids(target)
            case _:
                load_coco(target, images)

    return attempt


FOREIGN = {
    "a.xml": b"<annotation><filename>a.jpg</filename><size><width>80</width><height>60</height></size>\n<object><name>"
    b"cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>",
    "b.xml": b'<annotations><meta><label><name>cat</name></label></meta><image name="a.jpg" width="80" height="60">\n'
    b'<box label="cat" xtl="1" ytl="2" xbr="30" ybr="40"/><polygon label="cat" points="1,2;3,4;5,9"/></image>'
    b"</annotations>",
    "c.json": b'{"shapes": [{"label": "cat", "points": [[1, 2], [30, 40]], "shape_type": "rectangle"}],\n"imagePath": '
    b'"a.jpg", "imageWidth": 80, "imageHeight": 60}',
    "d.csv": b"ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,0.1,0.5,0.25,1,0\na,cat,0.1,0.5,0.5,0.75,1\n",
    "e.yaml": b"path: .\ntrain: [.]\nval: list.txt\nnames: {0: cat, 1: dog}\n",
    "a.txt": b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.2 0.3 0.4 0.2\n",
    "list.txt": b"./a.jpg\n",
}


def foreign(folder: Path) -> Attempt:
    """What other tools write."""
    from PIL import Image

    from dh_keras.data.formats.coco import load_coco

    Image.new("RGB", (80, 60), (90, 120, 30)).save(folder / "a.jpg")
    names = list(FOREIGN)

    def attempt(random: Random) -> None:
        name = names[random.integers(len(names))]
        for other, text in FOREIGN.items():
            (folder / other).write_bytes(mutate_bytes(text, random) if other == name else text)
        source = folder / (name if name[-4:] != ".txt" else "e.yaml")
        load_coco(source, folder)

    return attempt


def images(folder: Path) -> Attempt:
    """Photographs: what the check passes can be decoded, and what it refuses cannot."""
    from PIL import Image

    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.pipeline import find_bad_image

    annotations, root = _data(folder)
    tree = json.loads(annotations.read_bytes())
    first = tree["images"][0]
    tree = {**tree, "images": [first], "annotations": [r for r in tree["annotations"] if r["image_id"] == first["id"]]}
    pixels, goods = Image.open(root / first["file_name"]).convert("RGB"), []
    exif = Image.Exif()
    exif[0x0112] = 3
    profiled = {"format": "PNG", "icc_profile": np.random.default_rng(0).bytes(100_000)}  # no pixel depends on it
    for options in ({"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "PNG"}, profiled):
        for extra in ({}, {"exif": exif}):
            stream = io.BytesIO()
            pixels.save(stream, **options, **extra)
            goods.append(stream.getvalue())
    target, small = root / first["file_name"], folder / "one.json"
    small.write_text(json.dumps(tree))

    def attempt(random: Random) -> None:
        target.write_bytes(mutate_bytes(goods[random.integers(len(goods))], random))
        try:
            dataset = load_coco(small, root)
        except UserError:
            assert find_bad_image(load_coco(small, root, check_images=False)), "refused, and yet it can be decoded"
            raise
        bad = find_bad_image(dataset)
        if bad:
            raise UserError(bad)

    return attempt


def overrides(folder: Path) -> Attempt:
    """`key=value` of every key with every kind of value, and what a config that is taken is written as."""
    from dh_keras.config.load import load_config, save_config
    from dh_keras.config.options import flatten
    from dh_keras.config.schema import Config

    keys = [*flatten(Config()), "model", "model.roi", "train", "x", "", "model..x", "data.", "[0]"]

    def attempt(random: Random) -> None:
        given = []
        for _ in range(1 + (random.random() < 0.2)):
            value = NASTY[random.integers(len(NASTY))]
            text = str(value) if random.random() < 0.5 else json.dumps(value)
            if random.random() < 0.2:
                text = "".join(random.choice(SIGNS) for _ in range(random.integers(9)))
            elif random.random() < 0.3:
                text = str(round(10 ** random.uniform(-3, 6), int(random.integers(4))))
            separator = "" if random.random() < 0.02 else "="
            given.append(f"{keys[random.integers(len(keys))]}{separator}{text.replace('DEEP', DEEP[:2000])}")
        config = load_config(overrides=given)
        save_config(config, folder / "config.yaml")
        again = load_config(folder / "config.yaml")
        assert repr(again) == repr(config), given

    return attempt


def yaml(folder: Path) -> Attempt:
    """Config files."""
    from dh_keras.config.load import CONFIGS, load_config

    texts, target = [path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml"))], folder / "config.yaml"
    marks = [b"${", b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ", b"? ", b"- ", b"\t", b"'", b": ", b"{{"]
    marks += [b"|", b"%YAML 9", b"---\n", b"...", b"\xef\xbb\xbf", b"\xff\xfe", b"1e999", b"9" * 5000, b"[" * 3000]
    marks += [b"{a: " * 300, b"${train.lr}"]

    def attempt(random: Random) -> None:
        text = mutate_bytes(texts[random.integers(len(texts))], random)
        for _ in range(random.integers(3)):
            place = random.integers(len(text) + 1)
            text = text[:place] + marks[random.integers(len(marks))] + text[place:]
        target.write_bytes(text)
        load_config(target)

    return attempt


def run(folder: Path) -> Attempt:
    """Files of a run: config, classes, weights, state, metrics."""
    import keras

    from dh_keras.config.load import load_config
    from dh_keras.reports.curves import read_metrics
    from dh_keras.run.classes import Category
    from dh_keras.run.run_folder import RunFolder, open_run, write_run
    from dh_keras.run.weights import initialize_weights, load_weights, save_weights
    from dh_keras.training.progress import Progress
    from dh_keras.training.recording import append_row, drop_rows_after
    from dh_keras.training.resume import restore, save_state
    from dh_keras.training.schedule import Length

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(4)])
    model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    config, categories = load_config(), (Category(1, "cat"), Category(7, "dog"))
    progress = Progress(step=3, recorded_step=2, best_ap=0.5, loss_sums={"total_loss": 1.0}, plan="abc").as_dict()
    root = folder / "run"
    root.mkdir()
    write_run(root, config, categories)
    save_weights(model, root / "best.weights.h5")
    save_state(model, progress, root / "state.npz")
    append_row(root / "metrics.csv", {"step": 2, "epoch": 1, "lr": 0.1, "AP": 0.5})
    goods = {path.name: path.read_bytes() for path in root.iterdir()}
    rows = json.loads(goods["classes.json"])

    def attempt(random: Random) -> None:
        name = random.choice(list(goods))
        changed = mutate_bytes(goods[name], random)
        if name == "classes.json" and random.random() < 0.7:
            changed = to_json(mutate_tree(rows, random))
        (root / name).write_bytes(changed)
        try:
            if name == "state.npz" and random.random() < 0.5:
                save_state(model, mutate_tree(progress, random), root / name)
            opened = open_run(root)
            if name == "best.weights.h5":
                load_weights(model, opened.weights)
                initialize_weights(model, root, categories)
            elif name == "state.npz":
                restore(model, RunFolder(root, config, categories), Length(10, 5, 2), "abc")
            elif name == "metrics.csv":
                read_metrics(root / name)
                drop_rows_after(root / name, 1)
        finally:
            (root / name).write_bytes(goods[name])

    return attempt


def checkpoints(folder: Path) -> Attempt:
    """PyTorch files of both formats."""
    import torch

    from dh_keras.pretrained.importer import convert_checkpoint

    sys.path.insert(0, str(Path(__file__).parent / "pretrained"))
    import published

    tensors = published.make_tensors(published.authors_shapes(**published.NARROW))
    network = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    goods, target = [], folder / "a.pth"
    for zipped in (True, False):
        content = {"model": network, "meta": {"CLASSES": ("cat", "dog")}, "optimizer": {"lr": 0.1}}
        torch.save(content, target, _use_new_zipfile_serialization=zipped)
        goods.append(target.read_bytes())

    def attempt(random: Random) -> None:
        good = goods[random.integers(2)]
        changed = mutate_bytes(good, random)
        if random.random() < 0.5:  # most bytes are numbers; what describes them is at one end
            place = good.find(b"ctorch._utils") + random.integers(20_000)
            changed = good[:place] + mutate_bytes(good[place : place + 200], random) + good[place + 200 :]
        target.write_bytes(changed)
        convert_checkpoint(target)

    return attempt


def tfrecords(folder: Path) -> Attempt:
    """TFRecords with changed bytes, with changed values, and the names of their classes."""
    import tensorflow as tf

    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.formats.record_writer import write_tfrecords
    from dh_keras.data.formats.tfrecord import load_tfrecords
    from dh_keras.data.pipeline import find_bad_image

    annotations, root = _data(folder)
    written = write_tfrecords(load_coco(annotations, root), folder / "records" / "train", shards=1)
    goods = {path: path.read_bytes() for path in written}
    record, sidecar = written
    load_tfrecords(str(record))  # what is imported and traced for the first is no mutation's
    examples = [example.numpy() for example in tf.data.TFRecordDataset(str(record))]

    def changed_values(random: Random) -> None:
        with tf.io.TFRecordWriter(str(record)) as writer:
            for data in examples:
                example = tf.train.Example.FromString(data)
                features = example.features.feature
                for _ in range(random.integers(1, 3)):
                    feature = features[random.choice(sorted(features))]
                    kind = random.choice(["bytes_list", "int64_list", "float_list", "same"])
                    values = getattr(feature, feature.WhichOneof("kind") if kind == "same" else kind).value
                    given = {
                        "bytes_list": [b"", b"\xff", b"7", b"x" * 1000],
                        "int64_list": [0, -1, 2**31, 2**63 - 1, -(2**63), 5],
                        "float_list": [0.0, -1.0, 1e30, float("nan"), float("inf"), 1.5],
                    }[kind if kind != "same" else feature.WhichOneof("kind")]
                    if random.random() < 0.5:
                        del values[:]
                    values.extend(given[random.integers(len(given))] for _ in range(random.integers(3)))
                data = example.SerializeToString()
                writer.write(mutate_bytes(data, random) if random.random() < 0.2 else data)

    def attempt(random: Random) -> None:
        for path, data in goods.items():
            path.write_bytes(data)
        match random.integers(5):
            case 0 | 1:
                record.write_bytes(mutate_bytes(goods[record], random))
            case 2:
                sidecar.write_bytes(to_json(mutate_tree(json.loads(goods[sidecar]), random)))
            case _:
                changed_values(random)
        bad = find_bad_image(load_tfrecords(str(folder / "records" / "train-*.tfrecord")))
        if bad:
            raise UserError(bad)

    return attempt


KINDS: dict[str, Callable[[Path], Attempt]] = {
    "coco": coco,
    "foreign": foreign,
    "images": images,
    "overrides": overrides,
    "yaml": yaml,
    "run": run,
    "checkpoints": checkpoints,
    "tfrecords": tfrecords,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutation")
    args = parser.parse_args()
    failed = False
    for kind in KINDS if args.kind == "all" else [args.kind]:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_kind(kind, Path(folder), mutations=args.mutations, seed=args.seed)
        seen: set[str] = set()
        for number, fault in outcome.faults:
            place = re.sub(r"\d+|'[^']*'", "", fault[-200:])
            if place not in seen:  # one of each sort
                print(f"--- {kind}, --seed {number} --mutations 1:\n{fault[-2500:]}")
            seen.add(place)
        print(f"{kind}: {outcome}", flush=True)
        failed |= bool(outcome.faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
