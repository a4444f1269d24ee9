"""`mmr1 eval`: a model evaluated on its own, without a run. What the metrics are is `mmr1.evaluation`'s part."""
