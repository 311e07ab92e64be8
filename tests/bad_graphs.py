"""ONNX files that are wrong in one way each, and what every pass says of them."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def good(path: Path) -> Any:
    """A graph that nearly every pass has something to do on: products, a norm, a Gelu, a mask, a branch, dead rows."""
    rng = np.random.default_rng(5)
    up, down = (rng.normal(size=size).astype(np.float32) / 8 for size in ((64, 96), (96, 64)))
    up[:, 48:] = 0
    down[48:] = 0
    arrays = {"up": up, "down": down, "gain": np.ones(64, np.float32), "shift": np.zeros(64, np.float32)}
    branch = {
        name: helper.make_graph(
            [helper.make_node(kind, ["n", "gain"], [name], name=f"{name}_node")],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, ["b", 64])],
        )
        for name, kind in (("sum", "Add"), ("product", "Mul"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"], name="up_node"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "down"], ["d"], name="down_node"),
        helper.make_node("Add", ["d", "x"], ["s"], name="residual"),
        helper.make_node("LayerNormalization", ["s", "gain", "shift"], ["n"], name="norm"),
        helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch["sum"], else_branch=branch["product"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", FLOAT, ["b", 64]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", FLOAT, ["b", 64])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return model


def _cycle(model: Any) -> None:
    model.graph.node[0].input[0] = "n"  # the first reads what the fifth makes


def _cycle_inside(model: Any) -> None:
    branch = model.graph.node[5].attribute[0].g
    branch.node[0].input[0] = branch.node[0].output[0]


def _apart(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="length", value=str(64 * 96 * 4))

    return change


def _apart_inside(model: Any) -> None:
    """The same in a branch, where a look at the main graph's initializers does not see it."""
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(64, np.float32)))
    tensor = constant.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    branch = model.graph.node[5].attribute[0].g
    branch.node[0].input[1] = "k"
    branch.node.insert(0, constant)


def _opset(version: int, domain: str = "") -> Callable[[Any], None]:
    def change(model: Any) -> None:
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid(domain, version))

    return change


def _operator(kind: str, domain: str = "") -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = kind, domain
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def _set(text: str) -> Callable[[Any], None]:
    """A change that is one statement about `model`."""

    def change(model: Any) -> None:
        exec(text, {"model": model, "helper": helper, "np": np, "numpy_helper": numpy_helper, "FLOAT": FLOAT})

    return change


