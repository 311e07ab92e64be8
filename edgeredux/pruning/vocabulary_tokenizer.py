"""A fast tokenizer with fewer tokens that splits every text whose tokens are kept as it did before.

Why that holds, by kind of model in tokenizer.json:

    WordPiece   takes the longest piece that is there; with fewer pieces none becomes longer, and the one taken is kept
    Unigram     takes the best-scored split; the best of all is still the best of fewer
    BPE         merges the pair of lowest rank; all merges that can build a kept token are kept with their pieces, so
                at each step the pair taken before is still there and no other comes before it
    WordLevel   whole words
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeredux.errors import ModelError, one_line

# Files that say the old vocabulary again; tokenizer.json says all.
_DUPLICATES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def closed(tokenizer: Any, used: Iterable[int]) -> set[int]:
    """The token numbers in `used` with all they need: special and added ones, characters, bytes, pieces of merges."""
    said = _said(tokenizer)
    vocabulary = _vocabulary(said)
    kept = {int(item["id"]) for item in said.get("added_tokens", ())}
    kept |= set(tokenizer.all_special_ids)
    kept |= set(used)
    prefix = said["model"].get("continuing_subword_prefix") or ""
    for token, number in vocabulary.items():
        bare = token.removeprefix(prefix) if prefix else token
        byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        if len(bare) <= 1 or byte:
            kept.add(number)
    names = {number: token for token, number in vocabulary.items()}
    if said["model"].get("unk_id") is not None:
        kept.add(int(said["model"]["unk_id"]))
    elif said["model"].get("unk_token") in vocabulary:
        kept.add(vocabulary[said["model"]["unk_token"]])
    if said["model"]["type"] == "BPE":
        parts: dict[str, list[tuple[str, str]]] = {}
        for first, second in _merges(said):
            parts.setdefault(first + second.removeprefix(prefix), []).append((first, second))
        waiting = [names[number] for number in kept if number in names]
        while waiting:
            for pair in parts.get(waiting.pop(), ()):
                for piece in pair:
                    if vocabulary[piece] not in kept:
                        kept.add(vocabulary[piece])
                        waiting.append(piece)
    return kept


def rewrite(tokenizer: Any, kept: list[int]) -> Any:
    """A tokenizer of the same class with just the tokens of `kept` (sorted), renumbered in their order.

    Raises ModelError for a tokenizer.json that is of another kind.
    """
    places = {token: place for place, token in enumerate(kept)}
    said = _said(tokenizer)
    model = said["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    if model["type"] == "Unigram":
        if model.get("unk_id") is not None:
            model["unk_id"] = places[model["unk_id"]]
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in places]
    else:
        model["vocab"] = {token: places[number] for token, number in model["vocab"].items() if number in places}
    if model["type"] == "BPE":
        vocabulary = model["vocab"]
        model["merges"] = [
            list(pair)
            for pair in _merges(said)
            if all(piece in vocabulary for piece in (*pair, pair[0] + pair[1].removeprefix(prefix)))
        ]
    added = [{**item, "id": places[item["id"]]} for item in said.get("added_tokens", ()) if item["id"] in places]
    said["added_tokens"] = added
    if said.get("padding"):
        said["padding"]["pad_id"] = places[said["padding"]["pad_id"]]
    said["post_processor"] = _processor(said.get("post_processor"), places)
    with tempfile.TemporaryDirectory(prefix="edgeredux-") as scratch:
        folder = Path(scratch)
        tokenizer.save_pretrained(folder)
        for name in _DUPLICATES:
            (folder / name).unlink(missing_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        old = config.pop("added_tokens_decoder", None)
        if old is not None:
            config["added_tokens_decoder"] = {
                str(places[int(key)]): value for key, value in old.items() if int(key) in places
            }
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            made = type(tokenizer).from_pretrained(folder, local_files_only=True)
        except Exception as problem:
            raise ModelError(
                one_line(f"vocabulary: the rewritten tokenizer does not load: {problem}", 300)
            ) from problem
    if len(made) != len(kept):
        raise ModelError(f"vocabulary: the rewritten tokenizer has {len(made)} tokens, not {len(kept)}")
    return made


def _said(tokenizer: Any) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if said["model"].get("type") not in ("WordPiece", "Unigram", "BPE", "WordLevel"):
        raise ModelError(f"vocabulary: tokenizers of type {said['model'].get('type')!r} are not rewritten")
    return said


def _vocabulary(said: dict[str, Any]) -> dict[str, int]:
    if said["model"]["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(said["model"]["vocab"])}
    return dict(said["model"]["vocab"])


def _merges(said: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in said["model"]["merges"])
    return [(str(first), str(second)) for first, second in pairs]


def _processor(said: Any, places: dict[int, int]) -> Any:
    """The post-processor with its token numbers renewed: templates, [name, number] pairs, sequences of processors."""
    if said is None:
        return None
    said = dict(said)
    if said["type"] == "Sequence":
        said["processors"] = [_processor(item, places) for item in said["processors"]]
    if said["type"] == "TemplateProcessing":
        said["special_tokens"] = {
            name: {**item, "ids": [places[number] for number in item["ids"]]}
            for name, item in said["special_tokens"].items()
        }
    for side in ("sep", "cls"):
        if isinstance(said.get(side), list):
            said[side] = [said[side][0], places[said[side][1]]]
    return said
