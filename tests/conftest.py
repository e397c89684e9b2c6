"""Settings of every test: quiet TensorFlow, the same random numbers each time; and what they share."""

import contextlib
import dataclasses
import fcntl
import gc
import os
import resource

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

# As in the commands: what imports and traces make stays, and looking for garbage among it is in vain.
gc.set_threshold(50_000)
# Graphs as small as those here take a quarter less time in one thread than in several; 0 is one for each core.
THREADS = int(os.environ.get("DH_KERAS_TEST_THREADS", "1"))
tf.config.threading.set_intra_op_parallelism_threads(THREADS)
tf.config.threading.set_inter_op_parallelism_threads(THREADS)


def pytest_collection_modifyitems(items):
    """What trains first: the files that take longest, so that neither process waits for the other at the end."""
    items.sort(key=lambda item: item.path.parent.name != "training")


@pytest.fixture(autouse=True)
def custom_gradients_are_forgotten():
    """TensorFlow keeps every traced gradient of a `tf.custom_gradient` for ever, and its graph of 50 MB with it.

    A gradient is needed while a graph is traced, and no graph that a fixture made is traced on later.
    """
    yield
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]


@pytest.fixture(autouse=True)
def fixed_random_seed():
    keras.utils.set_random_seed(0)


@contextlib.contextmanager
def graphs_as_traced():
    """TensorFlow's optimisation of graphs takes half of the start-up of a tiny model and speeds up nothing here."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


@pytest.fixture(scope="module")
def quick_graphs():
    """See `graphs_as_traced`."""
    with graphs_as_traced():
        yield


@pytest.fixture
def small_files():
    """Return a function that lets no file become larger than some bytes any more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes=64: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


TINY = (
    "model.backbone.depth=18",
    "model.backbone.width=8",
    "model.fpn.channels=16",
    "model.rpn.anchor_sizes=[16,32,64,128,256]",
    "model.rpn.batch_size=32",
    "model.rpn.pre_nms_train=64",
    "model.rpn.pre_nms_test=32",
    "model.rpn.post_nms_train=48",
    "model.rpn.post_nms_test=24",
    "model.roi.batch_size=16",
    "model.fc_head.channels=16",
    "model.conv_head.channels=16",
    "model.conv_head.blocks=1",
    "model.max_detections=10",
    "data.min_size=96",
    "data.max_size=128",
    "data.batch_size=2",
    "train.warmup_steps=0",
)


@pytest.fixture(scope="session")
def tiny_overrides():
    """Overrides of the default config for a model that trains a step in milliseconds."""
    return TINY


@pytest.fixture
def make_tiny_detector():
    """Return a function that builds (and compiles) a tiny detector of a variant."""
    from dh_keras.config.load import load_config
    from dh_keras.modeling.builder import assemble_detector
    from dh_keras.modeling.optimizer import RecipeSGD

    def make(*overrides, num_classes=3, lr=0.01, seed=0, **optimizer):
        config = load_config(overrides=[*TINY, *overrides])
        detector = assemble_detector(config.model, num_classes=num_classes, seed=seed)
        detector.compile(optimizer=RecipeSGD(lr, **optimizer), report="step")
        return detector

    return make


def make_batch():
    """Two images of different sizes on one canvas, with bright boxes as objects, three and one of them."""
    random = np.random.default_rng(0)
    images = random.integers(0, 80, (2, 96, 128, 3)).astype(np.uint8)
    gt_boxes = np.zeros((2, 3, 4), np.float32)
    gt_boxes[0] = [[8, 10, 40, 60], [50, 20, 90, 50], [30, 80, 60, 120]]
    gt_boxes[1, 0] = [20, 15, 70, 55]
    gt_classes = np.array([[0, 1, 2], [1, 0, 0]], np.int32)
    gt_valid = np.array([[True, True, True], [True, False, False]])
    for image, boxes, classes, valid in zip(images, gt_boxes.astype(int), gt_classes, gt_valid, strict=True):
        for (y1, x1, y2, x2), label in zip(boxes[valid], classes[valid], strict=True):
            image[y1:y2, x1:x2, label] = 255
    images[1, 80:] = 0
    images[1, :, 100:] = 0
    return {
        "images": tf.constant(images),
        "image_sizes": tf.constant([[96, 128], [80, 100]]),
        "gt_boxes": tf.constant(gt_boxes),
        "gt_classes": tf.constant(gt_classes),
        "gt_valid": tf.constant(gt_valid),
        "image_ids": tf.constant([11, 12], tf.int64),
    }


@pytest.fixture
def batch():
    """See `make_batch`."""
    return make_batch()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """Return a function that gives a folder for every process of the suite; the first one that asks makes it."""
    own = tmp_path_factory.getbasetemp()
    shared = (own if worker_id == "master" else own.parent) / "made_once"
    shared.mkdir(exist_ok=True)

    def give(name, make):
        folder = shared / name
        with (shared / f"{name.replace('/', '_')}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                make(folder)
        return folder

    return give


@pytest.fixture(scope="session")
def tiny_shapes(made_once):
    """A generated dataset of 12 training and 6 validation images, written once."""
    from dh_keras.data.shapes import write_shapes

    counts = {"train_images": 12, "val_images": 6, "seed": 1}
    return write_shapes(made_once("data/shapes", lambda folder: write_shapes(folder, **counts)), **counts)


@pytest.fixture(scope="session")
def shapes_arguments(tiny_shapes):
    """Config overrides that point at `tiny_shapes`."""
    return tuple(f"data.{name}={value}" for name, value in dataclasses.asdict(tiny_shapes).items())


@pytest.fixture(scope="session")
def tiny_run(made_once, shapes_arguments):
    """A run folder of two epochs of training, to be read only."""
    from dh_keras.config.load import load_config
    from dh_keras.training.loop import train

    config = load_config(overrides=[*TINY, *shapes_arguments, *SHORT])
    with graphs_as_traced():
        return made_once("runs/tiny", lambda folder: train(config, output=folder))


@pytest.fixture(scope="session")
def tiny_export(made_once, tiny_run):
    """`tiny_run` as a SavedModel in a folder tiny/1, to be read only."""
    from dh_keras.inference.detector import Detector
    from dh_keras.serving.export import export_saved_model

    with graphs_as_traced():
        return made_once("tiny/1", lambda folder: export_saved_model(Detector.load(tiny_run), folder))


SHORT = ("train.epochs=2", "train.drops=[]", "train.evaluate_every=1", "train.pictures=2", "model.score_threshold=0.0")


@pytest.fixture(scope="session")
def short_training():
    """Overrides for two epochs with an evaluation each; every score counts, so that there is something to compare."""
    return SHORT
