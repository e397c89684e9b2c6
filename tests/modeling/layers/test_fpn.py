"""The feature pyramid against plain NumPy, at sizes that do not divide by two."""

import numpy as np
from numpy_reference import conv2d, random_input, randomise

from dh_keras.modeling.layers.fpn import FPN

SIZES = {"C2": (19, 26), "C3": (10, 13), "C4": (5, 7), "C5": (3, 4)}
CHANNELS = {"C2": 3, "C3": 4, "C4": 5, "C5": 6}


def test_pyramid_equals_the_definition_at_odd_sizes():
    fpn = FPN(channels=7)
    fpn.build({name: (None, None, None, channels) for name, channels in CHANNELS.items()})
    w = randomise(fpn)
    features = {name: random_input(2, *SIZES[name], CHANNELS[name], seed=i) for i, name in enumerate(SIZES)}
    merged = {
        name: conv2d(x, w(lateral.kernel), w(lateral.bias))
        for (name, x), lateral in zip(features.items(), fpn.laterals, strict=True)
    }
    for finer, coarser in (("C4", "C5"), ("C3", "C4"), ("C2", "C3")):
        for row, column in np.ndindex(SIZES[finer]):
            merged[finer][:, row, column] += merged[coarser][:, row // 2, column // 2]
    pyramid = fpn(features)
    assert list(pyramid) == ["P2", "P3", "P4", "P5", "P6"]
    for (name, output), level in zip(zip(SIZES, fpn.outputs, strict=True), pyramid, strict=False):
        expected = conv2d(merged[name], w(output.kernel), w(output.bias))
        np.testing.assert_allclose(pyramid[level], expected, atol=1e-5, err_msg=level)
    assert pyramid["P6"].shape == (2, 2, 2, 7)
    for row, column in np.ndindex(2, 2):
        np.testing.assert_array_equal(pyramid["P6"][:, row, column], pyramid["P5"][:, 2 * row, 2 * column])
