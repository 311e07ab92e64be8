"""Pruning: one method a file. Name -> "module:Class"."""

TABLE = {
    "prune": "edgeredux.prune.unstructured:Prune",
    "structured": "edgeredux.prune.structured:Structured",
}
