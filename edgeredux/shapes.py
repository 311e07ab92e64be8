"""The shapes of a reduced module that its own class cannot know: written beside the weights, given back before loading.

`edgeredux_shapes.json` holds, by name, the shape of every parameter and buffer and every attribute that is a number or
numbers (`in_channels`, `groups`, `normalized_shape`, a head count, a scale) and differs from the module as its code or
config builds it:

    {"shapes": {"<parameter or buffer>": [4, 8, 3, 3]}, "attributes": {"<module>.<attribute>": 4 or 0.5 or [4]}}

"<module>.config.num_attention_heads" stands for a layer that has a config of its own, since it reads its heads there.

No kind of module is special, so whatever shrinks can be saved. Only what the module already has is ever set.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.errors import ModelError, one_line

if TYPE_CHECKING:
    import torch

SHAPES_FILE = "edgeredux_shapes.json"
_LARGEST = 2**24
_OWN_HEADS = "num_attention_heads"


def read(folder: Path, text: str) -> dict[str, Any] | None:
    """What edgeredux_shapes.json says, checked; None when the folder has none. Raises ModelError naming `text`."""
    path = folder / SHAPES_FILE
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        for shape in said["shapes"].values():
            if not isinstance(shape, list) or not all(_whole(size) and 0 < size < _LARGEST for size in shape):
                raise ValueError(f"impossible shape {shape}")
        for value in said["attributes"].values():
            if not _number(value) and not (isinstance(value, list) and all(map(_whole, value))):
                raise ValueError(f"attribute value {value!r} is no finite number")
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(one_line(f"model {text}: {SHAPES_FILE} is damaged: {problem}")) from problem
    return dict(said)


def write(folder: Path, said: Mapping[str, Any]) -> None:
    """Write edgeredux_shapes.json; same shapes, same bytes."""
    (folder / SHAPES_FILE).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def describe(module: torch.nn.Module) -> dict[str, Any]:
    """Every shape and number attribute of a module."""
    shapes = {name: list(value.shape) for name, value in _tensors(module).items() if value.dim()}
    return {"shapes": shapes, "attributes": _attributes(module)}


def differences(module: torch.nn.Module, stock: torch.nn.Module) -> dict[str, Any] | None:
    """What of `describe(module)` is not so in `stock`; None when nothing. Raises ModelError for a part it lacks."""
    here, there = describe(module), describe(stock)
    if extra := sorted(set(here["shapes"]) - set(there["shapes"])):
        raise ModelError(f"{extra[0]!r} is not in the stock {type(module).__name__}: it cannot be saved so")
    said = {
        kind: {
            name: value
            for name, value in here[kind].items()
            # The stock module has no layer with a config of its own, and not every number that a pruned one has.
            if there[kind].get(name, None if name.endswith(f".config.{_OWN_HEADS}") else value) != value
        }
        for kind in ("shapes", "attributes")
    }
    return said if said["shapes"] or said["attributes"] else None


def stock(module: torch.nn.Module, config: Any) -> torch.nn.Module:
    """The transformers module that this module's class builds from a config, without memory for its weights."""
    import torch

    kind: Any = type(module)
    with torch.device("meta"):
        made: torch.nn.Module = kind._from_config(config) if hasattr(kind, "_from_config") else kind(config)
    return made


def resize(module: torch.nn.Module, said: Mapping[str, Any], text: str) -> None:
    """Give parameters, buffers and attributes of `module` what `said` says, in place; resized tensors are zeros.

    Tensors that share one parameter still do afterwards. Raises ModelError for a name this module does not have.
    """
    import torch

    tensors, modules = _tensors(module), dict(module.named_modules())
    made: dict[int, torch.Tensor] = {}
    for name, shape in said["shapes"].items():
        old = tensors.get(name)
        if old is None or old.dim() != len(shape):
            raise ModelError(f"model {text}: {SHAPES_FILE} names {name!r}, which this model has not in {len(shape)}-D")
        if list(old.shape) == list(shape):
            continue
        if id(old) not in made:
            new = torch.zeros(shape, dtype=old.dtype, device=old.device)
            made[id(old)] = torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
        owner, _, key = name.rpartition(".")
        setattr(modules[owner], key, made[id(old)])
    for place, value in said["attributes"].items():
        owner, _, key = place.rpartition(".")
        home: Any = modules.get(owner)
        if home is None and owner.endswith(".config") and key == _OWN_HEADS:
            part: Any = modules.get(owner.removesuffix(".config"))
            if hasattr(part, "config"):
                home = part.config = copy.deepcopy(part.config)
        old = getattr(home, key, None)
        if not (type(old) is type(value) if _number(value) else _sizes(old) and len(old) == len(value)):  # type: ignore[arg-type]
            raise ModelError(f"model {text}: {SHAPES_FILE} names {place!r}, which this model does not have")
        setattr(home, key, value if _number(value) else tuple(value))


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and the buffers that are saved, by name; shared ones under each of their names."""
    saved = module.state_dict(keep_vars=True)
    return {name: value for name, value in saved.items() if hasattr(value, "shape")}


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        dot = f"{name}." if name else ""
        for key, value in vars(part).items():
            if not key.startswith("_") and (_number(value) or _sizes(value)):
                found[dot + key] = list(value) if isinstance(value, tuple) else value
        heads = getattr(vars(part).get("config"), _OWN_HEADS, None)
        if _whole(heads) and heads != getattr(getattr(module, "config", None), _OWN_HEADS, None):
            found[f"{dot}config.{_OWN_HEADS}"] = heads
    return found


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _sizes(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_whole, value))
