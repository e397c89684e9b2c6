"""The five-line interface: load a run folder or a SavedModel, give it a photograph, get boxes with names.

A `ModelDetector` holds a network, a `SavedModelDetector` what was exported of one; both are used as a `Detector`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from PIL import Image

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.errors import DataError
from dh_keras.evaluation.head_combinations import HEAD_COMBINATIONS
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.photographs import decode_file, is_path, open_photograph
from dh_keras.inference.prediction.image_files import detect_images
from dh_keras.inference.prediction.sources import files_of
from dh_keras.inference.prediction.stream import detect_stream
from dh_keras.inference.result import Result
from dh_keras.inference.served import read_served, split_by_image
from dh_keras.inference.serving_module import ONNX_FILE, ServingModule
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.folding import inference_copy
from dh_keras.modeling.keras_hooks import weights_to_come
from dh_keras.paths import to_path
from dh_keras.pretrained.fetch import published_run
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import RunFolder, is_run_folder, open_run
from dh_keras.run.scores import read_best_scores, scores_of
from dh_keras.run.weights import load_weights


class Detector:
    """A loaded detector; make one with `Detector.load`.

    Args:
        categories: class index k is categories[k].
        serve_bytes: see `ServingModule.serve_bytes`.
        serve_images: see `ServingModule.serve_images`.
        max_detections: D, the most that are found in an image.
        size_limits: pixels that the short side is resized to, and of the longest long side.
        target: the one of `TARGETS` that its graph is for.

    Examples:
        >>> detector = Detector.load("runs/cells")
        >>> for detection in detector("photo.jpg").above(0.5).as_dicts():
        ...     print(detection["category"], detection["score"], detection["box"])
        >>> for result in detector.predict("photos/"):
        ...     result.save(f"drawn/{result.path.stem}.png")
    """

    # Names of the `HEAD_COMBINATIONS` that `detect_images_by_head` gives, the detector's own first, if there are any.
    head_combinations: tuple[str, ...] = ()
    # Images that an evaluation puts through together, where it is not told otherwise.
    batch_size = 1
    # Devices that detect beside each other, a batch on each.
    replicas = 1

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        serve_bytes: Callable[[tf.Tensor], dict[str, tf.Tensor]],
        serve_images: Callable[[tf.Tensor], dict[str, tf.Tensor]],
        max_detections: int,
        size_limits: tuple[int, int],
        target: str,
    ):
        self.categories = tuple(categories)
        self._serve_bytes = serve_bytes
        self._serve_images = serve_images
        self.max_detections = max_detections
        self.size_limits = size_limits
        self.target = target
        # What scores more is worth showing, for each class.
        self.best_scores = scores_of(self.categories, {})

    @staticmethod
    def load(
        path: str | Path, overrides: Sequence[str] = (), *, precision: str = "float32", target: str | None = None
    ) -> "Detector":
        """Load a run folder (its best weights), what was exported of one, or published weights.

        Args:
            path: the folder; or a name of `dh-keras fetch`, such as "mmdetection_r50", which is downloaded once.
            overrides: `key=value` changes to a run's config, such as "model.score_threshold=0.3".
            precision: "float32" or "bfloat16", in which a run's network computes; an export has its own.
            target: "cpu" or "gpu", what a run's graph is for; None takes what this machine has, an export its own.

        Raises:
            DataError: when the folder is neither, or its weights do not fit its config; when a download fails.
        """
        path = to_path(published_run(path))
        if is_run_folder(path):
            detector = ModelDetector.from_run(open_run(path, overrides), precision=precision, target=target)
            detector.best_scores = scores_of(detector.categories, read_best_scores(path))
            return detector
        exported = next((name for name in ("saved_model.pb", ONNX_FILE) if (path / name).is_file()), None)
        if exported and overrides:
            raise DataError(f"{path}: an export is fixed and takes no overrides, got {' '.join(overrides)}")
        if exported == ONNX_FILE:
            from dh_keras.inference.onnx_detector import OnnxDetector

            return OnnxDetector(path)
        if exported:
            from dh_keras.inference.saved_model_detector import SavedModelDetector

            return SavedModelDetector(path)
        if not path.exists():
            raise DataError(f"{path}: no such folder; expected a run folder or a SavedModel")
        versions = sorted(file.parent.name for file in path.glob("[!.]*/saved_model.pb"))
        hint = f"; did you mean {path / versions[-1]}?" if versions else ""
        raise DataError(
            f"{path}: neither a run folder (config.yaml, classes.json) nor a SavedModel (saved_model.pb){hint}"
        )

    @staticmethod
    def from_model(
        model: DoubleHeadRCNN, categories: Sequence[Category], *, min_size: int, max_size: int
    ) -> "ModelDetector":
        """Wrap a built `DoubleHeadRCNN`; sizes as in `DataConfig`."""
        return ModelDetector(model, categories, min_size=min_size, max_size=max_size)

    def __call__(self, image: str | Path | bytes | BinaryIO | Image.Image | np.ndarray) -> Result:
        """Detect in one image.

        Args:
            image: path of a JPEG or PNG file, or of another that Pillow reads; its address in the web; its bytes, or
                the file opened in binary mode; a PIL image; or decoded RGB pixels uint8 [H, W, 3].

        Returns:
            All that was found; `Result.above` leaves what is worth showing.

        Raises:
            DataError: naming the file, when it is missing or cannot be decoded.
            ValueError: for anything else, and an array of another shape or dtype.
        """
        photograph = open_photograph(image)
        [(_, found)] = detect_images(self, [photograph], 1)
        if isinstance(found, str):
            raise DataError(found)
        return Result.of(photograph, found, shown_above=self.best_scores)

    def predict(
        self, source: Any, *, batch_size: int = 1, on_error: Callable[[DataError], Any] | None = None
    ) -> Iterator[Result]:
        """Detect in any number of images, one after the other as they are asked for, so that few are in memory.

        Args:
            source: what one call takes; a folder or a pattern such as "photos/**/*.jpg", which stand for their images
                by name; a video, which stands for its frames; pixels uint8 [B, H, W, 3]; or a list or another iterable
                of all these.
            batch_size: images that go through the network together, where their sizes allow it.
            on_error: called for an image that cannot be read, which is left out then; None raises.

        Yields:
            A result for each image or frame, in their order. `list` keeps them all: without the pixels of files, which
            are read again when they are asked for, but with what was given as bytes or pixels, or came from the web.

        Raises:
            DataError: at once, when one path was given and stands for nothing; else when it is the image's turn.
            ValueError: for what is no image.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        source = files_of(source) if is_path(source) else source
        return detect_stream(self, source, batch_size=batch_size, on_error=on_error)

    def detect_files(self, files: Sequence[bytes]) -> list[ImageDetections]:
        """Detect in JPEG or PNG files of any sizes as one batch.

        Raises:
            tf.errors.InvalidArgumentError: when one of them cannot be decoded.
        """
        return self._read(self._serve_bytes(tf.constant(list(files))))

    def detect_images(self, images: np.ndarray) -> list[ImageDetections]:
        """Detect in decoded RGB images uint8 [B, H, W, 3] of one size."""
        return self._read(self._serve_images(tf.constant(images)))

    def detect_images_by_head(self, images: np.ndarray) -> dict[str, list[ImageDetections]]:
        """The same for every one of `head_combinations`, by name, from one pass."""
        return {}

    def _read(self, outputs: dict[str, tf.Tensor]) -> list[ImageDetections]:
        """Leave TensorFlow, and cut the padding off."""
        arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
        return [read_served(one, self.categories) for one in split_by_image(arrays)]

    def detect_dataset(
        self,
        dataset: CocoDataset,
        *,
        batch_size: int = 1,
        by_head: bool = False,
        on_images: Callable[[int], Any] | None = None,
        shard: tuple[int, int] = (0, 1),
        first: int | None = None,
    ) -> dict[str, list[ImageDetections]]:
        """Detect in every image of a dataset, or in a worker's share of them.

        Args:
            dataset: its images are read upright, in the frame of their annotations.
            batch_size: images of equal size that go through the network together, on each device.
            by_head: also return the `head_combinations`, if there are any.
            on_images: called with the number of images done, for a progress bar.
            shard: (worker, number of workers): every so many batches, the same batches as one process would make.
            first: so many images of the dataset; None takes all.

        Returns:
            "detections", and with by_head the `head_combinations`: one entry per image, in dataset order.
        """
        found: dict[str, dict[int, ImageDetections]] = {}
        batches = _equal_size_batches(dataset, batch_size, shard, len(dataset) if first is None else first)
        while group := list(islice(batches, self.replicas)):
            results = self._detect_beside([images for _, images in group], by_head)
            for (indices, _), of_batch in zip(group, results, strict=True):
                for name, entries in of_batch.items():
                    for index, entry in zip(indices, entries, strict=True):
                        entry = replace(entry, image_id=int(dataset.image_ids[index]))
                        found.setdefault(name, {})[index] = entry
                if on_images:
                    on_images(len(indices))
        return {name: [entries[index] for index in sorted(entries)] for name, entries in found.items()}

    def _detect_beside(self, batches: Sequence[np.ndarray], by_head: bool) -> list[dict[str, list[ImageDetections]]]:
        """Detect in a batch for each replica, or in fewer; see `detect_dataset` for the names."""
        results = []
        for images in batches:
            found = self.detect_images_by_head(images) if by_head else {}
            own = found[self.head_combinations[0]] if found else self.detect_images(images)
            results.append({**found, "detections": own})
        return results


