"""What a model asks of a device, by resource: the sums that the roofline's coefficients are multiplied with.

A style says how a class of hardware computes: how wide its vectors are, from which size on an operator leaves the fast
memory, whether weights stream in beside the arithmetic. It holds for every device of the class and is not fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgeredux.prediction.operators import Operator

_GIGA, _MEGA = 1e9, 1e6
_THIN_CHANNELS = 4  # an image: its few channels fill a vector badly
_FEW_ROWS = 4  # a product of fewer rows than this is bound by reading its weights
_WINOGRAD_CHANNELS = 16
_SMALL_KERNEL = 9  # elements of a kernel that matrix units are laid out for

# Bytes of an activation and of a weight by numeric format.
_Bytes = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Style:
    """A class of hardware. `terms` are its resources in the order of the coefficients, with a first guess in ms each.

    Guesses are per operator (n_), per 10^9 multiply-accumulates in filled vectors (m_), per 10^6 bytes (others).
    """

    lanes: int
    fast_elements: float  # what an operator may read and write and stay in fast memory
    overlap: float  # exponent p of (arithmetic^p + weights^p)^(1/p): 1 adds, large takes the larger
    bytes_of: _Bytes
    terms: Mapping[str, float]
    thin: bool = False
    winograd: bool = False
    streams_few_rows: bool = False
    cached_weights: float = 0.0  # bytes of weights that stay near from one run to the next: only the rest streams in


_NPU = Style(
    lanes=32,
    fast_elements=8e6,
    overlap=3.0,
    bytes_of={"float": (2, 2), "w8a8": (1, 1), "w8a16": (2, 1)},
    thin=True,
    terms={
        "base": 0.12,
        "n_product": 0.002,
        "n_narrow": 0.003,
        "n_pool": 0.003,
        "n_move": 0.001,
        "n_other": 0.002,
        "m_thin": 0.15,
        "m_conv": 0.12,
        "m_large_kernel": 0.2,
        "m_dilated": 0.2,
        "m_pointwise": 0.15,
        "m_linear": 0.3,
        "m_depthwise": 2.0,
        "m_grouped": 0.5,
        "m_matmul": 0.4,
        "activation": 0.005,
        "norm": 0.008,
        "move": 0.003,
        "elementwise": 0.003,
        "pool": 0.005,
        "resize": 0.01,
        "product": 0.002,
        "image": 0.005,
        "image_spill": 0.07,
        "spill": 0.008,
        "weights": 0.02,
    },
)
_CPU = Style(
    lanes=4,
    fast_elements=5e5,
    overlap=1.0,
    bytes_of={"float": (4, 4), "int8": (4, 1)},
    winograd=True,
    streams_few_rows=True,
    terms={
        "base": 0.05,
        "n_product": 0.01,
        "n_other": 0.01,
        "m_winograd": 12.0,
        "m_conv": 25.0,
        "m_pointwise": 25.0,
        "m_linear": 25.0,
        "m_depthwise": 40.0,
        "m_grouped": 30.0,
        "activation": 0.4,
        "norm": 0.4,
        "move": 0.25,
        "elementwise": 0.25,
        "product": 0.12,
        "spill": 0.12,
        "weights_few_rows": 0.4,
        "weights": 0.12,
    },
)
# Microcontrollers: everything in order, little else than arithmetic. Energy is fitted to the same sums, in mJ.
_MCU = Style(
    lanes=1,
    fast_elements=float("inf"),
    overlap=1.0,
    bytes_of={"float": (4, 4), "int8": (1, 1)},
    streams_few_rows=True,
    terms={
        "base": 0.1,
        "n_product": 0.05,
        "m_conv": 8000.0,
        "m_pointwise": 8000.0,
        "m_depthwise": 20000.0,
        "m_linear": 12000.0,
        "elementwise": 30.0,
        "product": 30.0,
        "weights_few_rows": 12.0,
    },
)
# ONNX Runtime on a desktop or server processor, operators by the numeric format each of them has.
_HOST = Style(
    lanes=1,
    fast_elements=2e5,
    overlap=1.0,
    bytes_of={"float": (4, 4)},
    winograd=False,
    streams_few_rows=True,
    cached_weights=4e6,
    terms={
        "base": 0.01,
        "n_product": 0.005,
        "n_other": 0.003,
        "m_conv": 25.0,
        "m_pointwise": 25.0,
        "m_linear": 20.0,
        "m_linear_int8": 8.0,
        "m_conv_int8": 10.0,
        "m_depthwise": 60.0,
        "m_matmul": 30.0,
        "activation": 0.5,
        "norm": 0.1,
        "skip_norm": 0.3,
        "softmax": 0.3,
        "move": 0.15,
        "elementwise": 0.1,
        "quantize": 0.2,
        "pool": 0.3,
        "product": 0.05,
        "spill": 0.05,
        "weights": 0.03,
        "weights_few_rows": 0.1,
        "weights_few_rows_int8": 0.1,
    },
)
STYLES: dict[str, Style] = {"npu": _NPU, "cpu": _CPU, "mcu": _MCU, "host": _HOST}


def features(operators: Iterable[Operator], style: Style, dtype: str) -> dict[str, float]:
    """Amount of each of the style's resources that one run needs; KeyError on a numeric format it does not have."""
    activation, weight = style.bytes_of[dtype]
    found = dict.fromkeys(style.terms, 0.0)

    def add(term: str, amount: float) -> None:
        if term in found:
            found[term] += amount

    add("base", 1.0)
    for operator in operators:
        data = operator.padded_elements(style.lanes) * activation / _MEGA
        stored = operator.weights * (1 if operator.integer else weight) / _MEGA
        spilled = data - style.fast_elements * activation / _MEGA
        suffix = "_int8" if operator.integer and f"m_{operator.kind}_int8" in style.terms else ""
        if operator.name == "quantize" and "quantize" not in style.terms:
            continue  # says how its neighbours compute, is no work of its own
        if not operator.macs:
            kind = _other(operator, style)
            add(f"n_{kind}" if f"n_{kind}" in found else "n_other", 1.0 if data else 0.0)
            add(kind, data)
        else:
            few = style.streams_few_rows and operator.rows < _FEW_ROWS and operator.weights > 0
            thin = style.thin and operator.weights > 0 and operator.channels <= _THIN_CHANNELS
            thin = thin and operator.kind in ("conv", "pointwise", "dilated")
            narrow = "n_narrow" in found and operator.kind in ("depthwise", "grouped")
            add("n_narrow" if narrow else "n_product", 1.0)
            add("product", data)
            add("weights", stored if not few or style.cached_weights else 0.0)
            if few:
                add(f"weights_few_rows{suffix}", stored)
            else:
                add(f"m_{_product(operator, style, thin)}{suffix}", operator.padded_macs(style.lanes) / _GIGA)
            if thin:
                image = operator.reads / operator.channels * style.lanes * activation / _MEGA
                add("image", image)
                add("image_spill", max(0.0, image - style.fast_elements * activation / _MEGA))
                spilled -= image
        if spilled > 0:
            add("spill", spilled)
    if style.cached_weights:
        found["weights"] = max(0.0, found["weights"] - style.cached_weights / _MEGA)
    return found


def _product(operator: Operator, style: Style, thin: bool) -> str:
    if thin:
        return "thin"
    kind: str = operator.kind
    wide = kind == "conv" and not operator.strided and operator.channels >= _WINOGRAD_CHANNELS
    if wide and style.winograd and round(operator.inner / operator.channels) == 9:
        return "winograd"
    if kind == "conv" and "m_large_kernel" in style.terms and operator.inner / operator.channels > _SMALL_KERNEL:
        return "large_kernel"
    if f"m_{kind}" in style.terms:
        return kind
    return {"matmul": "linear", "linear": "pointwise"}.get(kind, "conv")


def _other(operator: Operator, style: Style) -> str:
    kind: str = operator.kind
    if operator.name.startswith("Skip") and "skip_norm" in style.terms:
        return "skip_norm"
    if operator.name == "quantize" and "quantize" in style.terms:
        return "quantize"
    if kind == "reduce":
        return "pool" if "pool" in style.terms else "elementwise"
    if kind in style.terms:
        return kind
    return {"softmax": "norm"}.get(kind, "elementwise") if "norm" in style.terms else "elementwise"
