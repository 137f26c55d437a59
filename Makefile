# make demo    two real programs under the gate: what they may do, what they may not, and the proof
#              (DEMO_MODEL=NAME asks a real model, with OPENAI_API_KEY or ANTHROPIC_API_KEY;
#              ISOLATION=vm puts both into virtual machines, EMULATE=1 without KVM, slowly)
# make test    lint, types and tests, on two processors at once (a single file: .venv/bin/python -m pytest FILE)
# make lint    lint and types alone
# make prove   the kernel searched exhaustively, and each of its mutants killed
# make bench   the table of benchmarks (QUICK=1, ONLY=name)
# make bench-agentdojo   injected instructions against the gate: AgentDojo (QUICK=1)
# make clean   everything that the above made in this folder
#
# Each sets up what it needs first (scripts/setup.sh); the second time that takes no time.

.PHONY: help demo test lint prove bench bench-agentdojo clean setup setup-bench
.NOTPARALLEL:
.DEFAULT_GOAL := help

AS_OWNER := scripts/as-owner.sh
BIN := $(AS_OWNER) .venv/bin

help:
	@sed -n 's/^# //p' Makefile | head -9

setup:
	@scripts/setup.sh

setup-bench: setup
	@scripts/setup.sh --bench

demo: setup
	@$(BIN)/python examples/demo/run.py $(if $(ISOLATION),--isolation $(ISOLATION)) $(if $(EMULATE),--emulate)

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary

test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile

prove: setup
	@$(BIN)/python -m authority.proof.kernel

bench: setup-bench
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

bench-agentdojo: setup
	@scripts/setup-agentdojo.sh
	@$(BIN)/python -m benchmarks.agentdojo $(if $(QUICK),--quick)

clean:
	@rm -rf .venv .venv-agentdojo build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
