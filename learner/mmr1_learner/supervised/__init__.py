"""Supervised fine-tuning, `mmr1 sft`: a model learns to say the solutions of a dataset. Knows no queue, no server."""
