"""The whole stack on one machine: `mmr1 up CONFIG`. Other processes are started as programs, never imported."""
