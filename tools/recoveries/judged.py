"""What a recovered model is worth: dev quality, exact zeros by layer, and how it was made; no weights."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reduction import pruned, stsb

import edgeredux
from edgeredux import bundle, loading

# Recipe -> how far dev Spearman may be below the dense model's, and the least cosine, as asked.
ASKED = {
    "half-structured": (0.010, 0.90),
    "two-of-four": (0.005, None),
    "quarter-unstructured": (0.012, None),
    "ffn-quarter-removed": (0.003, None),
}


def judge(folder: Path, data: Path) -> dict[str, Any]:
    """Readings of the bundle that `edgeredux reduce` wrote. Raises an EdgereduxError when it is none."""
    manifest = bundle.read_manifest(folder)
    bundle.verify(folder, manifest)
    recipe = manifest["recipe"]
    dense = edgeredux.load(recipe["model"], max_length=stsb.MAX_LENGTH)
    model = loading.load_reduced(folder / "pytorch", dense)
    judged = stsb.Judge(dense, data)
    quality = judged.score(model)
    zeros, weights = pruned.count_zeros(model)
    pattern = next((options.get("pattern", "") for step in recipe["reduce"] for options in step.values()), "")
    found: dict[str, Any] = {
        "recipe": recipe["name"],
        "recipe_sha256": manifest["identity"]["recipe"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe["seed"],
        "threads": recipe["threads"],
        "seconds": {step["name"]: round(step["seconds"], 1) for step in manifest["steps"] if step["stage"] == "reduce"},
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "scipy")},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count()},
        "model_sha256": manifest["identity"]["model"],
        "data_sha256": manifest["identity"]["data"],
        "split": "STS-B English dev, 1500 pairs",
        "dense_spearman": round(judged.dense_spearman, 6),
        **quality.to_json(),
        "drop": round(judged.dense_spearman - quality.spearman, 6),
        "parameters": {"dense": dense.parameters(), "recovered": model.parameters()},
        "exact_zeros": {"weights": weights, "zeros": zeros, "density_by_layer": pruned.densities(model)},
    }
    if ":" in pattern:
        found["exact_zeros"]["broken_groups"] = pruned.broken_groups(model, pattern)
    if recipe["name"] in ASKED:
        drop, cosine = ASKED[recipe["name"]]
        found["asked"] = {"drop_at_most": drop, "cosine_at_least": cosine}
        kept = found["drop"] <= drop and (cosine is None or quality.cosine >= cosine)
        found["passed"] = kept and not found["exact_zeros"].get("broken_groups")
    return found


def text(found: dict[str, Any]) -> str:
    """A few lines for people."""
    counts = found["exact_zeros"]
    densities = counts["density_by_layer"].values()
    lines = [
        f"{found['recipe']}: dev Spearman {found['spearman']:.4f} (dense {found['dense_spearman']:.4f}, "
        f"drop {found['drop']:.4f}), cosine to dense {found['cosine']:.4f}",
        f"{counts['zeros']:,} of {counts['weights']:,} weights of the prunable layers are exactly zero; "
        f"density by layer {min(densities):.4f} to {max(densities):.4f}",
    ]
    if "broken_groups" in counts:
        lines.append(f"groups that do not keep the pattern: {counts['broken_groups']}")
    if "asked" in found:
        lines.append(f"asked {found['asked']}: {'reached' if found['passed'] else 'NOT REACHED'}")
    return "\n".join(lines)
