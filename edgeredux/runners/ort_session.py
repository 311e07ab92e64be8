"""ONNX Runtime sessions as the runners need them: a provider that must stay, checked inputs, one-line errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeredux.errors import ArtifactError, one_line
from edgeredux.runners.inputs import Port
from edgeredux.seams import Feed

CPU = "CPUExecutionProvider"
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_DTYPES = {
    f"tensor({name})": dtype
    for name, dtype in {
        "float": "float32",
        "double": "float64",
        "float16": "float16",
        "bool": "bool",
        **{kind: kind for kind in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")},
    }.items()
}


def session_options(threads: int, level: str) -> ort.SessionOptions:
    """Options with this many threads and nothing left to chance."""
    wanted = ort.SessionOptions()
    wanted.graph_optimization_level = LEVELS[level]
    wanted.intra_op_num_threads = threads
    wanted.inter_op_num_threads = 1
    wanted.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    wanted.log_severity_level = 3
    # Threads of a session spin for a while after its run. With several sessions interleaved they would take the cores
    # from the next one: twice the latency was seen on two cores.
    wanted.add_session_config_entry("session.force_spinning_stop", "1")
    return wanted


def load(path: Path, create: Callable[[], ort.InferenceSession]) -> ort.InferenceSession:
    """What `create` makes of the file. Raises ArtifactError, one line, on a file that cannot be loaded."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    try:
        return create()
    except Exception as problem:  # ONNX Runtime raises a dozen classes of its own
        raise ArtifactError(one_line(f"{path.name}: ONNX Runtime cannot load it: {problem}")) from problem


def cpu_session(path: Path, threads: int, level: str, profile_to: Path | None = None) -> ort.InferenceSession:
    """A session on the CPU provider alone. Raises ArtifactError when the file cannot be loaded there."""
    wanted = session_options(threads, level)
    if profile_to is not None:
        wanted.enable_profiling = True
        wanted.profile_file_prefix = str(profile_to)
    session = load(path, lambda: ort.InferenceSession(str(path), wanted, providers=[CPU]))
    session.disable_fallback()
    if session.get_providers() != [CPU]:
        raise ArtifactError(f"{path.name}: asked for {CPU}, got {', '.join(session.get_providers())}")
    return session


def ports(nodes: Iterable[Any], where: str) -> list[Port]:
    """The inputs or outputs of a session. Raises ArtifactError on types that no NumPy array holds."""
    found = []
    for node in nodes:
        if node.type not in _DTYPES:
            raise ArtifactError(f"{where}: {node.name!r} is {node.type}; only arrays of numbers can be fed")
        shape = tuple(n if isinstance(n, int) and n >= 0 else None for n in node.shape or ())
        found.append(Port(node.name, np.dtype(_DTYPES[node.type]), shape))
    return found


def run(session: ort.InferenceSession, feed: Mapping[str, Any], where: str) -> Feed:
    """Outputs by name. Raises ArtifactError when the model fails on the input."""
    names = [output.name for output in session.get_outputs()]
    try:
        values = session.run(names, dict(feed))
    except Exception as problem:
        raise ArtifactError(one_line(f"{where}: ONNX Runtime failed while running it: {problem}")) from problem
    return dict(zip(names, values, strict=True))
