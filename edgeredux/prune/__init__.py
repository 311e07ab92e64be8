"""Pruning: one method a file. Name -> "module:Class"."""

TABLE = {
    "structured": "edgeredux.prune.structured:Structured",
}
