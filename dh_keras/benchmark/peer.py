"""Faster R-CNN of the TensorFlow Model Garden, as the stock implementation to compare with.

Its package brings Keras 2, which is imported here only, inside the function that needs it.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from dh_keras.benchmark import PEERS
from dh_keras.benchmark.machine import median_ms


def measure_peer(name: str, images: tf.Tensor, *, repeats: int) -> dict:
    """Time a peer with random weights in inference mode, as a graph with constant weights.

    Args:
        name: a key of `PEERS`.
        images: uint8 [B, H, W, 3]. The Model Garden pads them to multiples of 64 pixels, as its own serving does; that
            is part of the measured graph.
        repeats: calls of which the median is taken.

    Returns:
        name (with the experiment of the Model Garden), height and width before padding, batch, precision, proposals per
        image, and total_ms.
    """
    model, config = _build_model_garden(PEERS[name], images.shape)
    graph = _frozen_graph(model, config, images.shape)
    _, milliseconds = median_ms(graph, images, repeats=repeats)
    batch, height, width, _ = images.shape
    return {
        "name": f"{name} {PEERS[name]}",
        "height": height,
        "width": width,
        "batch": batch,
        "precision": "float32",
        "proposals": config.roi_generator.test_num_proposals,
        "total_ms": milliseconds,
    }


def _build_model_garden(experiment: str, shape: tf.TensorShape) -> tuple[Any, Any]:
    """The model of an experiment for images [B, H, W, 3], and its config."""
    from official.core.exp_factory import get_exp_config
    from official.vision import configs  # noqa: F401, registers the experiments
    from official.vision.modeling.factory import build_maskrcnn

    config = get_exp_config(experiment).task.model
    # The same numbers at inference, by a kernel that TensorFlow fuses into the convolution.
    config.norm_activation.use_sync_bn = False
    padded = tf.TensorSpec([shape[0], *padded_size(config, shape), 3])
    return build_maskrcnn(input_specs=padded, model_config=config), config


def padded_size(config: Any, shape: tf.TensorShape) -> tuple[int, int]:
    """Height and width as multiples of the stride of its last level."""
    stride = 2**config.max_level
    return tuple(-(-side // stride) * stride for side in shape[1:3])


def _frozen_graph(model: Any, config: Any, shape: tf.TensorShape) -> Callable:
    """The model from uint8 pixels to detections, with its weights as constants of the graph."""
    from official.vision.ops.preprocess_ops import MEAN_RGB, STDDEV_RGB, normalize_image

    batch, height, width, _ = shape
    padded_height, padded_width = padded_size(config, shape)

    def predict(images: tf.Tensor) -> list[tf.Tensor]:
        pixels = normalize_image(tf.cast(images, tf.float32), offset=MEAN_RGB, scale=STDDEV_RGB)
        pixels = tf.image.pad_to_bounding_box(pixels, 0, 0, padded_height, padded_width)
        sizes = tf.constant([[float(height), float(width)]] * batch)
        outputs = model.call(pixels, sizes, training=False)
        return [outputs[name] for name in ("detection_boxes", "detection_scores", "detection_classes")]

    traced = tf.function(predict, autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.uint8))
    return convert_variables_to_constants_v2(traced)
