"""An exported ONNX file as a detector, run by ONNX Runtime."""

from pathlib import Path

import tensorflow as tf

from dh_keras.data.transforms import require_images
from dh_keras.errors import DataError, UserError, pip_install
from dh_keras.inference.detector import Detector
from dh_keras.inference.photographs import decode_file
from dh_keras.inference.saved_model_detector import read_description
from dh_keras.inference.serving_module import LABELS_FILE, ONNX_FILE
from dh_keras.modeling.ops.indexing import on_host
from dh_keras.paths import local_file
from dh_keras.run.classes import read_classes
from dh_keras.run.scores import scores_of


class OnnxDetector(Detector):
    """What `export_onnx` wrote. Files are decoded by TensorFlow, as for a run folder.

    Args:
        path: the folder.

    Raises:
        UserError: when ONNX Runtime is not installed.
        DataError: when it is another ONNX file, or damaged.
    """

    def __init__(self, path: Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path}: an ONNX file needs onnxruntime: {pip_install('onnx')}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            with local_file(path / ONNX_FILE) as file:
                self._session = onnxruntime.InferenceSession(
                    file.read_bytes(), options, providers=onnxruntime.get_available_providers()
                )
            settings, best = read_description(path)
        except Exception as error:  # ONNX Runtime's own have no class in common
            raise DataError(
                f"{path}: not an ONNX file that this package exported: {str(error).splitlines()[0]}"
            ) from error
        super().__init__(
            read_classes(path / "assets" / LABELS_FILE),
            serve_bytes=self._detect_files,
            serve_images=self._detect_images,
            **settings,
        )
        self.path = path
        self.best_scores = scores_of(self.categories, best)

    def _detect_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, map(tf.constant, self._session.run(names, {"images": images.numpy()})), strict=True))

    def _detect_files(self, files: tf.Tensor) -> dict[str, tf.Tensor]:
        with on_host():
            images = [decode_file(file) for file in require_images(files).numpy()]
        found = [self._detect_images(tf.constant(image[None])) for image in images]
        return {name: tf.concat([outputs[name] for outputs in found], axis=0) for name in found[0]}
