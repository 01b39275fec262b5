# SPDX-License-Identifier: GPL-2.0-or-later
# The commands of a developer. `make demo` and `make test` install everything that they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.installed-bench
export PYTHON
# Most tests wait for servers, so run more of them than there are cores. The long ones come first.
TEST_WORKERS ?= 3

.PHONY: help venv demo test test-all acceptance-matrix chaos bench bench-recovery lint docs rpm licences reference picture vendor clean

help:
	@echo 'make demo      run a sample consumer on a private broker and watch it work'
	@echo 'make test      check and test everything'
	@echo 'make test-all  the unit and integration tests on every Python from 3.11 up and every known message schema'
	@echo 'make acceptance-matrix  the acceptance tests on systemd 252, 257 and the newest, and the others on their Pythons; as root, an hour'
	@echo 'make chaos     the crash tests in their long form, and a cluster whose nodes die; some forty minutes'
	@echo 'make bench     compare with other consumers; for half an hour, on a machine that does nothing else'
	@echo 'make bench-recovery  measure the cost of faults, next to fedora-messaging consume'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make rpm       build the source and binary RPMs into dist/rpm, and check them'
	@echo 'make licences  check the licence of every package that is needed at run time'
	@echo 'make reference  write the parts of docs/reference that come from docstrings and --help'
	@echo 'make picture   make the pictures of the documentation anew, from real sessions'
	@echo 'make vendor    get the libraries of the page from npm again, and check them'
	@echo 'make docs      build the documentation into docs/_build/html'
	@echo 'make venv      make $(VENV), with the product and all tools'
	@echo 'make clean     remove everything that make made'

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml
	packaging/system-packages venv
	packaging/system-packages --optional proton
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[proton]' || \
	    echo 'python-qpid-proton was not built: the tests of the messenger proton are skipped' >&2
	touch $@

# For the other consumers and the plots, which `make test` does not need.
$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

demo: venv
	packaging/system-packages --optional broker
	$(BIN)/python examples/demo/run.py

test: lint
	packaging/system-packages --optional broker acceptance rpm consumers databases activemq journal page ssh \
		prometheus
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# The complete crash tests: eight minutes of kills, cuts and restarts while messages come, then a ledger;
# the same for publishing, with each database. And the check of 10,000 garbled files.
chaos: venv
	packaging/system-packages broker cluster databases
	CHAOS=full $(BIN)/pytest --timeout 0 -s tests/integration/test_crashes.py tests/integration/test_publishing_crashes.py \
		tests/integration/test_cluster.py
	CHAOS=full $(BIN)/pytest --timeout 0 tests/unit/test_check_corpus.py

# Writes benchmarks/results.json and docs/explanation/performance.
bench: $(BENCH_INSTALLED)
	packaging/system-packages broker
	$(BIN)/python -m benchmarks.bench --write

# Writes benchmarks/recovery.md.
bench-recovery: venv
	packaging/system-packages broker
	$(BIN)/python -m benchmarks.recovery --write

test-all: venv
	packaging/system-packages --optional broker databases
	$(BIN)/nox

# SUITES="bookworm trixie" runs only these two.
acceptance-matrix: venv
	packaging/system-packages broker acceptance
	$(BIN)/python -m tests.acceptance.matrix $(SUITES)

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes the parts of docs/reference that come from docstrings and from --help.
reference: venv
	$(BIN)/python docs/generate.py

# Runs a consumer on a private broker, and draws its terminal as docs/front-page.svg.
picture: venv
	packaging/system-packages broker page
	$(BIN)/python docs/front_page.py
	$(BIN)/python docs/top_pictures.py
	$(BIN)/python docs/page_pictures.py

docs: venv reference
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# Uses Fedora's macros, or stand-ins for them; packaging/rpm/build chooses.
# `make test` runs the unit tests; RPM_OPTIONS= also runs some in %check, as Fedora does.
RPM_OPTIONS ?= --without tests
rpm: venv
	packaging/system-packages rpm
	rm -rf dist/rpm
	packaging/rpm/build --python $(BIN)/python dist/rpm $(RPM_OPTIONS)
	packaging/rpm/lint --python $(BIN)/python dist/rpm
	ls -l dist/rpm

licences: venv
	$(BIN)/python packaging/licences.py

# The versions and hashes are in packaging/cockpit/vendor.json.
vendor:
	python3 packaging/cockpit/vendor.py --fetch

clean:
	rm -rf $(VENV) .nox .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build dist
