"""Distillation from the dense model. Name -> "module:Class"."""

TABLE = {
    "distill": "edgeredux.distillation.step:Distill",
}
