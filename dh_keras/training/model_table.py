"""What a run is about to train: the parameters of every part."""

from collections.abc import Sequence

from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN


def model_rows(model: DoubleHeadRCNN) -> list[tuple[str, int, int]]:
    """(part, parameters, trainable parameters) of the backbone, fpn, rpn_head and each head, then their sum."""
    parts = {name: getattr(model, name) for name in ("backbone", "fpn", "rpn_head")} | model.heads
    rows = [(part, layer.count_params(), _num_values(layer.trainable_variables)) for part, layer in parts.items()]
    return [*rows, ("total", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def _num_values(variables: Sequence) -> int:
    return sum(variable.shape.num_elements() for variable in variables)


def format_model_table(model: DoubleHeadRCNN) -> str:
    """The rows of `model_rows` as text."""
    lines = [f"{'part':<12}{'parameters':>14}{'trainable':>14}"]
    return "\n".join([*lines, *(f"{part:<12}{all_:>14,}{some:>14,}" for part, all_, some in model_rows(model))])
