"""Comparing a model whose tokenizer was rewritten with the dense one: same texts, other token numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeredux.errors import ModelError
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def dense_numbers(dense: Any, rewritten: Any) -> Array:
    """int64 [tokens of `rewritten`]: the number that each of its tokens has in the tokenizer `dense`.

    Raises ModelError for a token that `dense` does not have.
    """
    import numpy as np

    known = dense.get_vocab()
    tokens = sorted(rewritten.get_vocab().items(), key=lambda item: item[1])
    for token, _ in tokens:
        if token not in known:
            raise ModelError(f"tokenizer: the rewritten one has a token {token!r} that the dense one does not have")
    return np.array([known[token] for token, _ in tokens], np.int64)


def comparable(dense: Feed, rewritten: Feed, numbers: Array, longest: int) -> bool:
    """Whether both feeds hold the same text: split alike, or split in another way and neither cut at `longest` tokens.

    A text that one tokenizer cuts earlier is another text; its perplexity is another text's.
    """
    import numpy as np

    ids, other = dense["input_ids"], rewritten["input_ids"]
    mask, other_mask = dense["attention_mask"].astype(bool), rewritten["attention_mask"].astype(bool)
    if bool((mask.sum(1) < longest).all() and (other_mask.sum(1) < longest).all()):
        return True
    return mask.sum() == other_mask.sum() and bool(np.array_equal(ids[mask], numbers[other[other_mask]]))
