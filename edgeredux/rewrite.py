"""The pass list, file to file: every pass proves that it kept the function, or its file is thrown away.

A pass runs in a child process (third-party optimisers print, leak and crash). Its file ships only when the file is
well formed and its outputs agree, by the pass's own tolerance, with those of the file it was made from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeredux import isolated
from edgeredux.artifact import Artifact, Change
from edgeredux.errors import ArtifactError, InternalError, one_line
from edgeredux.execute import execute
from edgeredux.narrowing import Interface, narrow
from edgeredux.parity import compare, token_masks
from edgeredux.seams import Feed, Pass, PassContext, Progress, silent

# Constants of more elements say no shape, axis or size.
_SHAPE_ELEMENTS = 4096
# Larger files are not run to learn their shapes: that takes their weights into memory a second time.
_RUN_BYTES = 256 << 20


def rewrite(
    artifact: Artifact,
    passes: Sequence[tuple[str, Pass]],
    context: PassContext,
    feeds: Sequence[Feed],
    folder: Path,
    progress: Progress = silent,
) -> Artifact:
    """The artifact after all passes, in order, each file kept as `folder`/"NN-<pass>.<format>".

    One Change a pass joins the history. Its details: `seconds`, `bytes_before`, `bytes_after`, `operators_before`,
    `operators_after`, `macs_before`, `macs_after` (multiply-accumulates of the first feed, or {"missing": why}),
    and for a pass that changed something `file` (the kept file's name) and `parity` (against the file before this pass,
    on `feeds`, padding left out where a feed has an "attention_mask"). A pass whose file is malformed or disagrees is
    rolled back: changed=False, why="rolled back: ...", `rolled_back` true.
    A pass whose details hold `interface` made inputs and outputs narrower (a cache with fewer heads): the feeds are cut
    the same way for what follows, and parity is that of the positions that stay.
    `parity` of the answer: {"passed", "worst": {"pass", "mean_cosine", "max_abs"}, "export", "passes": {name: parity}}.

    Raises ArtifactError when the artifact itself cannot be read or executed, InternalError when a pass claims a change
    without writing a file.
    """
    if not passes:
        return artifact
    current = artifact
    proven: dict[str, dict[str, Any]] = {}
    outputs = execute(artifact.path, feeds, log=context.log, threads=context.threads)
    for index, (name, step) in enumerate(passes):
        progress(f"pass {index + 1}/{len(passes)} {name}", index, len(passes))
        if step.format != artifact.format:
            raise ArtifactError(f"pass {name}: it rewrites {step.format} files, {artifact.name} is {artifact.format}")
        out = folder / f"{index + 1:02d}-{name}.{artifact.format}"
        change, made = _apply(name, step, current, out, context, feeds, outputs)
        if interface := change.details.get("interface") if made is not None else None:
            feeds = narrow(feeds, interface)
            context = replace(context, calibration=narrow(context.calibration, interface))
        if made is None:
            _remove(out)
            current = replace(current, history=(*current.history, change))
        else:
            outputs = made
            current = current.after(out, change)
            proven[_unique(name, proven)] = change.details["parity"]
    progress("passes", len(passes), len(passes))
    parity = {
        "passed": bool(artifact.parity.get("passed")),
        "worst": worst(proven),
        "export": artifact.parity,
        "passes": proven,
    }
    return replace(current, parity=parity)


def worst(proven: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The pass that turned the outputs most (lowest mean cosine): {"pass", "mean_cosine", "max_abs"}."""
    if not proven:
        return {}
    name = min(proven, key=lambda name: proven[name]["mean_cosine"])
    return {"pass": name, "mean_cosine": proven[name]["mean_cosine"], "max_abs": proven[name]["max_abs"]}


