"""The quantising and storing passes on graphs that nobody here exported: changed, declined or rolled back, said why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgeredux import registry
from edgeredux.artifact import Artifact
from edgeredux.rewrite import rewrite
from edgeredux.seams import PassContext
from edgeredux.shipping import packed

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = sorted(
    path
    for pattern in ("model-silero-vad/*.onnx", "model-yunet/*.onnx", "model-mlperf-tiny-onnx/**/*.onnx")
    for path in DATA.glob(pattern)
)
STEPS: list[tuple[str, dict[str, Any]]] = [
    *(("int4_weights", {}), ("int8_weights", {}), ("fp16", {}), ("int8_static", {}), ("smooth_scales", {})),
    *(("sparse_initializer", {}), ("two_four", {})),
]


def feeds(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Seeded inputs, axes without a size small."""
    rng, found = np.random.default_rng(3), []
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
    small = {"input": (1, 576), "state": (2, 1)}
    for _ in range(4):
        feed = {}
        for item in onnxruntime.InferenceSession(str(path)).get_inputs():
            guess = small.get(item.name, (1, 3))
            dims = [
                s if isinstance(s, int) else (guess[place] if place < 2 else 64) for place, s in enumerate(item.shape)
            ]
            values = np.array(16000) if item.name == "sr" else rng.random(dims) * (1 if "float" in item.type else 100)
            feed[item.name] = values.astype(types[item.type])
        found.append(feed)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="the folder of shared test data is not beside this checkout")
@pytest.mark.parametrize("source", FILES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_real_files_keep_their_function_or_say_why(tmp_path: Path, source: Path) -> None:
    given = feeds(source)
    context = PassContext(given, tmp_path / "log", tmp_path)
    for name, options in STEPS:
        step = registry.create("pass", name, options, name)
        made = rewrite(Artifact.of(source, "m", "reduced"), [(name, step)], context, given[:1], tmp_path)
        change = made.history[0]
        print(source.stem, name, change.changed, change.why)
        assert change.changed or change.why.startswith(("declined: ", "rolled back: "))
    packed.pack(source, tmp_path / "m.erpack")
    packed.unpack(tmp_path / "m.erpack", tmp_path / "out")
    assert (tmp_path / "out" / source.name).read_bytes() == source.read_bytes()
