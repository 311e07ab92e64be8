"""Pruning: one method a file. Name -> "module:Class"."""

TABLE = {
    "movement": "edgeredux.pruning.movement:Movement",
    "prune": "edgeredux.pruning.unstructured:Prune",
    "channels": "edgeredux.pruning.channels:Channels",
    "structured": "edgeredux.pruning.structured:Structured",
}
