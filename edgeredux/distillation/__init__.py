"""Distillation from the dense model and fine-tuning on labels. Name -> "module:Class"."""

TABLE = {
    "distill": "edgeredux.distillation.step:Distill",
    "finetune": "edgeredux.distillation.finetune:Finetune",
}
