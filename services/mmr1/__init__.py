"""What MMR1's services share, and the supervisor that runs them on one machine. No torch, no vLLM."""

__version__ = "0.1.0"
