# make demo    set-up, then the main job: a network made small and fast, with its certificate
# make test    set-up, then every check: ruff, strict types, pytest
# make bench   every table of the README; long. Run records go to benchmarks/records
# make setup   the virtual environment alone

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint types unit bench clean

setup: .venv/ready

# Made again only when pyproject.toml changed: its content decides, not its date.
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("laconic needs Python 3.11 or newer, got %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@hash=$$($(PYTHON) -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml","rb").read()).hexdigest())'); \
	if [ "$$(cat $@ 2>/dev/null)" = "$$hash" ]; then touch $@; exit 0; fi; \
	echo "setting up .venv (a few minutes the first time)"; \
	$(PYTHON) -m venv .venv && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' && \
	echo "$$hash" > $@

demo: setup
	$(BIN)/laconic demo

test: lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -n auto

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
