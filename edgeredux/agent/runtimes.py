"""Whichever runtime the device has: ONNX Runtime for .onnx; ai_edge_litert or else tflite_runtime for .tflite."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_CPU = "CPUExecutionProvider"
_RESOLVERS = {
    "xnnpack": "AUTO",
    "builtin_without_default_delegates": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
_LEVELS = {"all": "ENABLE_ALL", "extended": "ENABLE_EXTENDED", "basic": "ENABLE_BASIC", "none": "DISABLE_ALL"}


class Unusable(Exception):
    """The job cannot be done, in one line. `kind`: artifact, runtime (none there), crashed or no_space."""

    def __init__(self, message: str, kind: str = "artifact") -> None:
        super().__init__(" ".join(message.split())[:500])
        self.kind = kind


class Loaded(NamedTuple):
    """A file ready to run: `fit` makes a feed fit its inputs, `run` gives outputs by name as the numbers they mean."""

    fit: Callable[[dict[str, Any]], dict[str, Any]]
    run: Callable[[dict[str, Any]], dict[str, Any]]


class Port(NamedTuple):
    """An input or output. A length of None is any; `scale` is 0 where nothing is quantised."""

    name: str
    dtype: Any
    shape: list[int | None]
    scale: float = 0.0
    zero: int = 0


def _onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as problem:
        raise Unusable(f"no ONNX Runtime there ({problem}): pip install onnxruntime", "runtime") from problem


def _interpreter() -> tuple[str, Any]:
    reasons = []
    for package in ("ai_edge_litert", "tflite_runtime"):
        try:
            return package, importlib.import_module(package + ".interpreter")
        except ImportError as problem:
            reasons.append(str(problem))
    raise Unusable("no LiteRT there ({}): pip install ai-edge-litert".format("; ".join(reasons)), "runtime")


def runtime_for(path: Path) -> str:
    """Import the file's runtime and say which it is."""
    if path.suffix == ".onnx":
        return f"ONNX Runtime {_onnxruntime().__version__} {_CPU}"
    package, _ = _interpreter()
    version = getattr(importlib.import_module(package), "__version__", "of unknown version")
    return "{} {}".format({"ai_edge_litert": "LiteRT", "tflite_runtime": "tflite-runtime"}[package], version)


def load(path: Path, threads: int, options: dict[str, Any]) -> Loaded:
    """Raises Unusable on a file that its runtime does not take."""
    return _load_onnx(path, threads, options) if path.suffix == ".onnx" else _load_tflite(path, threads, options)


def _session(path: Path, threads: int, options: dict[str, Any], trace: Path | None = None) -> Any:
    ort = _onnxruntime()
    wanted = ort.SessionOptions()
    wanted.graph_optimization_level = getattr(ort.GraphOptimizationLevel, "ORT_" + _LEVELS[options["optimization"]])
    wanted.intra_op_num_threads = threads
    wanted.inter_op_num_threads = 1
    wanted.log_severity_level = 3
    # Threads that spin after a run would take the cores from the file that is timed next.
    wanted.add_session_config_entry("session.force_spinning_stop", "1")
    if trace is not None:
        wanted.enable_profiling = True
        wanted.profile_file_prefix = str(trace)
    try:
        return ort.InferenceSession(str(path), wanted, providers=[_CPU])
    except Exception as problem:  # ONNX Runtime raises a dozen classes of its own
        raise Unusable(f"{path.name}: ONNX Runtime cannot load it: {problem}") from problem