class ModelDetector(Detector):
    """A network in this process; its detections are those of the SavedModel that `export_saved_model` makes of it.

    A network that was made under a strategy detects in a dataset on all devices of this machine.

    Args:
        model: a built detector.
        categories, min_size, max_size, target: see `ServingModule`.

    Attributes:
        model: the network, such as one in training: its current weights count.
        module: what is served and exported.
    """

    def __init__(
        self,
        model: DoubleHeadRCNN,
        categories: Sequence[Category],
        *,
        min_size: int,
        max_size: int,
        target: str | None = None,
    ):
        self.model = model
        self.module = ServingModule(model, categories, min_size=min_size, max_size=max_size, target=target)
        super().__init__(
            categories,
            serve_bytes=self.module.serve_bytes,
            serve_images=self.module.serve_images,
            max_detections=model.max_detections,
            size_limits=(min_size, max_size),
            target=self.module.target,
        )
        images = tf.TensorSpec([None, None, None, 3], tf.uint8)
        self._serve_by_head = tf.function(self.module.detect_by_head, input_signature=[images], autograph=False)
        self._strategy = model.distribute_strategy
        if self._strategy.num_replicas_in_sync > 1:
            self.replicas = len(self._strategy.extended.worker_devices)
        self._serve_beside = tf.function(
            self._detect_on_replicas, input_signature=[images] * self.replicas, autograph=False
        )

    @classmethod
    def from_run(cls, run: RunFolder, *, precision: str = "float32", target: str | None = None) -> "ModelDetector":
        """Load an opened run's best weights; see `Detector.load`."""
        with weights_to_come():
            model = assemble_detector(run.config.model, num_classes=len(run.categories))
        load_weights(model, run.weights)
        limits = {"min_size": run.config.data.min_size, "max_size": run.config.data.max_size}
        detector = cls(inference_copy(model, precision=precision), run.categories, **limits, target=target)
        detector.batch_size = run.config.evaluate.batch_size
        return detector

    @property
    def head_combinations(self) -> tuple[str, ...]:
        """All of `HEAD_COMBINATIONS` where both heads predict both classes and boxes; none elsewhere."""
        variant = self.model.variant
        if not (len(variant.heads) == 2 and all(spec.classes and spec.boxes for spec in variant.heads)):
            return ()
        own = f"{variant.score_from}/{variant.boxes_from}"
        return (own, *(name for name in HEAD_COMBINATIONS if name != own))

    def detect_files(self, files: Sequence[bytes]) -> list[ImageDetections]:
        """Detect in JPEG or PNG files of any sizes as one batch; see `Detector.detect_files`."""
        if len(files) == 1:  # a graph that takes pixels is there sooner than one that decodes
            return self.detect_images(decode_file(files[0])[None])
        return super().detect_files(files)

    def detect_images_by_head(self, images: np.ndarray) -> dict[str, list[ImageDetections]]:
        """The same for every one of `head_combinations`, by name, from one pass."""
        if not self.head_combinations:
            return {}
        return {name: self._read(raw) for name, raw in self._serve_by_head(tf.constant(images)).items()}

    def _detect_beside(self, batches: Sequence[np.ndarray], by_head: bool) -> list[dict[str, list[ImageDetections]]]:
        if self.replicas == 1 or by_head:
            return super()._detect_beside(batches, by_head)
        missing = self.replicas - len(batches)  # the last ones; their devices repeat a batch
        results = self._serve_beside(*map(tf.constant, [*batches, *batches[-1:] * missing]))
        return [{"detections": self._read(outputs)} for outputs in results[: len(batches)]]

    def _detect_on_replicas(self, *batches: tf.Tensor) -> tuple[dict[str, tf.Tensor], ...]:
        """What `serve_images` does of each batch, on a device of its own."""
        one_each = self._strategy.experimental_distribute_values_from_function(
            lambda context: batches[context.replica_id_in_sync_group % self.replicas]
        )
        return self._strategy.experimental_local_results(self._strategy.run(self.module.detect_images, (one_each,)))


def _equal_size_batches(
    dataset: CocoDataset, batch_size: int, shard: tuple[int, int], count: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """A worker's batches of images that have one size, so that no image's padding depends on its neighbours."""
    batches: list[list[int]] = []
    for index in sorted(range(min(count, len(dataset))), key=lambda index: (*dataset.sizes[index].tolist(), index)):
        last = batches[-1] if batches else []
        if last and len(last) < batch_size and (dataset.sizes[index] == dataset.sizes[last[0]]).all():
            last.append(index)
        else:
            batches.append([index])
    worker, workers = shard
    mine = batches[worker::workers]
    images = image_dataset(dataset, [index for batch in mine for index in batch]).as_numpy_iterator()
    for batch in mine:
        yield batch, np.stack([next(images)[1] for _ in batch])
