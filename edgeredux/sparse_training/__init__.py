"""Sparse training: one method a file. Name -> "module:Class"."""

TABLE = {
    "static": "edgeredux.sparse_training.static:Static",
    "set": "edgeredux.sparse_training.set:Set",
    "rigl": "edgeredux.sparse_training.rigl:Rigl",
    "gradual": "edgeredux.sparse_training.gradual:Gradual",
    "l1": "edgeredux.sparse_training.l1:L1",
    "group_lasso": "edgeredux.sparse_training.group_lasso:GroupLasso",
}
