# make env    make .venv with the tested versions
# make study  the first study: how good is an amortized guide on the digits, and whose fault is the loss?
# make test   lint, types and tests

VENV  := .venv
STAMP := $(VENV)/.installed
# A python of your own choice: make env PYTHON=/path/to/python3.12
PYTHON ?=

.PHONY: help env study test
help:
	@sed -n 's/^# make /make /p' Makefile

env: $(STAMP)

# The stamp is written last: an install that was interrupted is done again, a finished one is not.
$(STAMP): pyproject.toml constraints.txt
	@python=""; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
		if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; then \
			python="$$candidate"; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "make env: found no Python 3.11 to 3.14 (tried $(if $(PYTHON),$(PYTHON),python3 and python3.14 to python3.11))." >&2; \
		echo "Install one, or name one: make env PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	if ! $(VENV)/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "Making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV) || { \
			echo "make env: $$python could not make a virtual environment; on Debian, install python3-venv." >&2; exit 1; }; \
	fi
	@echo "Installing into $(VENV), versions from constraints.txt; the first time takes some minutes"
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

study: $(STAMP)
	$(VENV)/bin/amortize study digits

# Two processes: a test is small, and each runs on one thread.
test: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n 2
