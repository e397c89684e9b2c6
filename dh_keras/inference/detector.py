"""The five-line interface: load a run folder or a SavedModel, give it a photograph, get boxes with names."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.data.transforms import decode_image
from dh_keras.errors import DataError, one_line
from dh_keras.evaluation.coco_metrics import ImageDetections, evaluate_found
from dh_keras.evaluation.head_combinations import HEAD_COMBINATIONS
from dh_keras.inference.serving_module import LABELS_FILE, SIGNATURE_FILE, ServingModule
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.folding import inference_copy
from dh_keras.run.classes import Category, read_classes
from dh_keras.run.run_folder import is_run_folder, open_run
from dh_keras.run.weights import load_weights


@dataclass(frozen=True, eq=False)
class Result:
    """Detections of one image, best first.

    Args:
        boxes: float32 [D, 4], (y1, x1, y2, x2) in pixels of the upright image.
        scores: float32 [D] in 0..1.
        category_ids: int32 [D], ids of the dataset the detector was trained on.
        categories: D names.
    """

    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    categories: tuple[str, ...]

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    def above(self, score: float) -> "Result":
        """Only the detections that score more than `score`."""
        keep = np.flatnonzero(self.scores > score)
        names = tuple(self.categories[index] for index in keep)
        return Result(self.boxes[keep], self.scores[keep], self.category_ids[keep], names)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Ready for JSON: box [y1, x1, y2, x2], score, category_id, category."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.category_ids.tolist(), self.categories, strict=True)
        return [{"box": box, "score": score, "category_id": id_, "category": name} for box, score, id_, name in rows]


class Detector:
    """A loaded detector; make one with `Detector.load`.

    Examples:
        >>> detector = Detector.load("runs/cells")
        >>> for detection in detector("photo.jpg").above(0.5).as_dicts():
        ...     print(detection["category"], detection["score"], detection["box"])
    """

    def __init__(
        self,
        serve_bytes: Callable[..., dict[str, tf.Tensor]],
        serve_images: Callable[..., dict[str, tf.Tensor]],
        categories: Sequence[Category],
        max_detections: int,
        size_limits: tuple[int, int],
        serving: ServingModule | None = None,
        loaded: Any = None,
    ):
        self._serve_bytes = serve_bytes
        self._serve_images = serve_images
        self.categories = tuple(categories)
        self.max_detections = max_detections
        self.size_limits = size_limits  # pixels that the short side is resized to, and of the longest long side
        self.serving = serving
        if serving is not None:
            images = tf.TensorSpec([None, None, None, 3], tf.uint8)
            self._detect_by_head = tf.function(serving.detect_by_head, input_signature=[images], autograph=False)
        self._loaded = loaded  # a SavedModel's functions need the object they were loaded with

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), *, precision: str = "float32") -> "Detector":
        """Load a run folder (its best weights) or a SavedModel folder.

        Args:
            path: the folder.
            overrides: `key=value` changes to a run's config, such as "model.score_threshold=0.3".
            precision: "float32" or "bfloat16", in which a run's network computes; a SavedModel has its own.

        Raises:
            DataError: when the folder is neither, or its weights do not fit its config.
        """
        path = Path(path)
        if is_run_folder(path):
            return cls._load_run(path, overrides, precision)
        if (path / "saved_model.pb").is_file():
            return cls._load_saved_model(path, overrides)
        if not path.exists():
            raise DataError(f"{path}: no such folder; expected a run folder or a SavedModel")
        versions = (
            sorted(child.name for child in path.iterdir() if (child / "saved_model.pb").is_file())
            if path.is_dir()
            else []
        )
        hint = f"; did you mean {path / versions[-1]}?" if versions else ""
        raise DataError(
            f"{path}: neither a run folder (config.yaml, classes.json) nor a SavedModel (saved_model.pb){hint}"
        )

    @classmethod
    def _load_run(cls, path: Path, overrides: Sequence[str], precision: str) -> "Detector":
        run = open_run(path, overrides)
        model = assemble_detector(run.config.model, num_classes=len(run.categories))
        load_weights(model, run.weights)
        return cls.from_model(
            inference_copy(model, precision=precision),
            run.categories,
            min_size=run.config.data.min_size,
            max_size=run.config.data.max_size,
        )

    @classmethod
    def _load_saved_model(cls, path: Path, overrides: Sequence[str]) -> "Detector":
        if overrides:
            raise DataError(f"{path}: a SavedModel is fixed and takes no overrides, got {' '.join(overrides)}")
        try:
            loaded = tf.saved_model.load(str(path))
            signatures = loaded.signatures
            default, image = signatures["serving_default"], signatures["serve_image"]
            preprocessing = json.loads((path / "assets" / SIGNATURE_FILE).read_text(encoding="utf-8"))["preprocessing"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise DataError(
                f"{path}: not a SavedModel that this package exported: {str(error).splitlines()[0]}"
            ) from error
        categories = read_classes(path / "assets" / LABELS_FILE)
        return cls(
            lambda image_bytes: default(image_bytes=image_bytes),
            lambda images: image(images=images),
            categories,
            max_detections=default.structured_outputs["detection_scores"].shape[1],
            size_limits=(preprocessing["min_size"], preprocessing["max_size"]),
            loaded=loaded,
        )

    @classmethod
    def from_model(cls, model: Any, categories: Sequence[Category], *, min_size: int, max_size: int) -> "Detector":
        """Wrap a built `DoubleHeadRCNN`; sizes as in `DataConfig`."""
        serving = ServingModule(model, categories, min_size=min_size, max_size=max_size)
        limits = (min_size, max_size)
        return cls(serving.serve_bytes, serving.serve_images, categories, model.max_detections, limits, serving=serving)

    @property
    def has_all_outputs(self) -> bool:
        """Whether both heads predict both classes and boxes, and the model's inner outputs are at hand."""
        if self.serving is None:
            return False
        heads = self.serving.detector.variant.heads
        return len(heads) == 2 and all(spec.classes and spec.boxes for spec in heads)

    def __call__(self, image: str | Path | bytes | np.ndarray) -> Result:
        """Detect in one image.

        Args:
            image: path of a JPEG or PNG file, its bytes, or decoded RGB pixels uint8 [H, W, 3].

        Raises:
            DataError: naming the file, when it is missing or cannot be decoded.
            ValueError: for an array of another shape or dtype.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ValueError(f"`image` must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
            return _results(self._serve_images(tf.constant(image[None])))[0]
        data = image if isinstance(image, bytes) else read_image_file(image)
        try:
            return self.detect_files([data])[0]
        except tf.errors.InvalidArgumentError as error:
            name = "image bytes" if isinstance(image, bytes) else str(image)
            raise DataError(undecodable(name, error)) from error

    def class_indices(self, result: Result) -> np.ndarray:
        """Index into `categories` of every detection, int32 [D]."""
        class_of = {category.id: index for index, category in enumerate(self.categories)}
        return np.array([class_of[id_] for id_ in result.category_ids.tolist()], np.int32)

    def detect_files(self, files: Sequence[bytes]) -> list[Result]:
        """Detect in JPEG or PNG files of any sizes as one batch.

        Raises:
            tf.errors.InvalidArgumentError: when one of them cannot be decoded.
        """
        return _results(self._serve_bytes(tf.constant(list(files))))

    def detect_images(self, images: np.ndarray) -> list[Result]:
        """Detect in decoded RGB images uint8 [B, H, W, 3] of one size."""
        return _results(self._serve_images(tf.constant(images)))

    def detect_images_by_head(self, images: np.ndarray) -> dict[str, list[Result]]:
        """The same for every combination of the heads; needs `has_all_outputs`."""
        return {name: _results(raw) for name, raw in self._detect_by_head(tf.constant(images)).items()}

    def detect_dataset(
        self,
        dataset: CocoDataset,
        *,
        batch_size: int = 1,
        by_head: bool = False,
        on_images: Callable[[int], Any] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> dict[str, list[ImageDetections]]:
        """Detect in every image of a dataset, or in a worker's share of them.

        Args:
            dataset: its images are read upright, in the frame of their annotations.
            batch_size: images of equal size that go through the network together.
            by_head: also return every combination of the heads.
            on_images: called with the number of images done, for a progress bar.
            shard: (worker, number of workers): every so many batches, the same batches as one process would make.

        Returns:
            "detections", and with by_head the names of `HEAD_COMBINATIONS`: one entry per image, in dataset order.
        """
        found: dict[str, dict[int, ImageDetections]] = {}
        for indices, images in _equal_size_batches(dataset, batch_size, shard):
            results = self.detect_images_by_head(images) if by_head else {"detections": self.detect_images(images)}
            if by_head:
                variant = self.serving.detector.variant
                results["detections"] = results[_combination_name(variant.score_from, variant.boxes_from)]
            for name, of_batch in results.items():
                for index, result in zip(indices, of_batch, strict=True):
                    classes = self.class_indices(result)
                    image_id = int(dataset.image_ids[index])
                    entry = ImageDetections(image_id, result.boxes, result.scores, classes)
                    found.setdefault(name, {})[index] = entry
            if on_images:
                on_images(len(indices))
        return {name: [entries[index] for index in sorted(entries)] for name, entries in found.items()}


def _combination_name(score_from: str, boxes_from: str) -> str:
    return next(name for name, sources in HEAD_COMBINATIONS.items() if sources == (score_from, boxes_from))


def _equal_size_batches(
    dataset: CocoDataset, batch_size: int, shard: tuple[int, int]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """A worker's batches of images that have one size, so that no image's padding depends on its neighbours."""
    batches: list[list[int]] = []
    for index in sorted(range(len(dataset)), key=lambda index: (*dataset.sizes[index].tolist(), index)):
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


def _results(raw: dict[str, tf.Tensor]) -> list[Result]:
    """Cut the padding off and leave TensorFlow."""
    arrays = {name: tensor.numpy() for name, tensor in raw.items()}
    results = []
    for row, count in enumerate(arrays["num_detections"].tolist()):
        names = tuple(name.decode() for name in arrays["detection_class_names"][row, :count].tolist())
        boxes, scores = arrays["detection_boxes"][row, :count], arrays["detection_scores"][row, :count]
        results.append(Result(boxes, scores, arrays["detection_classes"][row, :count], names))
    return results


def read_image_file(path: str | Path) -> bytes:
    """Read a file's bytes.

    Raises:
        DataError: naming the file, when it cannot be read or is empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise DataError(f"{path}: the file is empty; expected a JPEG or PNG image")
    return data


