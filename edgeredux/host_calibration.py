"""A cost model of this machine: ONNX Runtime timed on generated networks, fitted, kept in the user's folder.

One thread, in processor time of the thread that runs the session, so that other people's load counts little; of each
network the lower quartile of its runs. What the model is asked about is optimised by ONNX Runtime first, as it will be
when it runs: its fusions are what costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeredux import host_nets
from edgeredux.errors import ArtifactError, one_line
from edgeredux.prediction import fitting, onnx_graph, roofline
from edgeredux.prediction.features import STYLES, features
from edgeredux.prediction.operators import Operator, total_macs
from edgeredux.seams import Feed, Progress, silent

NETWORKS, ROUNDS, RUNS = 120, 4, 6
# Nothing is known of this machine beforehand: coefficients are free to differ, one by one, by a factor of three.
SPREAD = fitting.Spread(one=1.1, whole=1.0, arithmetic=0.5, common=0.1)
_QUANTILES = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)
_STYLE = STYLES["host"]


@dataclass(frozen=True)
class Calibrated:
    """The fit of this machine and, per network, milliseconds measured and predicted by a fit without it."""

    coefficients: Mapping[str, float]
    measured: Mapping[str, float]
    predicted: Mapping[str, float]
    macs: tuple[float, float]

    @property
    def errors(self) -> np.ndarray[Any, Any]:
        """predicted/measured - 1."""
        return np.array([self.predicted[name] / self.measured[name] - 1 for name in self.measured])


def optimised(path: Path, folder: Path, shapes: Mapping[str, Sequence[int]]) -> list[Operator]:
    """The operators of what ONNX Runtime makes of the file. Raises ArtifactError on one that it cannot load."""
    import onnxruntime as ort

    wanted = ort.SessionOptions()
    wanted.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    made = folder / f"{path.stem}.optimised.onnx"
    wanted.optimized_model_filepath = str(made)
    wanted.log_severity_level = 3
    try:
        ort.InferenceSession(str(path), wanted, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime raises a dozen classes of its own
        raise ArtifactError(one_line(f"{path.name}: ONNX Runtime cannot load it: {problem}")) from problem
    found = onnx_graph.operators(made, shapes)
    made.unlink()
    return found


def measure(files: Mapping[Path, Feed], rounds: int = ROUNDS, progress: Progress = silent) -> dict[Path, float]:
    """Milliseconds of each file: processor time of one thread, lower quartile; rounds take the files in turn."""
    import onnxruntime as ort

    wanted = ort.SessionOptions()
    wanted.intra_op_num_threads = wanted.inter_op_num_threads = 1
    wanted.log_severity_level = 3
    sessions = {path: ort.InferenceSession(str(path), wanted, providers=["CPUExecutionProvider"]) for path in files}
    samples: dict[Path, list[float]] = {path: [] for path in files}
    for turn in range(rounds):
        progress("measure", turn, rounds)
        for path, feed in files.items():
            run: Callable[..., Any] = sessions[path].run
            for index in range(RUNS + 1):
                began = time.thread_time_ns()
                run(None, feed)
                if index:  # the first finds another network's weights in the cache
                    samples[path].append((time.thread_time_ns() - began) / 1e6)
    progress("measure", rounds, rounds)
    return {path: float(np.quantile(values, 0.25)) for path, values in samples.items()}


def calibrate(networks: int = NETWORKS, rounds: int = ROUNDS, progress: Progress = silent, seed: int = 0) -> Calibrated:
    """Fit this machine's model to generated networks, each predicted by a fit that left it out."""
    with tempfile.TemporaryDirectory(prefix="edgeredux-host-") as name:
        folder = Path(name)
        files = host_nets.make(folder, networks, seed)
        operators = {path: optimised(path, folder, _shapes(feed)) for path, feed in files.items()}
        times = measure(files, rounds, progress)
    rows = [features(operators[path], _STYLE, "float") for path in files]
    group = fitting.Measured(
        roofline.matrix(rows, _STYLE), np.array([times[path] for path in files]), [path.stem for path in files]
    )
    fitted = fitting.fit({"host": group}, _STYLE, SPREAD).devices["host"]
    out = fitting.left_out({"host": group}, _STYLE, SPREAD)["host"]
    sizes = [total_macs(operators[path]) for path in files]
    return Calibrated(
        {term: float(f"{value:.4g}") for term, value in zip(_STYLE.terms, np.exp(fitted), strict=True)},
        dict(zip(group.names, group.measured.tolist(), strict=True)),
        dict(zip(group.names, out.tolist(), strict=True)),
        (min(sizes), max(sizes)),
    )


def _shapes(feed: Feed) -> dict[str, Sequence[int]]:
    return {name: value.shape for name, value in feed.items()}


def predict(path: Path, feed: Feed, coefficients: Mapping[str, float]) -> float:
    """Milliseconds of one run of the file on this machine, one thread."""
    with tempfile.TemporaryDirectory(prefix="edgeredux-host-") as name:
        operators = optimised(path, Path(name), _shapes(feed))
    return roofline.predict(features(operators, _STYLE, "float"), coefficients, _STYLE)


def save(found: Calibrated, place: Path, date: str) -> None:
    """Write this machine's target file, which `--target host` then names. Its folder is made."""
    import platform

    import onnxruntime
    import yaml

    error = np.abs(found.errors)
    names = list(found.measured)
    measured, predicted = (np.array([values[name] for name in names]) for values in (found.measured, found.predicted))
    fit = {
        "quantity": "latency",
        "style": "host",
        "dtype": "float",
        "runtime": "onnx",
        "threads": 1,
        "models": len(names),
        "median_error": round(float(np.median(error)), 4),
        "p90_error": round(float(np.quantile(error, 0.9)), 4),
        "rank_correlation": round(fitting.rank_correlation(predicted, measured), 4),
        "errors": [round(float(value), 4) for value in np.quantile(found.errors, _QUANTILES)],
        "macs": list(found.macs),
        "coefficients": dict(found.coefficients),
    }
    never = "ONNX Runtime expands sparse initializers when it loads the file"
    said = {
        "name": "host",
        "description": "This machine's CPU as its own cost model sees it; host-cpu measures instead.",
        "runtimes": [{"runner": "estimate", "format": "onnx"}],
        "sparsity": [
            {
                "pattern": "structured",
                "pays": True,
                "from_zeros": 0.0,
                "source": "shapes shrink, so every runtime does less",
            },
            {"pattern": "unstructured", "pays": False, "source": never},
        ],
        "latency_model": {
            "device": f"{platform.node() or 'this machine'} ({platform.machine()})",
            "source": f"generated networks timed here by targets calibrate, ONNX Runtime {onnxruntime.__version__}",
            "url": "file:" + place.name,
            "date": date,
            "fits": [fit],
        },
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump(said, sort_keys=False, width=120), encoding="utf-8")
