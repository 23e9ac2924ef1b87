# dialstream. `make run` shows it, `make test` proves it, `make check` reads it.

SHELL := /bin/sh
PYTHON ?= python3
# uv from the PATH, else one in an environment of the project's own.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --frozen --no-sync

.PHONY: help run test check bench faults kafka deps clean

help:
	@echo "make run     the service with a simulated company on the phone"
	@echo "make test    set everything up, run all tests"
	@echo "make check   lint, format, types"
	@echo "make bench   requests per CPU-second, beside a server that does nothing and a plain app"
	@echo "make faults  starve a real Kafka, live through weeks and a year, and print what was lost"
	@echo "make kafka   a Kafka on 127.0.0.1:9092 to try things with"
	@echo "make deps    the system packages that tests and benchmarks need"

run: .venv/.run
	@.venv/bin/dialstream up --demo

# Kafka's jars first: a network that fails is seen at once.
test: deps .venv/.dev
	$(RUN) python -m tests.kafka.jars
	$(RUN) pytest -n 3 --dist loadfile

check: .venv/.dev
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) codespell
	$(RUN) mypy

bench: deps .venv/.dev
	@command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y -qq wrk >/dev/null; } \
		|| { echo "make bench needs wrk: install it with your system's packages"; exit 2; }
	$(RUN) python -m tests.bench

faults: deps .venv/.dev
	$(RUN) python -m tests.faults
	$(RUN) python -m tests.faults.week
	$(RUN) python -m tests.faults.truth
	$(RUN) python -m tests.faults.year

# Its own process takes the Ctrl-C, and make has nothing to add.
kafka: deps .venv/.dev
	@exec $(RUN) python -m tests.kafka

# A C compiler builds the shims that fail disks and cut the power in tests; Kafka is Java, and Maven
# fetches it.
deps:
	@set -e; missing=""; \
	command -v cc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v openssl >/dev/null || missing="$$missing openssl"; \
	command -v java >/dev/null || missing="$$missing openjdk-17-jre-headless"; \
	command -v mvn >/dev/null || missing="$$missing maven"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
		echo "the tests need more than is there: install$$missing, or what your system calls them"; \
		exit 1; \
	fi

.venv/.run: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --no-dev --inexact --quiet
	@touch $@

.venv/.dev: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --quiet
	@touch $@ .venv/.run

.uv/bin/uv:
	@echo "fetching uv"
	@$(PYTHON) -m venv .uv || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& rm -rf .uv && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null && $(PYTHON) -m venv .uv; } \
		|| { echo "python3 needs its venv module: install python3-venv"; exit 1; }
	@.uv/bin/pip install --quiet --disable-pip-version-check "uv>=0.13,<1"

clean:
	rm -rf .venv .uv .kafka .mypy_cache .pytest_cache .ruff_cache .hypothesis
