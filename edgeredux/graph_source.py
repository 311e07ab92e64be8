"""The interface of a model that comes as a finished graph (.onnx or .tflite), read without executing it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import caching
from edgeredux.decoding import interface_with_cache
from edgeredux.errors import ArtifactError, ModelError, one_line
from edgeredux.model import Interface
from edgeredux.sources import Source

if TYPE_CHECKING:
    import numpy as np

_TOKEN_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


def interface(source: Source, max_length: int, sequence: int, scratch_log: Path) -> Interface:
    """The interface of a graph source. Runs in an isolated child: foreign files may crash their readers."""
    from edgeredux import isolated

    function = "edgeredux.graph_source:read_onnx" if source.kind == "onnx" else "edgeredux.graph_source:read_tflite"
    found = isolated.call(function, {"path": str(source.path)}, log=scratch_log, what=f"model {source.text}")
    inputs: dict[str, tuple[str, list[Any]]] = found["inputs"]
    outputs: dict[str, tuple[str, list[Any]]] = found["outputs"]
    assert source.path is not None
    shapes = [(name, shape) for name, (_, shape) in inputs.items()]
    cache = caching.of_inputs(iter(shapes), source.text) if source.kind == "onnx" else ()
    past = {"position_ids", *caching.past_shapes(cache)} if cache else set()
    tokenizer = _tokenizer(source.path.parent, source) if set(inputs) - past <= _TOKEN_INPUTS else None
    axes = {name: _axes(name, shape) for name, (_, shape) in [*inputs.items(), *outputs.items()]}
    examples = None
    if tokenizer is None:
        examples = {name: _example(name, kind, shape, sequence, found) for name, (kind, shape) in inputs.items()}
    read = Interface(
        name=source.path.stem,
        task=_task(outputs, text=tokenizer is not None),
        input_names=tuple(inputs),
        output_names=tuple(outputs),
        axes=axes,
        source=source.text,
        sha256=source.sha256,
        tokenizer=tokenizer,
        max_length=max_length,
        examples=examples,
    )
    return interface_with_cache(read, cache) if cache and tokenizer is not None else read


def read_onnx(path: str) -> dict[str, Any]:
    """Inputs and outputs {name: (numpy dtype, shape with ints and axis names)}, embedding row counts, `_compared`."""
    import google.protobuf.message
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(path, full_check=False)
    except (google.protobuf.message.DecodeError, onnx.checker.ValidationError, RuntimeError, OSError) as problem:
        raise ArtifactError(one_line(f"model {path}: no valid ONNX file: {problem}", 300)) from problem
    beside = Path(path).name + ".data"
    for item in (*tensors(model.graph), *(found for part in model.functions for found in _constants(part.node))):
        place = next((entry.value for entry in item.external_data if entry.key == "location"), beside)
        if place != beside:  # one file that travels with the graph, and no path out of its folder
            hint = f"save it anew with onnx.save(..., save_as_external_data=True, location={beside!r})"
            raise ArtifactError(one_line(f"model {path}: weights lie in {place!r}, allowed is {beside!r}; {hint}", 300))
    graph = model.graph
    stored = {item.name: list(item.dims) for item in graph.initializer}

    def describe(values: Any) -> dict[str, tuple[str, list[Any]]]:
        found = {}
        for value in values:
            if value.name in stored:
                continue
            if not value.type.HasField("tensor_type"):
                raise ArtifactError(f"model {path}: {value.name!r} is no tensor; only tensors can be fed")
            tensor = value.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim]
            found[value.name] = (onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
        return found

    rows = {n.input[1]: stored[n.input[0]][0] for n in graph.node if n.op_type == "Gather" and n.input[0] in stored}
    inputs, outputs = describe(graph.input), describe(graph.output)
    if not inputs or not outputs:
        raise ArtifactError(f"model {path}: the graph has no input or no output")
    return {"inputs": inputs, "outputs": outputs, "rows": rows, "compared": _compared(graph, set(inputs))}


def tensors(graph: Any) -> Iterator[Any]:
    """Every TensorProto of a GraphProto: initializers, what operators hold, and those of all subgraphs."""
    yield from graph.initializer
    for item in graph.sparse_initializer:
        yield from (item.values, item.indices)
    yield from _constants(graph.node)


def _constants(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for part in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors(part)


def _compared(graph: Any, inputs: set[str]) -> dict[str, list[int]]:
    """By input, the integers that an Equal of the main graph compares it with: each is another way through."""
    import onnx

    constants = {item.name: item for item in graph.initializer}
    constants |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    found: dict[str, list[int]] = {}
    for node in graph.node:
        for name, other in (tuple(node.input), tuple(node.input)[::-1]) if node.op_type == "Equal" else ():
            tensor = constants.get(other)
            if name in inputs and tensor is not None and tensor.data_location != onnx.TensorProto.EXTERNAL:
                array = onnx.numpy_helper.to_array(tensor)
                if array.dtype.kind in "iu" and array.size == 1:
                    found.setdefault(name, []).append(int(array.item()))
    return found


def read_tflite(path: str) -> dict[str, Any]:
    """As `read_onnx`, for a TFLite file: names of its first signature, or of its tensors."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as problem:
        raise ArtifactError("TFLite files need LiteRT: pip install 'edgeredux[tflite]'") from problem
    try:
        interpreter = Interpreter(model_path=path)
        signatures = interpreter.get_signature_list()
        if signatures:
            runner = interpreter.get_signature_runner(next(iter(signatures)))
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {item["name"]: item for item in interpreter.get_input_details()}
            outputs = {item["name"]: item for item in interpreter.get_output_details()}
    except (ValueError, RuntimeError) as problem:
        raise ArtifactError(one_line(f"model {path}: no valid TFLite file: {problem}", 300)) from problem

    def describe(values: Any) -> dict[str, tuple[str, list[Any]]]:
        return {name: (item["dtype"].__name__, [int(size) for size in item["shape"]]) for name, item in values.items()}

    return {"inputs": describe(inputs), "outputs": describe(outputs), "rows": {}}


