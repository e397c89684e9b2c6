"""Where the operations of a graph would run on a machine with a GPU, and what it would copy, found out without one.

TensorFlow's wheel lists its kernels for a GPU: the types each takes, and which of its arguments stay in the host's
memory (nearly all that is int32). What one operation leaves on one side and another wants on the other is copied.
"""

import functools
from typing import NamedTuple

from tensorflow.python.eager import context
from tensorflow.python.framework import function_def_to_graph, kernels, op_def_registry

# They run what is in them, and their arguments are where their types say; the list is TensorFlow's, not of kernels.
CALLS = {"If", "PartitionedCall", "StatefulPartitionedCall", "StatelessIf", "StatelessWhile", "While"}
ARGUMENTS = {"Placeholder", "_Arg"}
ELSEWHERE = {"resource", "variant"}  # handles, not numbers


class Placement(NamedTuple):
    """What a graph asks of a machine with a GPU; a loop counts once.

    Args:
        without_kernel: operations that no GPU kernel takes, each "type of operation: types of its tensors".
        to_host: tensors that are copied from the device to the host, each as a line.
        to_device: the other way.
    """

    without_kernel: set[str]
    to_host: list[str]
    to_device: list[str]


def placement(graph):
    """`Placement` of a graph and of all functions that it calls. Lines of scalars begin with "scalar"."""
    without_kernel, copies = set(), {False: {}, True: {}}
    for number, each in enumerate(_graphs(graph, set())):
        sides = {op.name: _sides(op) for op in each.get_operations()}
        for op in each.get_operations():
            has_kernel, wanted, _ = sides[op.name]
            if not has_kernel:
                types = sorted({tensor.dtype.name for tensor in (*op.inputs, *op.outputs)})
                without_kernel.add(f"{op.type}: {', '.join(types)}")
            for tensor, on_host in zip(op.inputs, wanted, strict=True):
                made_on_host = sides[tensor.op.name][2][tensor.value_index]
                if made_on_host != on_host and tensor.op.type != "Const" and tensor.dtype.name not in ELSEWHERE:
                    copies[on_host].setdefault((number, tensor.name), _line(tensor, op))
    return Placement(without_kernel, list(copies[True].values()), list(copies[False].values()))


def large(lines):
    """Those that are no scalars."""
    return [line for line in lines if not line.startswith("scalar")]


def _line(tensor, op):
    sizes = "scalar" if tensor.shape.rank == 0 else str(tensor.shape)
    return f"{sizes} {tensor.dtype.name}: {tensor.op.type} ({_place(tensor.op)}) -> {op.type} ({_place(op)})"


def _place(op):
    ours = [frame for frame in op.traceback or () if "/dh_keras/" in frame.filename]
    return f"{ours[-1].filename.rsplit('/dh_keras/', 1)[1]}:{ours[-1].lineno}" if ours else op.name[-40:]


def _graphs(graph, seen):
    yield graph
    for op in graph.get_operations():
        for attribute in op.node_def.attr.values():
            for name in {attribute.func.name, *(function.name for function in attribute.list.func)} - seen - {""}:
                seen.add(name)
                traced = getattr(graph._get_function(name), "graph", None)
                definition = traced or function_def_to_graph.function_def_to_graph(context.get_function_def(name))
                yield from _graphs(definition, seen)


def _sides(op):
    """Whether a GPU can run it (or need not), and whether each input and each output is in the host's memory."""
    tensors = (op.inputs, op.outputs)
    if op.type in CALLS | ARGUMENTS:
        return True, *([tensor.dtype.name in ("int32", "string") for tensor in part] for part in tensors)
    pinned, kernel = "CPU" in op.device.upper(), _kernel(op)
    if pinned or kernel is None:
        return pinned or op.type == "NoOp", *([True] * len(part) for part in tensors)
    definition = op_def_registry.get(op.type)
    names = (_names(op, definition.input_arg), _names(op, definition.output_arg))
    return True, *([name in kernel.host_memory_arg for name in part] for part in names)


def _kernel(op):
    def takes(kernel):
        return all(_types(op, c.name) <= set(c.allowed_values.list.type) for c in kernel.constraint)

    fitting = [kernel for kernel in _gpu_kernels().get(op.type, ()) if takes(kernel)]
    return max(fitting, key=lambda kernel: (kernel.device_type == "GPU", kernel.priority), default=None)


def _types(op, attribute):
    value = op.node_def.attr[attribute]
    return {value.type} if value.WhichOneof("value") == "type" else set(value.list.type)


def _names(op, arguments):
    """The argument that each tensor belongs to."""
    names = []
    for argument in arguments:
        count = 1
        if argument.number_attr:
            count = op.get_attr(argument.number_attr)
        elif argument.type_list_attr:
            count = len(op.get_attr(argument.type_list_attr))
        names += [argument.name] * count
    return names


@functools.cache
def _gpu_kernels():
    found = {}
    for kernel in kernels.get_all_registered_kernels().kernel:
        if kernel.device_type in ("GPU", "DEFAULT") and not kernel.label:
            found.setdefault(kernel.op, []).append(kernel)
    return found