def _apply(
    name: str,
    step: Pass,
    current: Artifact,
    out: Path,
    context: PassContext,
    feeds: Sequence[Feed],
    outputs: Sequence[Feed],
) -> tuple[Change, list[Feed] | None]:
    """The pass's line of history and the new file's outputs; None where the file before it stays."""
    started = time.monotonic()
    shapes = {name: tuple(value.shape) for name, value in feeds[0].items()} if feeds else {}
    arguments = {"step": step, "source": current.path, "out": out, "context": context, "shapes": shapes}
    answer: dict[str, Any] = isolated.call(
        "edgeredux.rewrite:run_pass", arguments, log=context.log, what=f"pass {name} on {current.path.name}"
    )
    said: Change = answer["change"]
    details: dict[str, Any] = {
        **said.details,
        "bytes_before": current.size_bytes,
        "bytes_after": current.size_bytes,
        "operators_before": answer["operators_before"],
        "operators_after": answer["operators_before"],
        "macs_before": answer["macs_before"],
        "macs_after": answer["macs_before"],
    }

    def line(changed: bool, why: str, **more: Any) -> Change:
        return Change(name, changed, why, {**details, **more, "seconds": round(time.monotonic() - started, 2)})

    def rolled_back(why: str, **more: Any) -> tuple[Change, None]:
        return line(False, f"rolled back: {why}", rolled_back=True, **more), None

    if not said.changed:
        return line(False, said.why), None
    if not out.is_file():
        raise InternalError(f"pass {name}: it says that it changed {current.path.name} but wrote no file")
    if answer["malformed"] is not None:
        return rolled_back(f"its file is malformed: {answer['malformed']}")
    interface = said.details.get("interface", {})
    feeds, outputs = narrow(feeds, interface), narrow(outputs, interface)
    try:
        made = execute(out, feeds, log=context.log, threads=context.threads)
    except ArtifactError as problem:
        return rolled_back(f"its file does not run: {problem}")
    parity = compare(outputs, made, step.tolerance, token_masks(feeds))
    if not parity["passed"]:
        return rolled_back(f"the function changed: {parity['reason']}", parity=parity)
    new = Artifact.of(out, current.name, current.role)
    details |= {"bytes_after": new.size_bytes, "file": out.name}
    details |= {name: answer[name] for name in ("operators_after", "macs_after")}
    return line(True, said.why, parity=parity), made


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    found, count = name, 2
    while found in taken:
        found, count = f"{name}-{count}", count + 1
    return found


def _remove(out: Path) -> None:
    for path in (out, out.with_name(out.name + ".data")):
        path.unlink(missing_ok=True)


