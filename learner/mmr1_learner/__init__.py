"""The learner: groups in, optimizer steps, proven weight updates out."""

__version__ = "0.1.0"
