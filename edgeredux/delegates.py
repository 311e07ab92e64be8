"""What LiteRT's delegates took of a file, and whether they would misread it.

The XNNPACK delegate takes a weight that is stored sparse for a dense one and answers with garbage, without a word
(tflite-runtime 2.14 to ai-edge-litert 2.3, docs/decisions/tflite-sparse.md). It reads it rightly behind a DENSIFY
operator, and leaves a fully-connected operator alone whose bias is computed at run time.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

_DELEGATE = "DELEGATE"
_EXPANDS = "DENSIFY"
_BIASED = 3  # inputs of a fully-connected operator with a bias


def split(nodes: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The operators that delegates took, and those left to the interpreter's own kernels, in the file's order.

    `nodes` are `Interpreter._get_ops_details()`: the original operators followed by one DELEGATE node per delegated
    part; a part holds every operator on the way from the delegate's inputs to its outputs.
    """
    original = [node for node in nodes if node["op_name"] != _DELEGATE]
    maker = {int(t): i for i, node in enumerate(original) for t in node["outputs"]}
    taken: set[int] = set()
    for part in (node for node in nodes if node["op_name"] == _DELEGATE):
        given = {int(t) for t in part["inputs"]}
        waiting = [int(t) for t in part["outputs"]]
        while waiting:
            tensor = waiting.pop()
            place = maker.get(tensor)
            if tensor in given or place is None or place in taken:
                continue
            taken.add(place)
            waiting.extend(int(t) for t in original[place]["inputs"])
    return [n for i, n in enumerate(original) if i in taken], [n for i, n in enumerate(original) if i not in taken]


def misread(interpreter: Any) -> int:
    """How many operators a delegate took that read a sparse weight as a dense one. Tensors must be allocated."""
    sparse = _sparse(interpreter)
    taken, _ = split(interpreter._get_ops_details()) if sparse else ([], [])
    return sum(
        node["op_name"] != _EXPANDS and any(int(tensor) in sparse for tensor in node["inputs"]) for node in taken
    )


def unguarded(path: str, module: Any = None) -> int:
    """How many operators of the file the default delegate would take though their weights are sparse.

    Found before a delegate sees the file: reading past such a weight's end may end the process. `module` is the
    runtime's module of interpreters, ai_edge_litert's unless given. Raises ValueError or RuntimeError, as LiteRT does,
    on a file that cannot be loaded.
    """
    interpreter = _alone(path, 1, module)
    sparse = _sparse(interpreter)
    if not sparse:
        return 0
    nodes = interpreter._get_ops_details()
    computed = {int(tensor) for node in nodes for tensor in node["outputs"]}
    found = 0
    for node in nodes:
        reads = [int(tensor) for tensor in node["inputs"]]
        if node["op_name"] != _EXPANDS and any(tensor in sparse for tensor in reads):
            found += len(reads) < _BIASED or reads[2] not in computed
    return found


def reference_interpreter(path: str, threads: int) -> Any:
    """LiteRT as it is by default; its built-in kernels alone for a file that the default delegate would misread.

    Tensors are allocated. Raises ValueError or RuntimeError, as LiteRT does, on a file that cannot be loaded.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = _alone(path, threads) if unguarded(path) else Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    if misread(interpreter):
        interpreter = _alone(path, threads)
        interpreter.allocate_tensors()
    return interpreter


def _alone(path: str, threads: int, module: Any = None) -> Any:
    module = module or importlib.import_module("ai_edge_litert.interpreter")
    alone = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return module.Interpreter(model_path=path, num_threads=threads, experimental_op_resolver_type=alone)


def _sparse(interpreter: Any) -> set[int]:
    return {item["index"] for item in interpreter.get_tensor_details() if item.get("sparsity_parameters")}
