"""The training loop that distillation, fine-tuning, movement pruning and sparse training share. Imports torch."""
