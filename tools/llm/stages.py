"""The stages, each a process of its own whose memory is watched: python -m llm.stages NAME IN OUT [OPTION]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edgeredux import caching, genai, loading, registry
from edgeredux.artifact import Artifact
from edgeredux.decoding import with_cache
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.generate import Answer, open_bundle
from edgeredux.generation import Sampling
from edgeredux.pruning.structured import Structured
from edgeredux.pruning.vocabulary import Vocabulary
from edgeredux.rewrite import rewrite
from edgeredux.seams import ExportJob, Feed, PassContext, ReduceContext
from llm import checkpoint

SAID = "STAGE "
PASSES = ("decoder_fusions", "int4_weights")
_OPTIONS = {"int4_weights": {"compute": "int8"}}  # as onnxruntime-genai's builder does: accuracy_level 4


def prune(source: Path, out: Path) -> None:
    """Half of the FFN neurons, half of the KV heads with their query heads."""
    model = loading.load(str(source))
    context = ReduceContext(model, checkpoint.feeds(64, 4, 64)[:2], [], 0, 1, out.parent)
    student, change = Structured(ffn=0.5, heads=0.5).apply(model, context)
    _say(change.why)
    loading.save(student, out)


def trim(source: Path, out: Path, tokens: str = "32768") -> None:
    """The vocabulary cut to the tokens that a corpus of just so many uses."""
    model = loading.load(str(source))
    context = ReduceContext(model, checkpoint.feeds(int(tokens) - 1, 16, 64), [], 0, 1, out.parent)
    student, change = Vocabulary().apply(model, context)
    _say(change.why)
    loading.save(student, out)


def export(source: Path, out: Path) -> None:
    """ONNX with its cache, float."""
    model = with_cache(loading.load(str(source)))
    samples = [_feed(model.cache, *size) for size in ((2, 3, 5), (1, 1, 9))]
    out.mkdir()
    job = ExportJob(model=model, samples=samples, out=out / "model.onnx", shapes={}, log=out / "log")
    change = TorchOnnx().export(job)
    _say(json.dumps(change.details["parity"]["max_abs"]))


def passes(source: Path, out: Path, names: str = ",".join(PASSES)) -> None:
    """The passes, each proven on inputs with and without a past; the last file goes to `out`/model.onnx."""
    out.mkdir()
    made = source / "model.onnx"
    cache = caching.of_onnx(made)
    samples = [_feed(cache, *size) for size in ((2, 3, 5), (1, 1, 9), (1, 7, 0))]
    steps = [(name, registry.create("pass", name, _OPTIONS.get(name, {}), "bench_llm")) for name in names.split(",")]
    found = rewrite(Artifact.of(made, "llm", "reduced"), steps, PassContext(samples, out / "log", out), samples, out)
    for change in found.history:
        _say(f"{change.step}: {change.why}")
        if not change.changed:
            raise SystemExit(f"{change.step} changed nothing")
        _say(json.dumps(change.details["parity"]["mean_cosine"]))
    for path in out.glob("*.data"):
        path.unlink()
    found.path.rename(out / "model.onnx")
    for path in out.glob("[0-9][0-9]-*"):
        path.unlink()


def serve(source: Path, out: Path) -> None:
    """Text from the file, and a folder of it that onnxruntime-genai generates the same tokens from."""
    answer = Answer()
    speaker = open_bundle(source, None, 1)
    text = "".join(speaker.stream("the first line of the file", 16, Sampling(), answer))
    del speaker
    _say(json.dumps({"text": text, **answer.to_json()}))
    _say(json.dumps(genai.write(source, out, None, 1)))


def _say(text: str) -> None:
    """A line of the stage's own, told from what the libraries print."""
    print(f"{SAID}{text}", flush=True)


def _feed(cache: caching.Cache, batch: int, tokens: int, past: int) -> Feed:
    mask = np.ones((batch, past + tokens), np.int64)
    ids = np.random.default_rng(tokens).integers(0, 30_000, (batch, tokens))
    before = caching.made_up(cache, batch, past) if past else caching.empty(cache, batch)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": caching.positions(mask, tokens), **before}


if __name__ == "__main__":
    {"prune": prune, "trim": trim, "export": export, "passes": passes, "serve": serve}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:]
    )
