"""Name tables and axis permutations: how a foreign tensor becomes one of our variables.

PyTorch keeps convolutions as [output, input, height, width] and fully connected layers as [output, input]; we keep
[height, width, input, output] and [input, output]. Both published families predict deltas as (dx, dy, dw, dh).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dh_keras.errors import DataError
from dh_keras.modeling.constants import BATCH_NORM_EPSILON, ROI_OUTPUT_SIZE

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conversion:
    """One kind of tensor.

    Args:
        shape: shape of our variable to the shape that the tensor must have in the file.
        convert: the tensor to our layout.
    """

    shape: Callable[[Shape], Shape]
    convert: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rule:
    """Where one of our variables comes from.

    Args:
        target: path of the variable inside the model.
        sources: names of the tensors in the file; all but the first only take part in `combine`.
        conversion: of every source.
        combine: from the converted sources to the variable's value; None takes the only source.
    """

    target: str
    sources: tuple[str, ...]
    conversion: Conversion
    combine: Callable[..., np.ndarray] | None = None


def xy_to_yx(deltas: np.ndarray) -> np.ndarray:
    """Swap (dx, dy, dw, dh) to (dy, dx, dh, dw) in groups of four along the first axis."""
    groups = deltas.reshape(-1, 4, *deltas.shape[1:])
    return groups[:, [1, 0, 3, 2]].reshape(deltas.shape)


def _flatten_order(kernel: np.ndarray) -> np.ndarray:
    """[output, C * H * W] to [H * W * C, output]."""
    side = ROI_OUTPUT_SIZE
    return kernel.reshape(len(kernel), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def _kernel_shape(shape: Shape) -> Shape:
    return (shape[3], shape[2], shape[0], shape[1])


SAME = Conversion(lambda shape: shape, lambda x: x)
# Kernel and bias of each kind of layer.
CONV = (Conversion(_kernel_shape, lambda x: x.transpose(2, 3, 1, 0)), SAME)
DENSE = (Conversion(lambda shape: shape[::-1], lambda x: x.T), SAME)
FIRST_DENSE = (Conversion(lambda shape: shape[::-1], _flatten_order), SAME)
ANCHOR_DELTAS = (
    Conversion(_kernel_shape, lambda x: xy_to_yx(x).transpose(2, 3, 1, 0)),
    Conversion(lambda shape: shape, xy_to_yx),
)
DELTAS = (
    Conversion(lambda shape: shape[::-1], lambda x: xy_to_yx(x).T),
    Conversion(lambda shape: shape, xy_to_yx),
)
# Where the background comes first, it moves to the end of the logits and its four deltas are dropped.
BACKGROUND_FIRST = (
    Conversion(lambda shape: shape[::-1], lambda x: np.roll(x, -1, axis=0).T),
    Conversion(lambda shape: shape, lambda x: np.roll(x, -1, axis=0)),
)
BACKGROUND_DELTAS = (
    Conversion(lambda shape: (shape[1] + 4, shape[0]), lambda x: xy_to_yx(x[4:]).T),
    Conversion(lambda shape: (shape[0] + 4,), lambda x: xy_to_yx(x[4:])),
)


def rescale_gamma(epsilon: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Scale that makes our norm, with our epsilon, equal to one with another epsilon: gamma, variance to gamma."""

    def combine(gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        variance = variance.astype(np.float64)
        return gamma * np.sqrt((variance + BATCH_NORM_EPSILON) / (variance + epsilon))

    return combine


def layer_rules(target: str, source: str, kind: tuple[Conversion, Conversion]) -> list[Rule]:
    """A convolution or fully connected layer with a bias."""
    kernel, bias = kind
    return [Rule(f"{target}/kernel", (f"{source}.weight",), kernel), Rule(f"{target}/bias", (f"{source}.bias",), bias)]


def norm_rules(target: str, source: str, *, epsilon: float = BATCH_NORM_EPSILON) -> list[Rule]:
    """A batch norm, whose epsilon may differ from ours."""
    gamma = Rule(f"{target}/gamma", (f"{source}.weight",), SAME)
    if epsilon != BATCH_NORM_EPSILON:
        sources = (f"{source}.weight", f"{source}.running_var")
        gamma = Rule(f"{target}/gamma", sources, SAME, rescale_gamma(epsilon))
    return [
        gamma,
        Rule(f"{target}/beta", (f"{source}.bias",), SAME),
        Rule(f"{target}/moving_mean", (f"{source}.running_mean",), SAME),
        Rule(f"{target}/moving_variance", (f"{source}.running_var",), SAME),
    ]


def conv_norm_rules(target: str, conv: str, norm: str, *, epsilon: float = BATCH_NORM_EPSILON) -> list[Rule]:
    """A convolution without bias and its batch norm."""
    kernel = Rule(f"{target}/conv/kernel", (f"{conv}.weight",), CONV[0])
    return [kernel, *norm_rules(f"{target}/norm", norm, epsilon=epsilon)]


def unused_tensors(
    tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], *, unused: Iterable[str], source: str
) -> list[str]:
    """Check the names of a file against a name table.

    Args:
        tensors: by name, of the file.
        rules: the name table.
        unused: patterns of names that the file may hold and we have no use for.
        source: what to call the file in errors.

    Returns:
        Names of the tensors that are left unused.

    Raises:
        DataError: naming a tensor that is missing or that nothing is known about.
    """
    consumed = dict.fromkeys(name for rule in rules for name in rule.sources)
    for name in consumed:
        get_tensor(tensors, name, source)
    left = [name for name in tensors if name not in consumed]
    unknown = [name for name in left if not any(re.fullmatch(pattern, name) for pattern in unused)]
    if unknown:
        raise DataError(f"{source}: {len(unknown)} tensors that this network has no place for, first {unknown[0]}")
    return left


