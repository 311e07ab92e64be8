"""The JSON Schema of target files, for completion in editors: made from the code, shipped as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeredux import registry
from edgeredux.recipe import METRICS
from edgeredux.target import Target

SCHEMA_FILE = Path(__file__).parent / "schemas" / "target.schema.json"


def schema() -> dict[str, Any]:
    """Draft 2020-12; names of runners, meters and budget metrics are enumerations of what there is."""
    made: dict[str, Any] = Target.model_json_schema()
    parts, properties = made["$defs"], made["properties"]
    parts["RuntimeSection"]["properties"]["runner"]["enum"] = sorted(registry.table("runner"))
    parts["EnergySection"]["properties"]["meter"]["items"]["enum"] = sorted(registry.table("meter"))
    properties["budget"]["propertyNames"] = {"enum": list(METRICS)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgeredux target",
        **{name: value for name, value in made.items() if name != "title"},
    }


def text() -> str:
    """The schema as the shipped file holds it."""
    return json.dumps(schema(), indent=1) + "\n"
