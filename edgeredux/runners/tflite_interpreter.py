"""LiteRT interpreters as the runners need them: inputs by name, delegates counted, one-line errors.

Inputs are matched by the names of the file's signature ("serving_default" first where several fit), or, in a file
without signatures, by tensor names without the converter's "serving_default_" and ":0". Where no name matches and the
numbers agree, the feed's order is the file's input order; the shapes must fit all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeredux import delegates
from edgeredux.errors import ArtifactError, one_line
from edgeredux.runners.inputs import Port, fit, numbers
from edgeredux.seams import Feed

RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin_without_default_delegates": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


class Model:
    """A TFLite file in an interpreter. Raises ArtifactError on a file that cannot be loaded or prepared."""

    def __init__(self, path: Path, resolver: str, threads: int, feed: Feed) -> None:
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        self.path = path
        try:
            if resolver == "xnnpack" and (sparse := delegates.unguarded(str(path))):
                raise ArtifactError(
                    f"{path.name}: the XNNPACK delegate would read the sparse weights of {sparse} operators as dense "
                    "ones; set the target's resolver to builtin_without_default_delegates, or mend the file with "
                    "edgeredux passes run tflite_sparse_weights"
                )
            self.interpreter = Interpreter(
                model_path=str(path), num_threads=threads, experimental_op_resolver_type=RESOLVERS[resolver]
            )
            self.interpreter.allocate_tensors()
            if sparse := delegates.misread(self.interpreter):
                raise ArtifactError(
                    f"{path.name}: a delegate read the sparse weights of {sparse} operators as dense ones"
                )
        except (ValueError, RuntimeError) as problem:
            raise ArtifactError(one_line(f"{path.name}: LiteRT cannot load it: {problem}")) from problem
        self._signature = self._choose_signature(feed)
        if self._signature is not None:
            details_in = self._signature.get_input_details()
            details_out = self._signature.get_output_details()
        else:
            details_in = {clean(d["name"]): d for d in self.interpreter.get_input_details()}
            details_out = {clean(d["name"]): d for d in self.interpreter.get_output_details()}
        self._indices = {name: details["index"] for name, details in (*details_in.items(), *details_out.items())}
        place = [d["index"] for d in self.interpreter.get_input_details()]
        ordered = sorted(
            details_in, key=lambda name: place.index(self._indices[name]) if self._indices[name] in place else -1
        )
        self.inputs = [_port(name, details_in[name], path.name) for name in ordered]
        self.outputs = [_port(name, details, path.name) for name, details in details_out.items()]
        by_position = len(feed) == len(ordered) and not set(feed) & set(ordered)
        self._order: Sequence[str] | None = list(feed) if by_position else None
        self.matched_by = "position" if by_position else "name"

    def _choose_signature(self, feed: Feed) -> Any:
        signatures = self.interpreter.get_signature_list()
        if not signatures:
            return None
        keys = sorted(signatures, key=lambda key: (key != "serving_default", key))
        fitting = [key for key in keys if set(signatures[key]["inputs"]) <= set(feed)]
        return self.interpreter.get_signature_runner((fitting or keys)[0])

    def fit(self, feed: Feed) -> Feed:
        """The feed as the file's inputs want it."""
        return fit(feed, self.inputs, self.path.name, self._order)

    def run(self, feed: Feed) -> Feed:
        """Outputs by name as the numbers they mean, from a feed that `fit` made."""
        try:
            if self._signature is not None:
                return numbers(self._signature(**feed), self.outputs)
            for name, array in feed.items():
                if None in next(port.shape for port in self.inputs if port.name == name):
                    self.interpreter.resize_tensor_input(self._indices[name], array.shape)
            self.interpreter.allocate_tensors()
            for name, array in feed.items():
                self.interpreter.set_tensor(self._indices[name], array)
            self.interpreter.invoke()
            values = {port.name: self.interpreter.get_tensor(self._indices[port.name]) for port in self.outputs}
            return numbers(values, self.outputs)
        except (ValueError, RuntimeError) as problem:
            raise ArtifactError(one_line(f"{self.path.name}: LiteRT failed while running it: {problem}")) from problem

    def placement(self) -> tuple[list[str], list[str]]:
        """Kinds of the operators that delegates took, and of those left to the interpreter's own kernels."""
        taken, left = delegates.split(self.interpreter._get_ops_details())
        return [node["op_name"] for node in taken], [node["op_name"] for node in left]

    def sparse_weights(self) -> int:
        """How many tensors of the file are stored sparse."""
        return sum(bool(item.get("sparsity_parameters")) for item in self.interpreter.get_tensor_details())


def clean(name: str) -> str:
    """A tensor's name without what the converters put around it."""
    return name.removeprefix("serving_default_").removesuffix(":0")


def counted(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds with their numbers, most frequent first, e.g. ("MEAN x26", "GATHER_ND x1")."""
    return tuple(f"{kind} x{n}" for kind, n in sorted(Counter(kinds).items(), key=lambda item: (-item[1], item[0])))


def _port(name: str, details: Mapping[str, Any], where: str) -> Port:
    dtype = np.dtype(details["dtype"])
    if dtype.kind not in "biuf":
        raise ArtifactError(f"{where}: {name!r} is {dtype}; only arrays of numbers can be fed")
    signature = details.get("shape_signature")
    shape = signature if signature is not None and len(signature) == len(details["shape"]) else details["shape"]
    scale, zero_point = details["quantization"]
    return Port(name, dtype, tuple(None if n < 0 else int(n) for n in shape), float(scale), int(zero_point))
