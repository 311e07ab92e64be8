"""A bundle's decoder with its own tokenizer: text in, text out, as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeredux import bundle
from edgeredux.errors import BundleError, DataError, one_line
from edgeredux.execute import onnx_session
from edgeredux.generation import Decoder, Feeds, Sampling, Timing
from edgeredux.generation import generate as tokens_of
from edgeredux.static_generation import TfliteDecoder

_MODELS = ("model.onnx", "model.tflite")


@dataclass
class Answer:
    """What was generated, and how fast. `ended` says why: end (of text), limit (of new tokens), context (is full)."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    ended: str = "limit"
    timing: Timing = field(default_factory=Timing)

    def to_json(self) -> dict[str, Any]:
        """text, tokens, ended, prompt_tokens, time_to_first_token_ms, decode_tokens_per_s (null for one token)."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "ended": self.ended,
            "prompt_tokens": self.timing.prompt_tokens,
            "time_to_first_token_ms": 1000 * self.timing.prefill_s,
            "decode_tokens_per_s": self.timing.decode_tokens_per_s,
            "source": "measured",
        }


@dataclass(frozen=True)
class Speaker:
    """A decoder, its tokenizer, the tokens that end a text, and how many tokens it can see."""

    decoder: Feeds
    tokenizer: Any
    stops: frozenset[int]
    context: int | None
    vocabulary: int  # tokens that the model has

    def encode(self, prompt: str, *, raw: bool) -> list[int]:
        """The prompt's tokens: through the chat template where the tokenizer has one, unless `raw`.

        Raises DataError for an empty prompt or one that leaves no room for a new token.
        """
        if not prompt.strip():
            raise DataError("generate: the prompt is empty; say something")
        if getattr(self.tokenizer, "chat_template", None) and not raw:
            said = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(prompt)["input_ids"]
            eos = self.tokenizer.eos_token_id
            if len(ids) > 1 and eos is not None and ids[-1] == eos:
                ids = ids[:-1]  # tokenizers that close every text: generation goes on after it
        if not ids:
            raise DataError("generate: the tokenizer makes no token of the prompt")
        if self.context is not None and len(ids) >= self.context:
            raise DataError(f"generate: the prompt has {len(ids)} tokens, the model sees at most {self.context}")
        return list(ids)

    def stream(
        self, prompt: str, limit: int, sampling: Sampling, answer: Answer, *, raw: bool = False
    ) -> Iterator[str]:
        """Pieces of text as they are ready; `answer` is filled on the way. Raises DataError before any work."""
        if limit < 1:
            raise DataError("generate: at least one new token is needed")
        ids = self.encode(prompt, raw=raw)
        room = limit if self.context is None else min(limit, self.context - len(ids))
        for token in tokens_of(self.decoder, ids, room, self.stops, sampling, answer.timing):
            answer.tokens.append(token)
            text = self.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            if text.endswith("\N{REPLACEMENT CHARACTER}"):
                continue  # the first bytes of a character that the next token ends
            piece, answer.text = text[len(answer.text) :], text
            yield piece
        text = self.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        if text != answer.text:  # it ended within a character
            piece, answer.text = text[len(answer.text) :], text
            yield piece
        if len(answer.tokens) < room:
            answer.ended = "end"
        elif room < limit:
            answer.ended = "context"


def open_bundle(folder: Path, artifact: str | None, threads: int) -> Speaker:
    """The decoder of a bundle: its model.onnx, or the reduced (or "dense/NAME") artifact called `artifact`.

    A folder without a manifest is read too when it holds model.onnx or model.tflite and a tokenizer. Raises
    BundleError or ArtifactError, one line each.
    """
    path = located(folder, artifact)
    tokenizer, config = _tokenizer(folder), _json(folder / "config.json")
    stops = _stops(folder, config, tokenizer)
    said = config.get("max_position_embeddings") or config.get("n_positions")
    context = said if isinstance(said, int) and said > 0 else None
    decoder: Feeds
    if path.suffix == ".tflite":
        decoder = static = TfliteDecoder(path, threads)
        context = min(context or static.length, static.length)
    else:
        decoder = Decoder(path, lambda: onnx_session(path, threads))
    return Speaker(decoder, tokenizer, stops, context, _size(decoder, tokenizer, folder))


def located(folder: Path, artifact: str | None) -> Path:
    """The file of a bundle's decoder, its bytes verified, or the model file of a folder. Raises BundleError."""
    if (folder / bundle.MANIFEST).is_file():
        manifest = bundle.read_manifest(folder)
        path = folder / _path(folder, manifest, artifact)
        bundle.verify(folder, manifest, only=[path.relative_to(folder).as_posix()])
    else:
        path = next((path for name in _MODELS if (path := folder / name).is_file()), folder)
        if artifact is not None or path == folder:
            raise BundleError(
                f"{folder}: no bundle, and no folder with {' or '.join(_MODELS)}; make one with edgeredux run RECIPE"
            )
    return path


def _path(folder: Path, manifest: dict[str, Any], artifact: str | None) -> str:
    found = {f"{item['role']}/{item['name']}": item["path"] for item in manifest["artifacts"]}
    found = {name: path for name, path in found.items() if path.endswith(".onnx")}
    if artifact is None:
        if not (folder / "model.onnx").is_file():
            raise BundleError(
                f"{folder}: it has no model.onnx; say which with --artifact: {', '.join(found) or 'none'}"
            )
        return "model.onnx"
    name = artifact if artifact in found else f"reduced/{artifact}"
    if name not in found:
        raise BundleError(f"{folder}: no ONNX artifact {artifact!r}. Allowed: {', '.join(found) or 'none'}")
    rewritten = any(line["name"] == "vocabulary" and line["changed"] for line in manifest["steps"])
    if name.startswith("dense/") and rewritten:
        raise BundleError(f"{folder}: its tokenizer was rewritten for the reduced model; {name} has other tokens")
    return str(found[name])


def _tokenizer(folder: Path) -> Any:
    import transformers

    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise BundleError(f"{folder}: it has no tokenizer (tokenizer.json), so text cannot be generated")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as problem:
        raise BundleError(one_line(f"{folder}: its tokenizer cannot be read: {problem}")) from problem


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise BundleError(one_line(f"{path}: cannot be read: {problem}")) from problem
    if not isinstance(said, dict):
        raise BundleError(f"{path}: no JSON object")
    return said


def _stops(folder: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    said = [config.get("eos_token_id"), tokenizer.eos_token_id]
    if (folder / "generation_config.json").is_file():
        said.append(_json(folder / "generation_config.json").get("eos_token_id"))
    flat = [item for value in said for item in (value if isinstance(value, list) else [value])]
    return frozenset(item for item in flat if isinstance(item, int))


def _size(decoder: Feeds, tokenizer: Any, folder: Path) -> int:
    """How many tokens the model has; a tokenizer with others than these is refused."""
    size = int(decoder.feed([0]).shape[-1])
    if len(tokenizer) > size:
        raise BundleError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {size}: they do not belong together"
        )
    return size
