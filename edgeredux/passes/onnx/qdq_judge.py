"""How near a quantised graph comes to the float one, for any choice of quantised activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime

from edgeredux.parity import Array, compare
from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.qdq_pairs import SWITCHES, Restored, constants, probe, restore
from edgeredux.passes.onnx.qdq_search import Switches
from edgeredux.passes.onnx.refusal import Refused, refusing
from edgeredux.seams import Feed, Tolerance

_ANY = Tolerance("searched", cosine=-1.0)


class Judge:
    """Mean cosine of outputs on `feeds`: `folder`/in.onnx is the float graph, all.onnx has every activation quantised.

    `masks` are the feeds' attention masks (parity.token_masks): padding is left out. Raises Refused where the float
    graph's outputs are nothing to compare with.
    """

    def __init__(self, folder: Path, feeds: Sequence[Feed], masks: Sequence[Array] | None, threads: int) -> None:
        self.folder, self.feeds, self.masks, self.threads = folder, feeds, masks, threads
        self.floats = constants(files.read(folder / "in.onnx"))
        self.reference = self._outputs(self._session(folder / "in.onnx"), {})
        own = compare(self.reference, self.reference, _ANY, self.masks)
        if own["mean_cosine"] is None:
            raise Refused(f"the float graph's outputs cannot be compared: {own['reason']}")

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
        with refusing(f"ONNX Runtime does not load {path.name}"):
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _outputs(self, session: onnxruntime.InferenceSession, more: Feed) -> list[Feed]:
        names = [item.name for item in session.get_outputs()]
        with refusing("ONNX Runtime does not run it"):
            return [dict(zip(names, session.run(names, {**feed, **more}), strict=True)) for feed in self.feeds]

    def _cosine(self, made: list[Feed]) -> float:
        mean: float | None = compare(self.reference, made, _ANY, self.masks)["mean_cosine"]
        return -1.0 if mean is None else mean  # outputs that are not finite: as far as can be
