"""Pruning: one method a file. Name -> "module:Class"."""

TABLE = {
    "prune": "edgeredux.pruning.unstructured:Prune",
    "channels": "edgeredux.pruning.channels:Channels",
    "structured": "edgeredux.pruning.structured:Structured",
}
