"""How near a quantised graph comes to the float one, for any choice of quantised activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeredux.errors import one_line
from edgeredux.parity import compare
from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.qdq_pairs import SWITCHES, Restored, constants, probe, restore
from edgeredux.passes.onnx.qdq_search import Switches
from edgeredux.seams import Feed, Tolerance


class Judge:
    """Mean cosine of outputs on `feeds`: `folder`/in.onnx is the float graph, all.onnx has every activation quantised.

    `masks` are the feeds' attention masks: padding is left out where every feed has one.
    """

    def __init__(self, folder: Path, feeds: Sequence[Feed], masks: Sequence[Any], threads: int) -> None:
        self.folder, self.feeds, self.threads = folder, feeds, threads
        self.masks = None if any(mask is None for mask in masks) else list(masks)
        self.floats = constants(files.read(folder / "in.onnx"))
        self.reference = self._outputs(self._session(folder / "in.onnx"), {})

    def probed(self, how: Restored) -> Callable[[Switches], float]:
        """A function of switches: the cosine with these activations quantised."""
        model = files.read(self.folder / "all.onnx")
        probe(model, self.floats, how)
        files.write(model, self.folder / "probe.onnx")
        session = self._session(self.folder / "probe.onnx")

        def cosine(switches: Switches) -> float:
            return self._cosine(self._outputs(session, {SWITCHES: switches}))

        return cosine

    def cosine_of_file(self, chosen: Sequence[int], how: Restored) -> float:
        """The cosine of the file with these activations restored."""
        model = files.read(self.folder / "all.onnx")
        restore(model, self.floats, chosen, how)
        files.write(model, self.folder / "chosen.onnx")
        return self._cosine(self._outputs(self._session(self.folder / "chosen.onnx"), {}))

    def _session(self, path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # ONNX Runtime raises its own kinds
            raise RuntimeError(one_line(f"its file does not load: {problem}", 200)) from problem

    def _outputs(self, session: onnxruntime.InferenceSession, more: Feed) -> list[Feed]:
        names = [item.name for item in session.get_outputs()]
        return [dict(zip(names, session.run(names, {**feed, **more}), strict=True)) for feed in self.feeds]

    def _cosine(self, made: list[Feed]) -> float:
        found = compare(self.reference, made, Tolerance("searched", cosine=-1.0), self.masks)
        mean = found["mean_cosine"]
        return -1.0 if mean is None else float(np.float64(mean))
