"""An ONNX file with more weights than one protobuf can hold, most of it never written to the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

WIDTH, HIDDEN = 2048, 8192


def write(path: Path, blocks: int = 17, zeros: float = 0.8) -> int:
    """Residual blocks of Gemm, Relu and MatMul, 134 MB each, in `path` and `path`.data; the bytes of the weights.

    The share `zeros` of the hidden neurons is dead on both sides. Dead rows are holes of the data file: they read as
    zeros and count as bytes, and take no time to write.
    """
    rng = np.random.default_rng(0)
    live = HIDDEN - int(HIDDEN * zeros)
    rows = rng.standard_normal((live, WIDTH), np.float32) / 64
    size = HIDDEN * WIDTH * 4
    beside = path.with_name(path.name + ".data")
    nodes, stored, read, place = [], [], "x", 0
    with beside.open("wb") as file:
        file.truncate(2 * blocks * size)
        for block in range(blocks):
            for name in (f"up{block}", f"down{block}"):
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[HIDDEN, WIDTH])
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in {"location": beside.name, "offset": place, "length": size}.items():
                    tensor.external_data.add(key=key, value=str(value))
                stored.append(tensor)
                file.seek(place + size - rows.nbytes)
                file.write(np.roll(rows, len(stored), 1).data)
                place += size
            made = "y" if block == blocks - 1 else f"h{block}"
            nodes += [
                helper.make_node("Gemm", [read, f"up{block}"], [f"u{block}"], f"up{block}", transB=1),
                helper.make_node("Relu", [f"u{block}"], [f"r{block}"], f"relu{block}"),
                helper.make_node("MatMul", [f"r{block}", f"down{block}"], [f"d{block}"], f"down{block}"),
                helper.make_node("Add", [f"d{block}", read], [made], f"add{block}"),
            ]
            read = made
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "large", shapes[:1], shapes[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return place
