"""A file beyond 2 GB through a pass: the same function, and in memory no more than twice the file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from graphs import large_file, peak

TWO_GB = 2 << 30


@pytest.mark.slow
def test_external_data_over_two_gigabytes(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    size = large_file.write(source)
    assert size > TWO_GB
    assert size == (tmp_path / "in.onnx.data").stat().st_size
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ran = peak.run([sys.executable, "-m", "edgeredux", "passes", "run", "dead_structure", str(source), str(out)])
    assert ran.returncode == 0, ran.said
    print(f"peak {ran.peak_bytes / size:.2f} times the file, {ran.seconds:.0f} s")
    assert size < ran.peak_bytes <= 2 * size  # below the file's own size, the looking itself is broken
    kept = [tensor.dims for tensor in onnx.load(out, load_external_data=False).graph.initializer]
    assert kept == [[1639, 2048]] * 34  # 8192 less 80 %, rounded down
    made = out.stat().st_size + sum(path.stat().st_size for path in tmp_path.glob("out.onnx.data"))
    assert made == pytest.approx(size * 1639 / 8192, rel=1e-3)
