"""Distillation from the dense model, shallower students, fine-tuning on labels. Name -> "module:Class"."""

TABLE = {
    "distill": "edgeredux.distillation.step:Distill",
    "student": "edgeredux.distillation.student:Student",
    "finetune": "edgeredux.distillation.finetune:Finetune",
}
