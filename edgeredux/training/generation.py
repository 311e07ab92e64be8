"""Sequences that a language model writes itself: by the teacher (sequence-level) or by the student (on-policy)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeredux.batching import length
from edgeredux.model import Model
from edgeredux.seams import Feed, Progress, silent
from edgeredux.training.losses.positions import POSITIONS
from edgeredux.training.verified import key_of, read, write


def continued(
    model: Model, prompts: torch.Tensor, new_tokens: int, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """`prompts` [batch, tokens] with `new_tokens` sampled at `temperature` behind each (0: the likeliest), int64.

    After an end-of-sequence token a row goes on with that token; `marked` finds the first of them.
    """
    module = model.module
    end = end_of_sequence(model)
    sequence = prompts
    state = None
    done = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    with torch.no_grad(), _resting(module):
        for _ in range(new_tokens):
            given = sequence if state is None else sequence[:, -1:]
            mask = torch.ones_like(sequence)
            out = module(input_ids=given, attention_mask=mask, past_key_values=state, use_cache=True, return_dict=True)
            state = out.past_key_values
            logits = out.logits[:, -1].float().cpu()  # drawn on the CPU: the same numbers on every device
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            token = token.to(sequence.device)
            if end is not None:
                token = torch.where(done, torch.full_like(token, end), token)
                done = done | (token == end)
            sequence = torch.cat([sequence, token[:, None]], 1)
    return sequence


@contextmanager
def _resting(module: torch.nn.Module) -> Iterator[None]:
    """Every part in eval mode: no dropout, and layers that recompute activations keep their cache meanwhile."""
    busy = [part for part in module.modules() if part.training]
    for part in busy:
        part.training = False
    try:
        yield
    finally:
        for part in busy:
            part.training = True


def end_of_sequence(model: Model) -> int | None:
    """The token that ends a text, None where the config names none."""
    said = getattr(model.module.config, "eos_token_id", None)
    said = said[0] if isinstance(said, (list, tuple)) and said else said
    return said if isinstance(said, int) else None


class Generated:
    """Batches whose texts go on as `model` writes them, for a share of the batch numbers; the others as they are.

    A batch is its samples' first `prompt_tokens` tokens (fewer if one is shorter) and `new_tokens` more. Only
    positions that predict new tokens count (feed entry "positions"), up to the first end of sequence. Which batches
    these are, and every draw, is a function of seed and batch number; of the model's weights at that moment, too.
    """

    def __init__(
        self,
        model: Model,
        batches: Callable[[int], Feed],
        *,
        share: float,
        prompt_tokens: int,
        new_tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        self._model = model
        self._batches = batches
        self._share = share
        self._prompt = prompt_tokens
        self._new = new_tokens
        self._temperature = temperature
        self._seed = seed

    def chosen(self, number: int) -> bool:
        """Whether batch `number` is generated: Bernoulli(share), GKD's algorithm 1."""
        return bool(torch.rand((), generator=self._generator(number, 0)) < self._share)

    def __call__(self, number: int) -> Feed:
        """Batch `number`."""
        feed = self._batches(number)
        if not self.chosen(number):
            return feed
        length = max(1, min(self._prompt, int(feed["attention_mask"].sum(1).min())))
        device = next(self._model.module.parameters()).device
        prompts = torch.from_numpy(feed["input_ids"][:, :length]).to(device)
        written = continued(self._model, prompts, self._new, self._temperature, self._generator(number, 1))
        return marked(written.cpu().numpy(), length, end_of_sequence(self._model))

    def _generator(self, number: int, purpose: int) -> torch.Generator:
        mixed = np.random.SeedSequence([self._seed, number, purpose]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(mixed) >> 1)


def marked(sequence: np.ndarray[Any, Any], prompt: int, end: int | None) -> Feed:
    """The feed of written sequences: everything behind the first end of sequence is padding."""
    mask = np.ones_like(sequence)
    if end is not None:
        ended = np.cumsum(sequence[:, prompt:] == end, 1)
        mask[:, prompt + 1 :] = ended[:, :-1] == 0
    positions = np.zeros(sequence.shape, np.bool_)
    positions[:, prompt - 1 : -1] = mask[:, prompt:] == 1  # position t predicts token t + 1
    return {"input_ids": sequence, "attention_mask": mask, POSITIONS: positions}


def rewritten(
    teacher: Model,
    samples: Sequence[Feed],
    folder: Path,
    *,
    share: float,
    prompt_tokens: int,
    new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    progress: Progress = silent,
) -> list[Feed]:
    """The samples with a `share` of them continued by the teacher: the data of sequence-level distillation.

    Kim and Rush 2016, section 3.2 (there by beam search, here sampled, or greedy at temperature 0). Written once to
    `folder`, part by part, so that a killed run goes on; samples of up to `prompt_tokens` tokens keep one as a prompt.
    """
    options = f"{share} {prompt_tokens} {new_tokens} {temperature} {seed} {batch_size}"
    key = key_of(f"sequences {options}", teacher, samples)
    (folder / key).mkdir(parents=True, exist_ok=True)
    picked = torch.rand(len(samples), generator=torch.Generator().manual_seed(seed)) < share
    order = sorted((i for i in range(len(samples)) if bool(picked[i])), key=lambda place: length(samples[place]))
    made: list[Feed] = [{**sample, POSITIONS: sample["attention_mask"] == 1} for sample in samples]
    device = next(teacher.module.parameters()).device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        path = folder / key / f"{start // batch_size:05d}.safetensors"
        prompt = max(1, min(prompt_tokens, length(samples[chosen[0]])))
        if not path.is_file():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start + 1)
            prompts = np.concatenate([samples[place]["input_ids"][:, :prompt] for place in chosen])
            written = continued(teacher, torch.from_numpy(prompts).to(device), new_tokens, temperature, generator)
            write(path, {"sequence": written.cpu()}, key)
        rows = marked(read(path, key)["sequence"].numpy(), prompt, end_of_sequence(teacher))
        for row, place in enumerate(chosen):
            real = rows["attention_mask"][row] == 1
            made[place] = {name: value[row : row + 1, real] for name, value in rows.items()}
        progress("teacher's texts", start + len(chosen), len(order))
    return made
