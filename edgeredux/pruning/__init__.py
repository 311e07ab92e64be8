"""Pruning: one method a file. Name -> "module:Class"."""

TABLE = {
    "student": "edgeredux.pruning.student:Student",
    "movement": "edgeredux.pruning.movement:Movement",
    "depth": "edgeredux.pruning.depth:Depth",
    "vocabulary": "edgeredux.pruning.vocabulary:Vocabulary",
    "sensitivity": "edgeredux.pruning.sensitivity_step:Sensitivity",
    "prune_until": "edgeredux.pruning.until:PruneUntil",
    "prune": "edgeredux.pruning.unstructured:Prune",
    "width": "edgeredux.pruning.width:Width",
    "channels": "edgeredux.pruning.channels:Channels",
    "structured": "edgeredux.pruning.structured:Structured",
}
