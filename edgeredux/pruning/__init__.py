"""Pruning: one method a file. Name -> "module:Class"."""

TABLE = {
    "prune": "edgeredux.pruning.unstructured:Prune",
    "structured": "edgeredux.pruning.structured:Structured",
}
