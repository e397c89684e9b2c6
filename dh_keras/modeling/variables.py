"""Names for the variables of a detector that depend on its structure alone."""

from typing import Any


def variables_by_path(layer: Any) -> dict[str, Any]:
    """Variables of a built model or layer, by their path inside it; metrics and random states are left out.

    So are those of a KerasHub backbone, whose paths do not say where it is.
    """
    inside = f"{layer.name}/"
    return {v.path.split(inside, 1)[1]: v for v in layer.weights if inside in v.path}