def run_pass(
    step: Pass, source: Path, out: Path, context: PassContext, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """In the child: "change", "malformed" (None or one line), and operators and MACs (of inputs of these shapes, by
    name; None: the file's own) before and after.
    """
    shapes = shapes or {}
    before, macs_before = operators(source), macs(source, shapes)
    try:
        change = step.run(source, out, context)
    finally:
        _no_litter(source)
    answer: dict[str, Any] = {"change": change, "malformed": None}
    answer |= {"operators_before": before, "operators_after": before}
    answer |= {"macs_before": macs_before, "macs_after": macs_before}
    if change.changed and out.is_file():
        answer["malformed"] = malformed(source, out)
        if answer["malformed"] is None:
            narrower = _narrower(shapes, change.details.get("interface", {}))
            answer |= {"operators_after": operators(out), "macs_after": macs(out, narrower)}
    return answer


def macs(path: Path, shapes: Mapping[str, Sequence[int]]) -> int | dict[str, str]:
    """Multiply-accumulates of one run on inputs of these shapes; {"missing": why} where they cannot be told."""
    from edgeredux.prediction import onnx_graph, tflite_graph
    from edgeredux.prediction.operators import total_macs

    small = Artifact.of(path, path.stem, "reduced").size_bytes <= _RUN_BYTES
    try:
        found = tflite_graph.operators(path) if path.suffix == ".tflite" else onnx_graph.operators(path, shapes, small)
        return round(total_macs(found))
    except Exception as problem:  # a count is no part of the pass: a graph that the count is not made for has none
        return {"missing": one_line(f"multiply-accumulates cannot be counted: {problem}", 200)}


def _narrower(shapes: Mapping[str, Sequence[int]], interface: Interface) -> dict[str, list[int]]:
    """The shapes of the inputs that stay, as `narrow` cuts the arrays."""
    found = {name: list(shape) for name, shape in shapes.items()}
    for name, axes in interface.items():
        for axis, places in axes.items() if name in found else ():
            found[name][int(axis)] = len(places)
    return found


def _no_litter(source: Path) -> None:
    """Refuse a pass that leaves files beside its input, which may be the user's folder."""
    # ONNX Runtime's tools write "<name>-inferred.onnx" and "<name>-opt.onnx" there when given a path.
    for litter in source.parent.glob(f"{source.stem}-*{source.suffix}"):
        if litter.stem.removeprefix(source.stem) in ("-inferred", "-opt", "-quant-opt"):
            raise InternalError(f"a pass left {litter.name} beside its input")


def malformed(source: Path, out: Path) -> str | None:
    """Why `out` is no well-formed model file, in one line; None when it is one, or when `source` is none either.

    ONNX: onnx.checker with full_check, which runs strict shape inference. TFLite files are checked by executing them.
    """
    if out.suffix != ".onnx":
        return None
    found = _check_onnx(out)
    return None if found is None or _check_onnx(source) is not None else found


def _check_onnx(path: Path) -> str | None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as problem:  # the checker raises its own, protobuf's and the shape inference's errors
        return one_line(problem, 300) if not _sparse(path) else _check_sparse(path)
    return None


def _sparse(path: Path) -> bool:
    import onnx

    try:
        return bool(onnx.load(str(path), load_external_data=False).graph.sparse_initializer)
    except Exception:  # what cannot be read was found malformed already
        return False


def _check_sparse(path: Path) -> str | None:
    """As `_check_onnx`; shape inference knows no sparse initializers, so that it sees dense ones.

    It wants the content of small ones alone, which say shapes; of large ones it gets type and shape.
    """
    import numpy as np
    import onnx

    def dense_of(item: Any) -> Any:
        values = onnx.numpy_helper.to_array(item.values)
        made = np.zeros(list(item.dims), values.dtype)
        np.put(made, onnx.numpy_helper.to_array(item.indices), values)
        return made

    try:
        onnx.checker.check_model(str(path), full_check=False)
        model = onnx.load(str(path), load_external_data=False)
        graph, fed = model.graph, {item.name for item in model.graph.input}
        sparse, stored = list(graph.sparse_initializer), [item for item in graph.initializer if item.name not in fed]
        del graph.sparse_initializer[:]
        del graph.initializer[:]
        for item in (*sparse, *stored):
            is_sparse = isinstance(item, onnx.SparseTensorProto)
            values = item.values if is_sparse else item
            if math.prod(item.dims) > _SHAPE_ELEMENTS:
                info = onnx.helper.make_tensor_value_info(values.name, values.data_type, list(item.dims))
                graph.input.append(info)
            else:
                array = dense_of(item) if is_sparse else onnx.numpy_helper.to_array(item, str(path.parent))
                graph.initializer.append(onnx.numpy_helper.from_array(array, values.name))
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as problem:  # as above
        return one_line(problem, 300)
    return None


def operators(path: Path) -> int:
    """The number of operators of a model file, subgraphs included. Raises ArtifactError when it cannot be read."""
    return _onnx_operators(path) if path.suffix == ".onnx" else _tflite_operators(path)


def _onnx_operators(path: Path) -> int:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as problem:
        raise ArtifactError(one_line(f"{path.name}: no ONNX file: {problem}", 300)) from problem

    def count(graph: Any) -> int:
        found = len(graph.node)
        for node in graph.node:
            for attribute in node.attribute:
                found += count(attribute.g) if attribute.HasField("g") else 0
                found += sum(count(part) for part in attribute.graphs)
        return found

    return count(model.graph) + sum(len(function.node) for function in model.functions)


def _tflite_operators(path: Path) -> int:
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.Model.GetRootAs(path.read_bytes(), 0)
        return sum(model.Subgraphs(index).OperatorsLength() for index in range(model.SubgraphsLength()))
    except Exception as problem:  # flatbuffers raises whatever the damaged offsets lead to
        raise ArtifactError(one_line(f"{path.name}: no TFLite file: {problem}", 300)) from problem
