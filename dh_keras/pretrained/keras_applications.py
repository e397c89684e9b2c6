"""ImageNet weights of `keras.applications`: caffe-style ResNets, which the paper's recipe starts from.

They stride in the first 1x1 convolution and see BGR pixels with a deviation of one, as the authors' ResNets do. Their
convolutions have a bias, which moves into the mean of the norm that follows.
"""

import os

import keras
import numpy as np

from dh_keras.config.schema import ModelConfig
from dh_keras.errors import ConfigError, DataError
from dh_keras.modeling.keras_hooks import own_random_numbers
from dh_keras.modeling.layers.resnet import BLOCKS_PER_STAGE, STAGES
from dh_keras.pretrained.tensors import SAME, Rule, rescale_gamma

DEPTHS = (50, 101)
EPSILON = 1.001e-5
PIXEL_MEAN = (103.939, 116.779, 123.68)
FILE_NAME = "resnet{depth}_weights_tf_dim_ordering_tf_kernels_notop.h5"
ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"


def require_imagenet_settings(config: ModelConfig) -> None:
    """Refuse a config in which these weights would see other pixels or strides than they were trained with.

    Raises:
        ConfigError: naming the keys and the values that they need.
    """
    backbone = config.backbone
    needed = {
        "backbone.depth": backbone.depth in DEPTHS or "50",
        "backbone.width": backbone.width == 64 or "64",
        "backbone.stride_in_1x1": backbone.stride_in_1x1 or "true",
        "channel_order": config.channel_order == "bgr" or "bgr",
        "pixel_std": all(std == 1.0 for std in config.pixel_std) or "[1,1,1]",
        # The authors' own means are about one grey level off these.
        "pixel_mean": np.allclose(config.pixel_mean, PIXEL_MEAN, rtol=0, atol=2) or str(list(PIXEL_MEAN)),
    }
    wrong = [f"model.{key}={value}".replace(" ", "") for key, value in needed.items() if value is not True]
    if wrong:
        raise ConfigError(f"key model.backbone.weights: imagenet needs {' '.join(wrong)}")


def download_imagenet_tensors(depth: int) -> dict[str, np.ndarray]:
    """Weights of ResNet-50 or -101, from Keras' cache or the network.

    Raises:
        DataError: when they cannot be downloaded, saying what to fetch and where to put it.
    """
    try:
        network = _application(depth, "imagenet")
    except Exception as error:  # Keras raises plain exceptions for whatever goes wrong on the way
        name = FILE_NAME.format(depth=depth)
        place = f"{os.environ.get('KERAS_HOME', '~/.keras')}/models/{name}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rpartition(" -- ")[2]
        raise DataError(
            f"model.backbone.weights: imagenet: could not be downloaded ({reason[:160]}); "
            f"fetch {ADDRESS}{name} and put it at {place}, or give a torchvision-format .pth file instead"
        ) from error
    return network_tensors(network)


def _application(depth: int, weights: str | None) -> keras.Model:
    build = {50: keras.applications.ResNet50, 101: keras.applications.ResNet101}[depth]
    with own_random_numbers(0):
        return build(include_top=False, weights=weights, input_shape=(None, None, 3))


def network_tensors(network: keras.Model) -> dict[str, np.ndarray]:
    """Arrays of a `keras.applications` network by "layer/variable"."""
    return {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in network.layers
        for variable in layer.weights
    }


def application_rules(depth: int) -> list[Rule]:
    """Where every variable of our backbone comes from, by the names of `network_tensors`."""
    rules = _conv_norm_rules("stem", "conv1")
    for stage, blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        for block in range(blocks):
            ours = f"{STAGES[stage].lower()}_block{block}"
            theirs = f"conv{stage + 2}_block{block + 1}"
            for conv in (1, 2, 3):
                rules += _conv_norm_rules(f"{ours}/conv{conv}", f"{theirs}_{conv}")
            if block == 0:
                rules += _conv_norm_rules(f"{ours}/shortcut", f"{theirs}_0")
    return rules


def _conv_norm_rules(ours: str, theirs: str) -> list[Rule]:
    norm = f"{theirs}_bn"
    return [
        Rule(f"{ours}/conv/kernel", (f"{theirs}_conv/kernel",), SAME),
        Rule(f"{ours}/norm/gamma", (f"{norm}/gamma", f"{norm}/moving_variance"), SAME, rescale_gamma(EPSILON)),
        Rule(f"{ours}/norm/beta", (f"{norm}/beta",), SAME),
        Rule(f"{ours}/norm/moving_mean", (f"{norm}/moving_mean", f"{theirs}_conv/bias"), SAME, np.subtract),
        Rule(f"{ours}/norm/moving_variance", (f"{norm}/moving_variance",), SAME),
    ]
