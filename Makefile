# What a newcomer needs: `make run`, `make test`. What CI runs: `make lint test prove interop instructions`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
PYPY = .venv-pypy
ARGS ?=

.PHONY: run test core-coverage coverage prove pypy interop testssl fuzz torture lint format bench instructions clean

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[test,lint]'
	touch $@

run: $(STAMP)
	@test -f run/mta.toml || $(BIN)/mta init --demo run >/dev/null
	@sed '/^Start:/d' run/README
	@$(BIN)/twistd -n --pidfile= mta --config run/mta.toml

test: $(STAMP)
	$(BIN)/python -m pytest -n auto $(ARGS)

# That these tests reach every branch of the core; two minutes.
core-coverage: $(STAMP)
	$(BIN)/coverage run --source=twisted_mta/core -m pytest tests/unit tests/dialogs $(ARGS)
	$(BIN)/coverage report --fail-under=100

coverage: $(STAMP)
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

prove: $(STAMP)
	MTA_SEEDS=1000 $(BIN)/python -m pytest -n auto tests/crash tests/simulation/test_weather.py tests/simulation/test_explain_agrees.py $(ARGS)

# Modules on PyPy, and the real server on it with its tests on CPython. Hypothesis takes too long there.
pypy: $(STAMP)
	tests/pypy/install $(PYPY)
	$(PYPY)/bin/python -m pytest -n auto -m "not hypothesis" tests/unit tests/dialogs tests/contract $(ARGS)
	MTA_PYTHON=$(abspath $(PYPY)/bin/python) $(BIN)/python -m pytest -n auto tests/integration $(ARGS)

interop: $(STAMP)
	tests/interop/install
	$(BIN)/python -m pytest tests/interop $(ARGS)

testssl: $(STAMP)
	tests/interop/install
	MTA_TESTSSL=all $(BIN)/python -m pytest tests/interop/test_testssl.py $(ARGS)

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.smtp_server --count 1000000 $(ARGS)

torture: $(STAMP)
	$(BIN)/python -m tests.crash --kills 3000 $(ARGS)

bench: $(STAMP)
	tests/interop/install
	$(BIN)/python -m benchmarks --json benchmarks.json --plots docs/plots $(ARGS)

instructions: $(STAMP)
	tests/interop/install
	$(BIN)/python -m benchmarks.instructions --check $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
