"""Outputs of a model file under its reference runtime on this machine: ONNX Runtime's CPU provider, or LiteRT.

Runs in an isolated child: a hostile or unsupported file may crash its runtime, and that is one line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeredux import isolated
from edgeredux.errors import ArtifactError, one_line
from edgeredux.seams import Feed


def execute(path: Path, feeds: Sequence[Feed], *, log: Path, threads: int = 1) -> list[Feed]:
    """One Feed of outputs by name per feed, quantised ones as real numbers.

    Raises ArtifactError when the file cannot be read or executed.
    """
    function = "run_onnx" if path.suffix == ".onnx" else "run_tflite"
    arguments = {"path": str(path), "feeds": list(feeds), "threads": threads}
    outputs: list[Feed] = isolated.call(f"edgeredux.execute:{function}", arguments, log=log, what=path.name)
    return outputs


def onnx_session(path: Path, threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU. Raises ArtifactError when the file cannot be loaded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime raises a dozen classes of its own
        raise ArtifactError(one_line(f"{path.name}: ONNX Runtime cannot load it: {problem}", 300)) from problem


def run_onnx(path: str, feeds: Sequence[Feed], threads: int) -> list[Feed]:
    """The child's part for ONNX: default optimisations, CPU provider only. Inputs the graph lacks are left out."""
    session = onnx_session(Path(path), threads)
    wanted = {item.name for item in session.get_inputs()}
    names = [item.name for item in session.get_outputs()]
    found: list[Feed] = []
    for feed in feeds:
        try:
            values = session.run(names, {name: value for name, value in feed.items() if name in wanted})
        except Exception as problem:
            raise ArtifactError(one_line(f"{Path(path).name}: cannot be executed: {problem}", 300)) from problem
        found.append(dict(zip(names, values, strict=True)))
    return found


def run_tflite(path: str, feeds: Sequence[Feed], threads: int) -> list[Feed]:
    """The child's part for TFLite: the first signature by name, or tensors by name where there is none."""
    from edgeredux.delegates import reference_interpreter

    try:
        interpreter = reference_interpreter(path, threads)
    except (ValueError, RuntimeError) as problem:
        raise ArtifactError(one_line(f"{Path(path).name}: LiteRT cannot load it: {problem}", 300)) from problem
    call = call_tflite(interpreter)
    try:
        return [call(feed) for feed in feeds]
    except (ValueError, RuntimeError, KeyError) as problem:
        raise ArtifactError(one_line(f"{Path(path).name}: cannot be executed: {problem}", 300)) from problem


def call_tflite(interpreter: Any) -> Any:
    """A function from a Feed to a Feed, quantised outputs as real numbers; the interpreter's tensors are allocated."""
    return _signature(interpreter) if interpreter.get_signature_list() else _tensors(interpreter)


def _signature(interpreter: Any) -> Any:
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    inputs, outputs = runner.get_input_details(), runner.get_output_details()

    def call(feed: Feed) -> Feed:
        found = runner(**{name: _stored(feed[name], item) for name, item in inputs.items()})
        return {name: _real(value, outputs[name]) for name, value in found.items()}

    return call


def _tensors(interpreter: Any) -> Any:
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def call(feed: Feed) -> Feed:
        for item in inputs:
            interpreter.set_tensor(item["index"], _stored(feed[item["name"]], item))
        interpreter.invoke()
        return {item["name"]: _real(interpreter.get_tensor(item["index"]), item) for item in outputs}

    return call


def _stored(value: Any, item: Any) -> Any:
    """A feed's values as the tensor holds them: real numbers become integers where the tensor has a scale."""
    import numpy as np

    scale, zero = item["quantization"]
    if not scale or value.dtype.kind != "f":
        return value.astype(item["dtype"])
    limits = np.iinfo(item["dtype"])
    return np.clip(np.rint(value / scale) + zero, limits.min, limits.max).astype(item["dtype"])


def _real(value: Any, item: Any) -> Any:
    """A tensor's values as real numbers: integers with a scale mean (integer - zero point) * scale."""
    import numpy as np

    scale, zero = item["quantization"]
    if not scale or value.dtype.kind == "f":
        return value
    return ((value.astype(np.float64) - zero) * scale).astype(np.float32)
