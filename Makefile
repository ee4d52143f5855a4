# make run: the page, all set up from a bare clone. make test: everything that is checked. make check: lint alone.
# make kernels: the operator's compiled back end. make wheels: the same as a package.
VENV ?= .venv
PORT ?= 7860
# The first Python that is new enough; `make run PYTHON=python3.12` chooses another one.
PYTHON ?= $(shell for one in python3 python3.12 python3.11 python3.13; do \
	$$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$one && break; done)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --quiet
# Nothing is fetched or sent at run time.
export HF_HUB_OFFLINE = 1
export GRADIO_ANALYTICS_ENABLED = False

.PHONY: run test check format browser kernels wheels clean

run: $(VENV)/.ready $(VENV)/.kernels
	$(PY) app.py --port $(PORT) $(ARGS)

test: $(VENV)/.ready-test $(VENV)/.kernels browser
	$(VENV)/bin/ruff check .
	$(PY) -m pytest $(ARGS)

check: $(VENV)/.ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.ready-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.ready: requirements.txt
	@test -n "$(PYTHON)" || { echo "mmchat needs Python 3.11 or newer: install it, or say PYTHON=/path/to/python." >&2; exit 2; }
	@echo "Installing what mmchat needs into $(VENV) (a few minutes, once) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "Python cannot make environments here: install python3-venv." >&2; exit 2; }
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready pyproject.toml
	@$(PIP) -e ".[test]"
	@touch $@

# Seconds where there is a compiler; where there is none it says so, and plain torch does the work.
$(VENV)/.kernels: $(VENV)/.ready kernels/compile_ops.py $(wildcard kernels/msda/csrc/msda_*)
	@$(PY) kernels/compile_ops.py
	@touch $@

# The same, but it fails where it cannot be built. MSDA_BUILD=cuda builds the CUDA part.
kernels: $(VENV)/.ready
	@MSDA_BUILD=$${MSDA_BUILD:-cpp} $(PY) kernels/compile_ops.py
	@touch $(VENV)/.kernels

# One wheel for every Python and torch: dist/msda-*-py3-none-<platform>.whl
wheels: $(VENV)/.ready
	@MSDA_BUILD=$${MSDA_BUILD:-cpp} $(PY) -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist ./kernels
	@ls dist/msda-*.whl

# The browser tests skip, and say so, where there is no Chromium and none can be installed.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || { \
		command -v apt-get >/dev/null && test "$$(id -u)" = 0 && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	} || echo "No Chromium here: the browser tests will skip. On Debian: apt-get install chromium" >&2

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/build kernels/*.egg-info kernels/msda/*.so .pytest_cache .ruff_cache
