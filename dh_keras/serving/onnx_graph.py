"""What is changed in the graph that tf2onnx makes, so that other runtimes than ONNX Runtime read it rightly too.

Each of these changes leaves every value as it is.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def read_from_outside(graph: Any) -> None:
    """What a loop does not change becomes what its body reads from the graph around it.

    tf2onnx hands it on from step to step. OpenVINO (2026.0 to 2026.4) takes such a value for two.
    """
    for node in graph.node:
        if node.op_type != "Loop":
            continue
        [body] = [attribute.g for attribute in node.attribute if attribute.name == "body"]
        for place in reversed(range(len(node.input) - 2)):  # the first two count the steps
            inside, outside = body.input[place + 2].name, node.input[place + 2]
            if body.output[place + 1].name == inside:
                _rename(graph, node.output[place], outside)
                _rename(body, inside, outside)
                del node.input[place + 2], node.output[place], body.input[place + 2], body.output[place + 1]


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for body in _bodies(node):
            _rename(body, old, new)


def _bodies(node: Any) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def limit_sizes(graph: Any) -> None:
    """Sizes of tensors are at most what their 32 bits hold.

    OpenVINO bounds an unknown size by the largest number of 64 bits, and in 32 that is -1.
    """
    sizes = {node.output[0] for node in graph.node if node.op_type == "Shape"}
    nodes = []
    for node in graph.node:
        for body in _bodies(node):
            limit_sizes(body)
        if node.op_type == "Cast" and node.input[0] in sizes and node.attribute[0].i == TensorProto.INT32:
            largest, limited = f"{node.output[0]}_largest", f"{node.output[0]}_limited"
            number = numpy_helper.from_array(np.int64(np.iinfo(np.int32).max))
            nodes.append(helper.make_node("Constant", [], [largest], value=number))
            nodes.append(helper.make_node("Min", [node.input[0], largest], [limited], name=limited))
            node.input[0] = limited
        nodes.append(type(node).FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)
