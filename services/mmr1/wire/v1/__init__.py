"""Generated from proto/mmr1/v1 by `make proto`. Do not edit."""
