"""The step `vocabulary`: rows of the embedding and of the language model's head that a corpus never uses go.

The tokenizer is rewritten to match (pruning/vocabulary_tokenizer.py): a text whose tokens are all kept is split as
before and its numbers map one to one, in order; any other text is split into kept pieces. What is removed from the
outputs is the scores of tokens that are gone, so the outputs for kept tokens stay the same numbers.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.vocabulary_tokenizer import closed, rewrite
from edgeredux.retokenised import dense_numbers
from edgeredux.seams import Feed, ReduceContext

_SAMPLES = 200  # texts of the corpus on which the rewritten tokenizer is proven


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Vocabulary:
    """Keep the tokens that occur at least `minimum_count` times in calibration and training data, and what they need.

    What they need: special and added tokens, single characters or bytes so that any text can still be written, and the
    pieces that merges build a kept token from. `largest` keeps only the most frequent ones of a longer list.
    `multiple_of` fills up with further frequent tokens, for kernels that like round widths.
    """

    minimum_count: Annotated[int, Field(ge=1)] = 1
    largest: Annotated[int, Field(ge=1)] | None = None
    multiple_of: Annotated[int, Field(ge=1, le=4096)] = 1

    def check(self, model: Model) -> None:
        """Raise ModelError for a model without a tokenizer that can be rewritten or without a token embedding."""
        if model.tokenizer is None:
            raise ModelError(f"vocabulary: model {model.name} has no tokenizer, so its tokens cannot be counted")
        if not getattr(model.tokenizer, "is_fast", False):
            raise ModelError(
                f"vocabulary: the tokenizer of {model.name} has no tokenizer.json; only such are rewritten"
            )
        if not model.is_transformers:
            raise RecipeError("vocabulary: only transformers models say which embedding is their tokens'")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model and tokenizer with fewer tokens; Change details hold old and new size and the kept numbers."""
        self.check(model)
        feeds = [*context.calibration, *context.training]
        if not feeds:
            raise DataError("vocabulary: there is no data to count tokens in")
        size = int(model.module.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        kept = self._kept(model, feeds, size)
        tokenizer = rewrite(model.tokenizer, kept)
        samples = [_row(feed, row) for feed in feeds for row in range(len(feed["input_ids"]))][:_SAMPLES]
        prove(model.tokenizer, tokenizer, kept, samples)
        module = copy.deepcopy(model.module).eval()
        before = model.parameters()
        shrink(module, kept)
        student = replace(model.after(module, repr(self)), tokenizer=tokenizer)
        after = student.parameters()
        why = f"{len(kept):,} of {size:,} tokens kept; {before:,} to {after:,} parameters"
        context.progress("vocabulary", 1, 1)
        details = {"tokens_before": size, "tokens_after": len(kept), "kept": kept}
        return student, Change("vocabulary", len(kept) < size, why, details)

    def same_tokens(self, teacher: Model, student: Model) -> Model:
        """`teacher` with just `student`'s tokens, in their order: its other outputs stay the same numbers."""
        module = copy.deepcopy(teacher.module).eval()
        shrink(module, [int(number) for number in dense_numbers(teacher.tokenizer, student.tokenizer)])
        return replace(teacher, module=module, tokenizer=student.tokenizer)

    def _kept(self, model: Model, feeds: list[Feed], size: int) -> list[int]:
        counts = torch.zeros(size, dtype=torch.int64)
        for feed in feeds:
            tokens = torch.from_numpy(feed["input_ids"])
            if "attention_mask" in feed:
                tokens = tokens[torch.from_numpy(feed["attention_mask"]).bool()]
            counts += torch.bincount(tokens.flatten(), minlength=size)[:size]
        order = torch.argsort(counts, descending=True, stable=True).tolist()
        used = [token for token in order if counts[token] >= self.minimum_count][: self.largest]
        tokenizer: Any = model.tokenizer
        kept = closed(tokenizer, used)
        for token in order:
            if len(kept) % self.multiple_of == 0:
                break
            if token < len(tokenizer):
                kept |= closed(tokenizer, [token])
        return sorted(token for token in kept if token < size)


def _row(feed: Feed, row: int) -> list[int]:
    tokens = feed["input_ids"][row]
    real = feed["attention_mask"][row].astype(bool) if "attention_mask" in feed else slice(None)
    return [int(token) for token in tokens[real]]


def prove(before: Any, after: Any, kept: list[int], samples: list[list[int]]) -> None:
    """Encode the samples' texts with both tokenizers: kept tokens must map one to one, and texts come back the same.

    Raises ModelError naming the first text that does not.
    """
    places = {token: place for place, token in enumerate(kept)}
    for sample in samples:
        text = before.decode(sample, skip_special_tokens=True)
        old, new = before(text)["input_ids"], after(text)["input_ids"]
        if all(token in places for token in old) and [places[token] for token in old] != new:
            raise ModelError(f"vocabulary: the rewritten tokenizer splits {text[:80]!r} in another way")
        if before.unk_token_id not in old and after.unk_token_id is not None and after.unk_token_id in new:
            raise ModelError(f"vocabulary: the rewritten tokenizer does not know a part of {text[:80]!r}")


def shrink(module: torch.nn.Module, kept: list[int]) -> None:
    """Keep the rows of the token embedding and of the head that are in `kept`, in place; tied ones stay tied."""
    index = torch.tensor(kept)
    table: Any = module.get_input_embeddings()  # type: ignore[operator]
    head: Any = module.get_output_embeddings()  # type: ignore[operator]
    tied = head is not None and head.weight is table.weight
    size = table.num_embeddings
    table.weight = torch.nn.Parameter(table.weight.detach()[index].clone())
    table.num_embeddings = len(kept)
    if table.padding_idx is not None:
        table.padding_idx = kept.index(table.padding_idx) if table.padding_idx in kept else None
    if head is not None:
        head.weight = table.weight if tied else torch.nn.Parameter(head.weight.detach()[index].clone())
        head.out_features = len(kept)
        for part in module.modules():  # the head's bias, which BERT keeps under two names
            bias = getattr(part, "bias", None)
            if isinstance(bias, torch.nn.Parameter) and bias.shape == (size,) and (part is head or bias is head.bias):
                part.bias = torch.nn.Parameter(bias.detach()[index].clone())
    _renumber(module, kept, size)


def _renumber(module: torch.nn.Module, kept: list[int], size: int) -> None:
    """Vocabulary size and token numbers in every config of the module; a number that is gone becomes None."""
    places = {token: place for place, token in enumerate(kept)}
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    generation = getattr(module, "generation_config", None)
    for config in [*configs.values(), *([generation] if generation is not None else [])]:
        for name, value in list(vars(config).items()):
            if name == "vocab_size" and value == size:
                setattr(config, name, len(kept))
            elif name.endswith(("token_id", "token_ids")):
                if isinstance(value, int):
                    setattr(config, name, places.get(value))
                elif isinstance(value, list) and all(isinstance(item, int) for item in value):
                    setattr(config, name, [places[item] for item in value if item in places])
    for part in module.modules():
        for name in ("padding_idx", "vocab_size"):
            value = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(part, torch.nn.Embedding):
                changed = len(kept) if name == "vocab_size" and value == size else places.get(value, value)
                setattr(part, name, changed)