def _load_onnx(path: Path, threads: int, options: dict[str, Any]) -> Loaded:
    session = _session(path, threads, options)
    ports = [_onnx_port(node, path.name) for node in session.get_inputs()]
    names = [node.name for node in session.get_outputs()]

    def run(feed: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(zip(names, session.run(names, feed)))
        except Exception as problem:
            raise Unusable(f"{path.name}: ONNX Runtime failed while running it: {problem}") from problem

    return Loaded(lambda feed: fit(feed, ports, path.name), run)


def _onnx_port(node: Any, where: str) -> Port:
    import numpy as np

    kinds = {"float": "float32", "double": "float64"}
    kind = node.type[len("tensor(") : -1]
    try:
        dtype = np.dtype(kinds.get(kind, kind))
    except TypeError:
        raise Unusable(f"{where}: {node.name!r} is {node.type}; only arrays of numbers can be fed") from None
    return Port(node.name, dtype, [n if isinstance(n, int) and n >= 0 else None for n in node.shape or ()])


def _interpret(path: Path, threads: int, options: dict[str, Any]) -> Any:
    """The interpreter, its tensors allocated. Raises Unusable where a delegate would misread sparse weights."""
    from edgeredux import delegates

    _, module = _interpreter()
    resolver = getattr(module.OpResolverType, _RESOLVERS[options["resolver"]])
    try:
        misread = delegates.unguarded(str(path), module) if options["resolver"] == "xnnpack" else 0
        if not misread:
            interpreter = module.Interpreter(
                model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver
            )
            interpreter.allocate_tensors()
            misread = delegates.misread(interpreter)
    except (ValueError, RuntimeError) as problem:
        raise Unusable(f"{path.name}: LiteRT cannot load it: {problem}") from problem
    if misread:
        raise Unusable(
            f"{path.name}: the XNNPACK delegate would read the sparse weights of {misread} operators as dense ones; "
            "set the target's resolver to builtin_without_default_delegates, or mend the file with edgeredux passes "
            "run tflite_sparse_weights"
        )
    return interpreter


def _load_tflite(path: Path, threads: int, options: dict[str, Any]) -> Loaded:
    interpreter = _interpret(path, threads, options)
    try:
        signatures = interpreter.get_signature_list()
        runner = interpreter.get_signature_runner(sorted(signatures, key=_default_first)[0]) if signatures else None
    except (ValueError, RuntimeError) as problem:
        raise Unusable(f"{path.name}: LiteRT cannot load it: {problem}") from problem
    if runner is not None:
        given, made = runner.get_input_details(), runner.get_output_details()
    else:
        given = {_clean(item["name"]): item for item in interpreter.get_input_details()}
        made = {_clean(item["name"]): item for item in interpreter.get_output_details()}
    ports = [_tflite_port(name, item) for name, item in given.items()]
    outputs = [_tflite_port(name, item) for name, item in made.items()]

    def run(feed: dict[str, Any]) -> dict[str, Any]:
        try:
            if runner is not None:
                found = runner(**feed)
            else:
                for name, array in feed.items():
                    interpreter.set_tensor(given[name]["index"], array)
                interpreter.invoke()
                found = {name: interpreter.get_tensor(item["index"]) for name, item in made.items()}
        except (ValueError, RuntimeError) as problem:
            raise Unusable(f"{path.name}: LiteRT failed while running it: {problem}") from problem
        return {port.name: _meant(found[port.name], port) for port in outputs}

    return Loaded(lambda feed: fit(feed, ports, path.name), run)


def _default_first(key: str) -> tuple[bool, str]:
    return key != "serving_default", key


def _clean(name: str) -> str:
    name = name[len("serving_default_") :] if name.startswith("serving_default_") else name
    return name[:-2] if name.endswith(":0") else name


def _tflite_port(name: str, item: dict[str, Any]) -> Port:
    import numpy as np

    shape = item.get("shape_signature")
    shape = shape if shape is not None and len(shape) == len(item["shape"]) else item["shape"]
    scale, zero = item["quantization"]
    return Port(name, np.dtype(item["dtype"]), [int(n) if n >= 0 else None for n in shape], float(scale), int(zero))


def _meant(array: Any, port: Port) -> Any:
    if port.scale > 0 and array.dtype.kind in "iu":
        return ((array.astype("float64") - port.zero) * port.scale).astype("float32")
    return array


def fit(feed: dict[str, Any], ports: list[Port], where: str) -> dict[str, Any]:
    """The feed's arrays as the inputs want them. Raises Unusable instead of changing a value."""
    import numpy as np

    fitted = {}
    for port in ports:
        if port.name not in feed:
            raise Unusable("{}: nothing to feed input {!r}. There is: {}".format(where, port.name, ", ".join(feed)))
        array = feed[port.name]
        wanted = [have if want is None else want for want, have in zip(port.shape, array.shape)]
        if len(port.shape) != array.ndim or wanted != list(array.shape):
            raise Unusable(f"{where}: input {port.name!r} takes {port.shape}, not {list(array.shape)}")
        if port.scale > 0 and port.dtype.kind in "iu" and array.dtype.kind == "f":
            limits = np.iinfo(port.dtype)
            levels = np.rint(array.astype("float64") / port.scale) + port.zero
            fitted[port.name] = np.clip(levels, limits.min, limits.max).astype(port.dtype)
            continue
        cast = np.ascontiguousarray(array.astype(port.dtype))
        if port.dtype.kind in "iub" and not np.array_equal(cast, array):
            raise Unusable(f"{where}: input {port.name!r} is {port.dtype}; its values do not fit")
        fitted[port.name] = cast
    return fitted


def placement(path: Path, threads: int, options: dict[str, Any], feed: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Operators by who ran them. For ONNX counted in the profile of one run; elsewhere than on the CPU is an error."""
    if path.suffix != ".onnx":
        return _tflite_placement(path, threads, options)
    session = _session(path, threads, options, scratch / "trace")
    ports = [_onnx_port(node, path.name) for node in session.get_inputs()]
    session.run(None, fit(feed, ports, path.name))
    trace = Path(session.end_profiling())
    events = json.loads(trace.read_text(encoding="utf-8"))
    trace.unlink()
    ran = {}
    for event in events:
        said = event.get("args", {})
        if event.get("cat") == "Node" and said.get("provider"):
            ran[event["name"]] = (said["provider"], said["op_name"])
    providers = Counter(provider for provider, _ in ran.values())
    if set(providers) != {_CPU}:
        raise Unusable("{}: operators ran on {}, not on {} alone".format(path.name, dict(providers) or "nothing", _CPU))
    return {"placement": dict(providers), "operators": dict(sorted(Counter(kind for _, kind in ran.values()).items()))}


def _tflite_placement(path: Path, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    from edgeredux import delegates

    taken, left = delegates.split(_interpret(path, threads, options)._get_ops_details())
    if options["resolver"] == "xnnpack" and not taken:
        raise Unusable(
            f"{path.name}: the XNNPACK delegate took none of {len(left)} operators; set resolver to "
            "builtin_without_default_delegates if that is wanted"
        )
    if options["resolver"] != "xnnpack" and taken:
        raise Unusable(f"{path.name}: a delegate took {len(taken)} operators, resolver is {options['resolver']}")
    kinds = Counter(node["op_name"] for node in left)
    found = {"XNNPACK": len(taken)} if taken else {}
    if left:
        found["reference" if options["resolver"] == "reference" else "built-in"] = len(left)
    fell = [f"{kind} x{n}" for kind, n in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))]
    return {"placement": found, "fallbacks": fell if options["resolver"] == "xnnpack" else []}