# Refused with exit code 2 whatever the pass, by a line that holds these words.
REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "cycle": (_cycle, "no valid ONNX"),
    "cycle in a branch": (_cycle_inside, "bad.onnx"),
    "no external data": (_apart("bad.onnx.data"), "bad.onnx"),
    "external data outside": (_apart("../secret"), "bad.onnx"),
    "external data by absolute path": (_apart("/etc/hostname"), "bad.onnx"),
    "external data in another file": (_apart("other.bin"), "bad.onnx"),
    "external data outside, in a branch": (_apart_inside, "bad.onnx"),
    "opset of the future": (_opset(999), "bad.onnx"),
    "no opset": (_set("del model.opset_import[:]"), "no valid ONNX"),
    "only a foreign opset": (_opset(1, "acme"), "no valid ONNX"),
    "IR version of the future": (_set("model.ir_version = 999"), "no valid ONNX"),
    "unknown operator": (_operator("NoSuchThing"), "no valid ONNX"),
    "unknown domain": (_operator("Relu", "acme.example"), "bad.onnx"),
    "an input that nobody makes": (_set("model.graph.node[2].input[0] = 'ghost'"), "no valid ONNX"),
    "a name made twice": (_set("model.graph.node[1].output[0] = 'h'"), "no valid ONNX"),
    "no output": (_set("del model.graph.output[:]"), "bad.onnx"),
    "no graph": (_set("model.ClearField('graph')"), "bad.onnx"),
    "an output that nobody makes": (_set("model.graph.output[0].name = 'ghost'"), "bad.onnx"),
    "weights shorter than their shape": (_set("model.graph.initializer[0].raw_data = b'1234'"), "bad.onnx"),
    "a negative size": (_set("model.graph.initializer[0].dims[0] = -64"), "bad.onnx"),
    "a size beyond all memory": (_set("model.graph.initializer[0].dims[0] = 1 << 60"), "bad.onnx"),
    "sizes that do not fit": (_set("model.graph.initializer[1].dims[:] = [64, 96]"), "bad.onnx"),
    "an input that is a sequence": (
        _set("model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info('x', FLOAT, ['b', 64]))"),
        "bad.onnx",
    ),
    "no rank of an input": (_set("model.graph.input[0].type.tensor_type.ClearField('shape')"), "no valid ONNX"),
    "one name for all nodes": (
        _set("[setattr(node, 'name', 'same') for node in model.graph.node]"),
        "ONNX Runtime cannot load it",
    ),
    "no node": (_set("del model.graph.node[:]"), "bad.onnx"),
}
# Odd and right: every pass changes it or says why not.
ODD: dict[str, Callable[[Any], None]] = {
    "nothing odd": _set("pass"),
    "sizes without names": _set("model.graph.input[0].type.tensor_type.shape.dim[0].ClearField('dim_param')"),
    "no names of nodes": _set("[setattr(node, 'name', '') for node in model.graph.node]"),
    "an old opset": _set(
        "model.graph.node[4].CopyFrom(helper.make_node('Identity', ['s'], ['n'])); model.opset_import[0].version = 9"
    ),
    "not a number among the weights": _set(
        "model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full(64, np.nan, np.float32), 'gain'))"
    ),
    "infinite weights": _set(
        "model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.full(64, np.inf, np.float32), 'shift'))"
    ),
    "all weights zero": _set(
        "model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((64, 96), np.float32), 'up'))"
    ),
    "an input that is an output": _set("model.graph.output.append(model.graph.input[0])"),
    "an initializer that is an output": _set(
        "model.graph.output.append(helper.make_tensor_value_info('gain', FLOAT, [64]))"
    ),
    "an initializer that is an input": _set(
        "model.graph.input.append(helper.make_tensor_value_info('up', FLOAT, [64, 96]))"
    ),
    "an unread initializer": _set(
        "model.graph.initializer.append(numpy_helper.from_array(np.ones((9, 9), np.float32), 'spare'))"
    ),
    "metadata and doc strings": _set("model.doc_string = 'x'; model.metadata_props.add(key='k', value='v')"),
}


def outcomes(path: str, settings: dict[str, list[str]]) -> dict[str, str]:
    """In a child process: by pass, "changed", "declined: ...", "rolled back: ..." or "<class of error>: ..." """
    from edgeredux import isolated, one_pass
    from edgeredux.errors import EdgereduxError

    isolated.call = _here
    found = {}
    for row in one_pass.names():
        name, source = row["name"], Path(path)
        if row["format"] != source.suffix[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, f"out{source.suffix}")
            try:
                said = one_pass.run(name, source, out, settings.get(name, []), None, Path(folder, "log"))
                assert said["changed"] == out.exists()
                found[name] = "changed" if said["changed"] else said["why"]
            except EdgereduxError as problem:
                found[name] = f"{type(problem).__name__}: {problem}"
            except Exception as problem:  # what a user would see as a bug of ours
                where = traceback.extract_tb(problem.__traceback__)[-1]
                found[name] = f"TRACEBACK {type(problem).__name__}: {problem} ({where.filename}:{where.lineno})"
    return found


def forked(paths: list[str], settings: dict[str, list[str]], place: str) -> dict[str, Any]:
    """In a child process: `outcomes` of every path, each in a fork of its own; the signal's number where one died."""
    import json

    import onnxruntime  # noqa: F401 - loaded once, before the forks, as the passes' modules are

    from edgeredux import one_pass

    one_pass.names()
    found: dict[str, Any] = {}
    for number, path in enumerate(paths):
        told = Path(place, f"{number}.json")
        child = os.fork()
        if child == 0:
            try:
                told.write_text(json.dumps(outcomes(path, settings)))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        found[path] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else json.loads(told.read_text())
    return found


def _here(function: str, arguments: dict[str, Any], **_: Any) -> Any:
    import importlib
    import warnings

    module, _, name = function.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(module), name)(**arguments)
