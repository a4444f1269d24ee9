"""The rollout server: vLLM behind gRPC, fed by the prompt stream, kept at the learner's weights."""
