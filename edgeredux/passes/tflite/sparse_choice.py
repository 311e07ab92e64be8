"""For each weight: the sparse kernel, sparse storage alone, or as it is, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeredux.passes.tflite import sparse_cost
from edgeredux.passes.tflite.sparse_cost import Resolver
from edgeredux.passes.tflite.sparse_encoding import Encoded, encode
from edgeredux.passes.tflite.sparse_graph import Weight

Form = Literal["kernel", "expand", "dense"]
_STORED = (1, 4, 16)  # block widths tried where the weight is expanded at load
_OPERATOR_BYTES = 400  # of a DENSIFY operator with its tensors in the file
_LEDGER = 255  # the kernel of int8 weights and float inputs counts and numbers blocks in bytes, and does not say so


@dataclass(frozen=True)
class Rules:
    """From what on a form pays: expected times faster, share of the bytes saved."""

    minimum_gain: float
    minimum_saving: float
    expand: bool
    resolver: Resolver = "xnnpack"  # whose dense kernels the sparse ones have to beat
    threads: int = 1  # that the file will be run with


@dataclass(frozen=True)
class Choice:
    """What becomes of a weight. `gain` is the expected time of dense over sparse, None where no kernel fits."""

    weight: Weight
    form: Form
    reason: str
    encoded: Encoded | None = None
    gain: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For the artifact's history."""
        said: dict[str, Any] = {
            "name": self.weight.name,
            "operator": self.weight.operator,
            "dtype": str(self.weight.values.dtype),
            "shape": list(self.weight.values.shape),
            "zeros": round(self.weight.zeros, 4),
            "form": self.form,
            "why": self.reason,
            "bytes_before": self.weight.values.nbytes,
        }
        if self.encoded is not None:
            said |= {"block": self.encoded.block, "bytes_after": self.encoded.size_bytes}
        if self.gain is not None:
            said["expected_gain"] = round(self.gain, 2)
        return said


def choose(weights: Sequence[Weight], rules: Rules) -> list[Choice]:
    """One Choice a weight, in order."""
    total = sum(weight.values.nbytes for weight in weights)
    return [_choose(weight, rules, total) for weight in weights]


def _choose(weight: Weight, rules: Rules, model_bytes: int) -> Choice:
    if weight.refused is not None:
        return Choice(weight, "dense", weight.refused)
    if not weight.values.size or weight.zeros == 0:
        return Choice(weight, "dense", "without zeros")
    best, gain, why = _kernel(weight, model_bytes, rules)
    if best is not None and gain is not None and gain >= rules.minimum_gain:
        return Choice(weight, "kernel", f"the sparse kernel is expected to take 1/{gain:.2f} of the time", best, gain)
    if best is not None and gain is not None:
        why = f"the sparse kernel would gain less than {rules.minimum_gain:g}x"
    if not rules.expand or weight.no_expand is not None:
        return Choice(weight, "dense", why if not rules.expand else f"{why}, and {weight.no_expand}", None, gain)
    columns = weight.values.shape[-1]
    smallest = min((encode(weight.values, b) for b in _STORED if columns % b == 0), key=lambda e: e.size_bytes)
    saved = 1 - (smallest.size_bytes + _OPERATOR_BYTES) / weight.values.nbytes
    if saved < rules.minimum_saving:
        least = f"would save less than {rules.minimum_saving:.0%} of their bytes"
        return Choice(weight, "dense", f"{least}, and {why}", None, gain)
    return Choice(weight, "expand", f"saves {saved:.0%} of its bytes; {why}", smallest, gain)


def _kernel(weight: Weight, model_bytes: int, rules: Rules) -> tuple[Encoded | None, float | None, str]:
    """The encoding with the fastest kernel and its expected gain; or why there is none."""
    if weight.kind is None:
        return None, None, weight.no_kernel
    rows, columns = weight.values.shape
    layer = sparse_cost.Layer(weight.kind, rows, columns, weight.positions, model_bytes, rules.threads)
    found: list[tuple[float, Encoded]] = []
    why = f"no sparse kernel takes a width that is no multiple of {min(sparse_cost.blocks(weight.kind))}"
    for block in sparse_cost.blocks(weight.kind):
        if columns % block:
            continue
        encoded = encode(weight.values, block)
        if weight.kind == "int8-dynamic" and (columns // block > _LEDGER + 1 or encoded.fullest_row > _LEDGER):
            why = "its rows are too long for the sparse kernel, which numbers blocks in bytes"
            continue
        found.append((layer.sparse_us(block, encoded.kept, encoded.size_bytes), encoded))
    if not found:
        return None, None, why
    expected, best = min(found, key=lambda item: item[0])
    return best, layer.dense_us(rules.resolver) / expected, ""
