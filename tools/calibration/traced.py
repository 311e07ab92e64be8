"""The operators of a PyTorch module, read off as it runs on meta tensors: shapes without weights, nothing computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgeredux.prediction.operators import Operator, contraction, convolution_kind

# Free on every runtime: other names for the same elements, or what the compiler folds away.
_FREE = {
    "view",
    "_unsafe_view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "expand",
    "alias",
    "detach",
    "clone",
    "contiguous",
    "t",
    "lift_fresh",
    "_to_copy",
    "copy_",
    "dropout",
    "native_dropout",
    "unbind",
    "split",
    "split_with_sizes",
    "chunk",
    "as_strided",
    "unsafe_split",
    "empty",
    "zeros",
    "ones",
    "full",
    "arange",
    "scalar_tensor",
    "empty_like",
    "diagonal",
    "zeros_like",
    "ones_like",
    "full_like",
    "new_zeros",
    "new_ones",
    "new_empty",
    "fill_",
    "zero_",
    "is_same_size",
    "new_full",
    "unflatten",
    "view_as_real",
    "view_as_complex",
    "_reshape_alias",
    "lift",
    "to",
    "new_empty_strided",
}
_MOVES = {
    "permute",
    "transpose",
    "slice",
    "select",
    "cat",
    "stack",
    "constant_pad_nd",
    "reflection_pad2d",
    "replication_pad2d",
    "gather",
    "index",
    "index_select",
    "embedding",
    "roll",
    "flip",
    "repeat",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "native_channel_shuffle",
    "im2col",
    "unfold",
    "index_put",
    "index_put_",
    "scatter",
    "tril",
    "triu",
    "reflection_pad1d",
    "reflection_pad3d",
    "slice_scatter",
    "select_scatter",
    "masked_select",
    "repeat_interleave",
}
_ACTIVATIONS = {
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "hardswish",
    "hardsigmoid",
    "exp",
    "erf",
    "elu",
    "mish",
    "softplus",
    "log",
    "silu_",
    "hardswish_",
    "hardsigmoid_",
    "sigmoid_",
    "tanh_",
    "sin",
    "cos",
    "elu_",
    "gelu_",
    "mish_",
    "log_sigmoid",
    "sqrt",
}
_REDUCTIONS = {
    "max_pool2d_with_indices",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d",
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "argmax",
    "topk",
    "adaptive_avg_pool3d",
    "_adaptive_avg_pool3d",
    "max_pool3d",
    "avg_pool1d",
    "avg_pool3d",
    "cumsum",
    "linalg_vector_norm",
    "norm",
    "var",
    "var_mean",
    "max_pool3d_with_indices",
    "_adaptive_avg_pool1d",
    "adaptive_avg_pool1d",
    "adaptive_max_pool2d",
    "std",
    "sort",
    "any",
    "all",
}
_CLAMPS = {
    "relu",
    "relu_",
    "hardtanh",
    "hardtanh_",
    "clamp",
    "clamp_min",
    "leaky_relu",
    "leaky_relu_",
    "clamp_",
    "relu6",
}
_CLAMPS |= {"prelu", "_prelu_kernel", "clamp_max", "threshold"}
_CONVOLUTIONS = ("convolution", "_convolution", "conv2d", "conv1d", "conv3d")
_NORMS = {"native_layer_norm", "native_group_norm", "layer_norm", "group_norm", "_fused_rms_norm", "rms_norm"}


class _Recorder(TorchDispatchMode):
    def __init__(self, constants: set[int], inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._constants = constants
        self._live = {id(tensor) for tensor in inputs}
        self._made_by: dict[int, str] = {}
        self._maps: dict[int, bool] = {}
        self._kept: list[Any] = list(inputs)  # an id is only a name while its tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        live = [tensor for tensor in given if id(tensor) in self._live]
        self._kept += [*given, *made]
        if not made:
            return out
        if not live:
            return out  # of constants alone: folded before the model runs
        self._live |= {id(tensor) for tensor in made}
        kind = self._record(name, args, live, made[0])
        for tensor in made:
            self._made_by[id(tensor)] = kind
            self._maps[id(tensor)] = self._is_map(name, live[0], tensor)
        return out

    def _is_map(self, name: str, given: torch.Tensor, made: torch.Tensor) -> bool:
        """Whether channels are the second axis (images, sounds), not the last (tokens)."""
        if name in _CONVOLUTIONS:
            return True
        if name in ("view", "_unsafe_view", "reshape", "permute", "transpose", "bmm", "mm", "addmm"):
            return (
                made.dim() == given.dim() == 4
                and name not in ("permute", "transpose")
                and self._maps.get(id(given), False)
            )
        return self._maps.get(id(given), made.dim() >= 4)

    def _depth(self, made: torch.Tensor, given: torch.Tensor) -> float:
        if made.dim() < 2:
            return float(made.numel())
        is_map = self._maps.get(id(given), made.dim() >= 4)
        return float(made.shape[1] if is_map and made.dim() > 2 else made.shape[-1])

    def _stored(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._constants or id(tensor) not in self._live

    def _record(self, name: str, args: Any, live: Sequence[torch.Tensor], made: torch.Tensor) -> str:
        before = self._made_by.get(id(live[0]), "input")
        reads, writes = float(sum(tensor.numel() for tensor in live)), float(made.numel())
        if name in _CONVOLUTIONS:
            return self._convolution(args, reads, writes, made)
        if name in ("addmm", "mm", "bmm", "baddbmm", "linear", "matmul", "addmv", "mv"):
            left, right = args[1:3] if name in ("addmm", "baddbmm", "addmv") else args[:2]
            return self._product(left, right, reads, writes)
        if name in _FREE:
            return before if name not in ("empty", "zeros") else "free"
        if name in ("_native_batch_norm_legit_no_training", "native_batch_norm", "batch_norm", "cudnn_batch_norm"):
            if before in ("conv", "dilated", "pointwise", "depthwise", "grouped", "deconv", "linear"):
                return before
            kind = "elementwise"
        elif name in _CLAMPS:
            if before not in ("input", "move", "free"):
                return before
            kind = "elementwise"
        elif name in _NORMS:
            kind = "norm"
        elif name in ("_softmax", "softmax", "_log_softmax", "_safe_softmax"):
            kind = "softmax"
        elif name in _ACTIVATIONS:
            kind = "activation"
        elif name in _REDUCTIONS:
            kind = "reduce"
        elif name.startswith(("upsample", "_upsample", "grid_sampler", "interpolate")):
            kind = "resize"
        elif name in _MOVES:
            kind = "move"
            if name in ("slice", "select"):
                if made.shape == live[0].shape:
                    return before
                reads = writes
        else:
            kind = "elementwise"
            reads = float(sum(tensor.numel() for tensor in live))
        depth = self._depth(made, live[0])
        self.operators.append(Operator(kind, reads, writes, depth=depth, name=name))  # type: ignore[arg-type]
        return kind

    def _convolution(self, args: Any, reads: float, writes: float, made: torch.Tensor) -> str:
        value, weight = args[0], args[1]
        transposed, groups = bool(args[6]), int(args[8])
        kernel = tuple(weight.shape[2:])
        size = math.prod(kernel)
        batch = made.shape[0]
        if transposed:
            inputs, outputs = value.shape[1], made.shape[1]
            rows = batch * math.prod(value.shape[2:])
            operator = contraction(
                "deconv", rows, inputs // groups, outputs // groups * size, groups=groups, reads=reads, writes=writes
            )
        else:
            outputs, per_group = weight.shape[0], weight.shape[1]
            kind = convolution_kind(groups, per_group * groups, kernel, args[5])
            rows = batch * math.prod(made.shape[2:])
            operator = contraction(
                kind,
                rows,
                per_group * size,
                outputs // groups,
                groups=groups,
                reads=reads,
                writes=writes,
                channels=per_group,
                strided=max(args[3]) > 1,
            )
        self.operators.append(operator)
        return operator.kind

    def _product(self, left: torch.Tensor, right: torch.Tensor, reads: float, writes: float) -> str:
        rows, inner = left.shape[-2] if left.dim() > 1 else 1, left.shape[-1]
        columns = right.shape[-1] if right.dim() > 1 else 1
        groups = math.prod(left.shape[:-2]) if left.dim() > 2 else 1
        stored = self._stored(right) or self._stored(left)
        if stored and right.dim() == 2:
            rows, groups = rows * groups, 1
        kind = "linear" if stored else "matmul"
        self.operators.append(
            contraction(kind, rows, inner, columns, groups=groups, reads=reads, writes=writes, stored=stored)  # type: ignore[arg-type]
        )
        return kind


def _on(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def operators(
    module: torch.nn.Module, inputs: Sequence[Any] = (), named: Mapping[str, Any] | None = None, *, device: str = "meta"
) -> list[Operator]:
    """What one call of `module` does. Module and inputs are on the meta device, or get there first."""
    module = module.to(device).eval()
    given = [torch.zeros(value, device=device) if isinstance(value, tuple) else value.to(device) for value in inputs]
    by_name = {
        key: torch.zeros(value, device=device) if isinstance(value, tuple) else _on(value, device)
        for key, value in (named or {}).items()
    }
    constants = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    live = [leaf for leaf in tree_leaves((given, by_name)) if isinstance(leaf, torch.Tensor)]
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Recorder(constants, live) as recorder:
        module(*given, **by_name)
    return recorder.operators