def _tokenizer(folder: Path, source: Source) -> Any:
    if not (folder / "tokenizer.json").is_file():
        return None
    import transformers

    try:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    except Exception as problem:
        raise ModelError(one_line(f"model {source.text}: tokenizer.json cannot be read: {problem}")) from problem
    if tokenizer.pad_token is None:
        known = tokenizer.get_vocab()
        pad = next((name for name in ("[PAD]", "<pad>", "</s>", "<|endoftext|>") if name in known), None)
        if pad is None:
            raise ModelError(f"model {source.text}: tokenizer.json has no padding token ([PAD] or <pad>)")
        tokenizer.pad_token = pad
    return tokenizer


def _axes(name: str, shape: list[Any]) -> tuple[str | None, ...]:
    named: list[str | None] = []
    for index, size in enumerate(shape):
        if isinstance(size, int) and size > 0:
            named.append(None)
        elif index == 0:
            named.append("batch")
        elif name in _TOKEN_INPUTS or index == 1:
            named.append("sequence")
        else:
            named.append(str(size))
    return tuple(named)


def _example(name: str, kind: str, shape: list[Any], sequence: int, found: dict[str, Any]) -> np.ndarray[Any, Any]:
    sizes = [s if isinstance(s, int) and s > 0 else (1 if i == 0 else sequence) for i, s in enumerate(shape)]
    return example(name, kind, sizes, found["rows"])


def example(name: str, kind: str, sizes: list[int], rows: dict[str, int]) -> np.ndarray[Any, Any]:
    """A seeded array for an input of a graph; `rows`: how many rows the table has that an input of this name reads."""
    import numpy as np

    dtype = np.dtype(kind)
    generator = np.random.default_rng(0)
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(sizes).astype(dtype)
    if dtype == np.bool_:
        return np.ones(sizes, dtype)
    if "mask" in name:
        return np.ones(sizes, dtype)
    top = int(rows.get(name, 2))
    info = np.iinfo(dtype)
    if top == 2 and dtype.itemsize == 1:  # quantised pixels or samples: the whole range
        return generator.integers(info.min, info.max, sizes, endpoint=True).astype(dtype)
    return generator.integers(0, top, sizes).astype(dtype)


def _task(outputs: dict[str, tuple[str, list[Any]]], *, text: bool) -> Any:
    if text and "last_hidden_state" in outputs:
        return "embedding"
    if text and "logits" in outputs:
        return "causal-lm" if len(outputs["logits"][1]) == 3 else "classification"
    return "generic"