def read_image(path: str | Path) -> np.ndarray:
    """Decode a file to upright RGB pixels uint8 [H, W, 3].

    Raises:
        DataError: naming the file, when it cannot be read or decoded.
    """
    try:
        return decode_image(tf.constant(read_image_file(path))).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise DataError(undecodable(str(path), error)) from error


def undecodable(name: str, error: tf.errors.OpError) -> str:
    """One line for an image that TensorFlow could not decode."""
    return f"{name}: not a readable JPEG or PNG image, it may be cut off: {one_line(error.message)}"


def detect_with_bar(detector: Detector, dataset: CocoDataset, *, batch_size: int) -> dict[str, list[ImageDetections]]:
    """Detect in a dataset with every combination of the heads there is, see `Detector.detect_dataset`."""
    with tqdm(total=len(dataset), unit="image", desc="evaluating") as bar:
        return detector.detect_dataset(
            dataset, batch_size=batch_size, by_head=detector.has_all_outputs, on_images=bar.update
        )


def evaluate_detector(
    detector: Detector, dataset: CocoDataset, *, batch_size: int = 1, max_detections: int = 100
) -> dict[str, Any]:
    """COCO metrics of a detector on a dataset, for every combination of the heads if it has all four outputs.

    Args:
        detector: a loaded detector.
        dataset: loaded with the detector's categories.
        batch_size: images of equal size that go through the network together.
        max_detections: see `evaluate_detections`.

    Returns:
        What `evaluate_detections` does, and "by_head": {name of the combination: AP, AP50, ...} where it applies.
    """
    found = detect_with_bar(detector, dataset, batch_size=batch_size)
    return evaluate_found(dataset, found, max_detections=max_detections)
