"""Operator -> rule, for operators of the standard domain. What is not here is not understood and blocks removal."""

from __future__ import annotations

from collections.abc import Mapping

from edgeredux.passes.onnx.structure import elementwise
from edgeredux.passes.onnx.structure.channelwise import Channelwise, Normalised, Resize
from edgeredux.passes.onnx.structure.convolutions import Convolution
from edgeredux.passes.onnx.structure.gathering import Gather
from edgeredux.passes.onnx.structure.joining import Concat, Split
from edgeredux.passes.onnx.structure.mixing import Mixing, Reduction
from edgeredux.passes.onnx.structure.moving import Transpose
from edgeredux.passes.onnx.structure.picking import Pad, Slice
from edgeredux.passes.onnx.structure.products import Gemm, Product
from edgeredux.passes.onnx.structure.reshaping import DepthToSpace, Expand, Reshape, Reshaping, Shape
from edgeredux.passes.onnx.structure.rule import Rule

_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_MIXERS = ("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization", "LpNormalization")
_REDUCTIONS = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"),
    *("ReduceLogSum", "ReduceLogSumExp"),
)

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(elementwise.OPERATORS, elementwise.Elementwise()),
    "Dropout": elementwise.Dropout(),
    "MatMul": Product(),
    "Gemm": Gemm(),
    **dict.fromkeys(("Conv", "ConvTranspose"), Convolution()),
    **dict.fromkeys(_POOLS, Channelwise()),
    **dict.fromkeys(("Resize", "Upsample"), Resize()),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), Normalised()),
    **dict.fromkeys(_MIXERS, Mixing()),
    **dict.fromkeys(_REDUCTIONS, Reduction()),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), Reshaping()),
    "Reshape": Reshape(),
    "Expand": Expand(),
    "Shape": Shape(),
    "DepthToSpace": DepthToSpace(),
    "Transpose": Transpose(),
    "Slice": Slice(),
    "Pad": Pad(),
    "Gather": Gather(),
    "Concat": Concat(),
    "Split": Split(),
}
