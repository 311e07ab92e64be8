"""Rules for operators that move, cut and join dimensions (see coupling_rules.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeredux.pruning.coupling import Book, Dims, Labels
from edgeredux.pruning.coupling_rules import Call, fixed, give_up, pin_dims, rule


@rule("aten.permute")
def permute(book: Book, call: Call) -> Dims:
    return tuple(call.first[d] for d in call.args["dims"])


@rule("aten.transpose", "aten.t", "aten.swapaxes", "aten.swapdims", "aten.transpose_")
def transpose(book: Book, call: Call) -> Dims:
    x = list(call.first)
    a, b = (call.dim(d) for d in [value for value in call.args.values() if isinstance(value, int)] or (0, -1))
    x[a], x[b] = x[b], x[a]
    return tuple(x)


@rule("aten.movedim")
def movedim(book: Book, call: Call) -> Dims:
    source, target = (value if isinstance(value, list) else [value] for value in list(call.args.values())[1:3])
    rank = len(call.first)
    moved = {call.dim(t): call.dim(s) for s, t in zip(source, target, strict=True)}
    rest = iter(index for index in range(rank) if index not in moved.values())
    return tuple(call.first[moved[index] if index in moved else next(rest)] for index in range(rank))


@rule("aten.unsqueeze", "aten.unsqueeze_")
def unsqueeze(book: Book, call: Call) -> Dims:
    x = list(call.first)
    x.insert(call.dim(call.args["dim"], len(x) + 1), fixed(1))
    return tuple(x)


@rule("aten.squeeze", "aten.squeeze_")
def squeeze(book: Book, call: Call) -> Dims:
    dim = call.args.get("dim")
    which = range(len(call.first)) if dim is None else [call.dim(d) for d in (dim if isinstance(dim, list) else [dim])]
    return tuple(labels for index, labels in enumerate(call.first) if index not in which or len(labels) != 1)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(book: Book, call: Call) -> Dims:
    x = call.first
    lead = len(call.shape) - len(x)
    return tuple(
        x[index - lead] if index >= lead and len(x[index - lead]) == size else fixed(size)
        for index, size in enumerate(call.shape)
    )


@rule("aten.repeat", "aten.tile")
def repeat(book: Book, call: Call) -> Dims:
    x = call.first
    lead = len(call.shape) - len(x)
    out = []
    for index, size in enumerate(call.shape):
        labels = x[index - lead] if index >= lead else fixed(1)
        if len(labels) != size and len(labels) > 1:
            labels = np.tile(labels, size // len(labels))
        out.append(labels if len(labels) == size else fixed(size))
    return tuple(out)


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(book: Book, call: Call) -> Dims:
    """One after the other along `dim`; the other dimensions are the same ones."""
    parts = [part for part in call.first if len(part) == len(call.shape)]  # torch lets an empty 1-D tensor be there
    dim = call.dim(call.args["dim"], len(call.shape))
    out: list[Labels] = []
    for index in range(len(call.shape)):
        if index == dim:
            out.append(np.concatenate([part[index] for part in parts]))
            continue
        for part in parts[1:]:
            book.join(parts[0][index], part[index], f"joined with what must stay at {call.node.name}")
        out.append(parts[0][index])
    return tuple(out)


@rule("aten.stack")
def stack(book: Book, call: Call) -> Dims:
    parts = list(call.first)
    for part in parts[1:]:
        for a, b in zip(parts[0], part, strict=True):
            book.join(a, b, f"joined with what must stay at {call.node.name}")
    out = list(parts[0])
    out.insert(call.dim(call.args["dim"], len(call.shape)), fixed(len(parts)))
    return tuple(out)


@rule("aten.chunk", "aten.split", "aten.split_with_sizes", "aten.tensor_split", "aten.unsafe_chunk", "aten.glu")
@rule("aten.unsafe_split")
def split(book: Book, call: Call) -> Any:
    """Equal parts lose the same positions, so that they stay equal and the cuts stay where they were."""
    x, dim = call.first, call.dim(call.args["dim"])
    halves = call.name == "aten.glu"
    sizes = [len(x[dim]) // 2] * 2 if halves else [part.shape[dim] for part in call.node.meta["val"]]
    if len(set(sizes)) > 1:
        book.pin(x[dim], f"{call.node.name} cuts them into unequal parts")
    else:
        book.join(np.tile(x[dim][: sizes[0]], len(sizes)), x[dim], f"a part at {call.node.name} must stay")
    parts = np.split(x[dim], np.cumsum(sizes)[:-1])
    outs = [(*x[:dim], part, *x[dim + 1 :]) for part in parts]
    return outs[0] if halves else outs


@rule("aten.unbind")
def unbind(book: Book, call: Call) -> Any:
    x, dim = call.first, call.dim(call.args["dim"])
    pin_dims(book, call, x, [dim])
    return [(*x[:dim], *x[dim + 1 :])] * len(x[dim])


@rule("aten.select")
def select(book: Book, call: Call) -> Dims:
    x, dim = call.first, call.dim(call.args["dim"])
    pin_dims(book, call, x, [dim])
    return (*x[:dim], *x[dim + 1 :])


@rule("aten.index")
def index(book: Book, call: Call) -> Any:
    """Leading dimensions chosen by number, as rows of a position table; those behind them stay as they are."""
    x, chosen = call.first, call.args["indices"]
    count = len(chosen)
    if any(part is None or part == () for part in chosen):
        return give_up(book, call, f"there is no rule for {call.name} of later dimensions")
    pin_dims(book, call, x, list(range(count)))
    behind = x[count:]
    return (*map(fixed, call.shape[: len(call.shape) - len(behind)]), *behind)


@rule("aten.slice", "aten.narrow")
def slice_(book: Book, call: Call) -> Dims:
    """A cut at a number: positions before it stay, or the number would mean another position."""
    x, dim = call.first, call.dim(call.args["dim"])
    size = len(x[dim])
    if call.name == "aten.narrow":
        start, step = call.args["start"] % size, 1
        stop = start + call.args["length"]
    else:
        start, stop, step = slice(call.args["start"], call.args["end"], call.args["step"]).indices(size)
    why = f"{call.node.name} cuts at a fixed position"
    if (start, stop, step) != (0, size, 1):
        book.pin(x[dim] if step != 1 else x[dim][: stop if stop < size else start], why)
    return (*x[:dim], x[dim][start:stop:step], *x[dim + 1 :])


@rule("aten.pad", "aten.constant_pad_nd")
def pad(book: Book, call: Call) -> Dims:
    """Constants around what is there; they stay."""
    x, sides = list(call.first), call.args["pad"]
    constant = call.args.get("mode", "constant") == "constant"
    for place in range(len(sides) // 2):
        dim, (left, right) = len(x) - 1 - place, sides[2 * place : 2 * place + 2]
        if (left, right) == (0, 0):
            continue
        if left < 0 or right < 0 or not constant:
            book.pin(x[dim], f"{call.node.name} cuts or mirrors them")
            x[dim] = fixed(call.shape[dim])
        else:
            x[dim] = np.concatenate([fixed(left), x[dim], fixed(right)])
    return tuple(x)


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as")
@rule("aten.reshape_as")
def reshape(book: Book, call: Call) -> Dims:
    """Dimensions are kept, merged (each label many times) or split (whole parts, or one position of every part)."""
    x, shape = call.first, call.shape
    if 0 in shape:
        return give_up(book, call, f"{call.node.name} has no elements")  # type: ignore[no-any-return]
    asked = call.args.get("size", call.args.get("shape", call.args.get("sizes")))
    free = asked.index(-1) if isinstance(asked, list) and call.name != "aten.unflatten" and -1 in asked else None
    out: list[Labels] = [fixed(size) for size in shape]
    i = j = 0
    while i < len(x) and j < len(shape):
        first, last, a, b = i, j, len(x[i]), shape[j]
        while a != b:
            if a < b:
                i += 1
                a *= len(x[i])
            else:
                j += 1
                b *= shape[j]
        _regroup(book, call, list(x[first : i + 1]), list(range(last, j + 1)), out, free)
        i, j = i + 1, j + 1
    return tuple(out)


def _regroup(book: Book, call: Call, given: list[Labels], into: list[int], out: list[Labels], free: int | None) -> None:
    """Labels of the output dimensions `into` that hold the same elements, in the same order, as `given`."""
    wide = [index for index in into if len(out[index]) > 1]
    moving = [labels for labels in given if labels.any()]
    if not moving:
        return
    sizes = [len(labels) for labels in given if len(labels) > 1]
    if len(moving) > 1 or (len(wide) > 1 and len(sizes) > 1):
        for labels in moving:
            book.pin(labels, f"{call.node.name} mixes dimensions")
        return
    labels = moving[0]
    if len(wide) <= 1:
        at = next(index for index, part in enumerate(given) if part is labels)
        before = int(np.prod([len(part) for part in given[:at]], dtype=np.int64))
        after = int(np.prod([len(part) for part in given[at + 1 :]], dtype=np.int64))
        out[wide[0] if wide else into[0]] = np.tile(np.repeat(labels, after), before)
        return
    # One dimension into several: the one of size -1 gives way, else the last (a view of [groups, channels / groups]).
    flexible = free if free in wide else wide[-1]
    sizes = [len(out[index]) for index in wide]
    table = np.moveaxis(labels.reshape(sizes), wide.index(flexible), 0)
    lead = table.reshape(len(table), -1)
    book.join(np.repeat(lead[:, 0], lead.shape[1]), lead.ravel(), f"its part at {call.node.name} must stay")
    out[flexible] = lead[:, 0].copy()


@rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
def pixel_shuffle(book: Book, call: Call) -> Dims:
    """r * r neighbouring channels are one channel at r times the resolution, and back."""
    x = call.first
    axis = len(x) - 3
    pin_dims(book, call, x, [axis + 1, axis + 2])
    if call.name == "aten.pixel_unshuffle":
        channels = np.repeat(x[axis], call.shape[axis] // len(x[axis]))
    else:
        area = len(x[axis]) // call.shape[axis]
        channels = x[axis][::area]
        book.join(np.repeat(channels, area), x[axis], f"its neighbour at {call.node.name} must stay")
    return (*x[:axis], channels, *map(fixed, call.shape[-2:]))


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(book: Book, call: Call) -> Dims:
    """[groups, n] to [n, groups]: position j of every group goes together."""
    x, groups = call.first, call.args["groups"]
    parts = x[1].reshape(groups, -1)
    book.join(np.tile(parts[0], groups), x[1], f"its position at {call.node.name} must stay")
    return (x[0], parts.T.ravel().copy(), *x[2:])