def assign_tensors(
    tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], variables: Mapping[str, Any], *, source: str
) -> None:
    """Give every variable its value; nothing is assigned unless everything fits.

    Args:
        tensors: by name, of the file.
        rules: one for each variable.
        variables: by path, see `weights.variables_by_path`.
        source: what to call the file in errors.

    Raises:
        DataError: naming the tensor, when one is missing, of another shape, or not finite.
    """
    if {rule.target for rule in rules} != set(variables):
        different = sorted({rule.target for rule in rules} ^ set(variables))
        raise DataError(f"{source}: the network has other layers than its config; first {different[0]}")
    values = {rule.target: _value(rule, tensors, tuple(variables[rule.target].shape), source) for rule in rules}
    for path, value in values.items():
        variables[path].assign(value)


def _value(rule: Rule, tensors: Mapping[str, np.ndarray], shape: Shape, source: str) -> np.ndarray:
    arrays = []
    for name in rule.sources:
        tensor, expected = get_tensor(tensors, name, source), rule.conversion.shape(shape)
        if tensor.shape != expected:
            raise DataError(f"{source}: tensor {name} has shape {list(tensor.shape)}, expected {list(expected)}")
        arrays.append(rule.conversion.convert(tensor))
    value = arrays[0] if rule.combine is None else rule.combine(*arrays)
    value = np.asarray(value, np.float32)
    if not np.isfinite(value).all():
        raise DataError(f"{source}: tensor {rule.sources[0]} has values that are not finite")
    return value


def get_tensor(tensors: Mapping[str, np.ndarray], name: str, source: str) -> np.ndarray:
    """The tensor of that name, or one line that says it is missing."""
    if name not in tensors:
        raise DataError(f"{source}: tensor {name} is missing")
    return tensors[name]


def count_outputs(tensors: Mapping[str, np.ndarray], name: str, source: str) -> int:
    """Output channels of the layer whose weight has that name."""
    tensor = get_tensor(tensors, name, source)
    if tensor.ndim < 2 or not tensor.size:
        raise DataError(
            f"{source}: tensor {name} has shape {list(tensor.shape)}, expected two or more axes, none of them 0"
        )
    return tensor.shape[0]
