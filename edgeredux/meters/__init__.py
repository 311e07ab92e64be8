"""Energy meters, one a file. Name -> "module:Class"."""

TABLE: dict[str, str] = {}
