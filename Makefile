# What people and CI call. `make help` lists the targets.

# What .venv was made for; `make setup DEVICE=cuda` makes one for CUDA.
DEVICE ?= $(shell cat .venv/.mmr1-device 2>/dev/null || echo cpu)
BIN := .venv/bin
PACKAGES := services reward_server rollout_server learner tests scripts benchmarks examples
# A worker for each of two cores, files in the order of collection: the long ones, tests/e2e, come early.
WORKERS ?= 2
# One thread a process: the tests start several that run torch at once.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup demo results test test-matrix test-chaos chaos test-compose images sbom test-reward test-peers fuzz check format proto doctor clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv (DEVICE=cpu or cuda); nothing happens when it is up to date
	@scripts/setup.sh $(DEVICE)

demo: setup  ## the whole stack learns to count digits in a few minutes; results in runs/demo
	@$(BIN)/mmr1 demo counting --run_dir runs/demo $(OPTIONS)

results: setup  ## every demo with three seeds and a control, as far as not done, and docs/results.md; hours
	@$(BIN)/python benchmarks/results.py $(OPTIONS)

PYTEST_COMMAND = $(TEST_ENVIRONMENT) $(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup  ## the tests, but for the next two and a GPU's; TESTS=path and PYTEST='-k name' narrow it, WORKERS=0 shows output
	@$(PYTEST_COMMAND) -m "not gpu and not chaos and not matrix and not compose" $(PYTEST)

test-matrix: setup  ## every model family against vLLM; every ZeRO stage and number of ranks
	@$(PYTEST_COMMAND) -m matrix $(PYTEST)

test-chaos: setup  ## a few minutes of faults: parts of a real stack are killed and frozen
	@$(PYTEST_COMMAND) -m "chaos and not mutation" $(PYTEST)

chaos: setup  ## every kind of fault and a table of them; then guarantees broken on purpose, which must be noticed. Half an hour
	@$(TEST_ENVIRONMENT) $(BIN)/python -m tests.chaos $(FAULTS)
	@$(PYTEST_COMMAND) -m mutation $(PYTEST)

test-compose: setup  ## docker-compose.yml under podman from nothing, as root: images, the demonstration, what is killed
	@tests/compose/images.sh
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest $(TESTS) -m compose $(PYTEST)

images:  ## the images of docker-compose.yml with an engine that reaches a registry (ENGINE=docker or podman)
	@scripts/images.sh $(ENGINE)

sbom:  ## a bill of materials (CycloneDX) of each image's Python packages, in sbom/
	@scripts/sbom.sh $(ENGINE)

test-reward:  ## the reward server by itself, in an empty environment
	@scripts/test_reward_alone.sh

test-peers:  ## other projects' own clients against the reward server; PEERS='openrlhf trl' narrows it
	@scripts/test_peers.sh $(PEERS)

fuzz:  ## search for inputs that break the reward server; SECONDS=240, TARGETS='parsers tasks', REPLAY=file narrow it
	@scripts/fuzz_reward.sh $(if $(SECONDS),--seconds $(SECONDS)) $(if $(TARGETS),--targets $(TARGETS)) $(if $(REPLAY),--replay $(REPLAY))

check: setup  ## style, types, who imports whom, and generated files against their sources
	$(BIN)/ruff check $(wildcard $(PACKAGES))
	$(BIN)/ruff format --check $(wildcard $(PACKAGES))
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python scripts/generate_stubs.sh --check

format: setup  ## ruff's fixes and layout
	$(BIN)/ruff check --fix $(wildcard $(PACKAGES))
	$(BIN)/ruff format $(wildcard $(PACKAGES))

proto: setup  ## generate services/mmr1/wire/v1 from proto/
	@PYTHON=$(BIN)/python scripts/generate_stubs.sh

doctor:  ## check this machine, before set-up (what set-up needs) and after it (everything)
	@if [ -x $(BIN)/mmr1 ]; then $(BIN)/mmr1 doctor; else scripts/setup.sh --check; fi

clean:  ## remove the environment, caches and runs/demo; datasets and other runs stay
	rm -rf .venv .venv-peers .venv-reward .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf services/*.egg-info reward_server/*.egg-info rollout_server/*.egg-info learner/*.egg-info
