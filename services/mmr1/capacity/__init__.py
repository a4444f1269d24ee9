"""`mmr1 plan`: what a run would need of N GPUs and how fast it would be, before there is one.

It computes from shapes and from the few measured figures in `measured.py`; it needs no torch, no GPU and no weights,
and does not know the machine that it runs on.
"""
