# Everything runs in a virtual environment of its own; nothing outside this folder is changed.
#   make demo    set up, compress a real model, compare it with the original
#   make test    set up, run the tests
#   make check   what must hold before a commit: lint, types, generated docs, tests
#   make test-openvino   tests on a second execution provider, in an environment of its own
#   make test-torch      tests of the gradient engine that needs torch, likewise (a download of 200 MB)
#   make test-browser    tests of the report in Chromium, where that is installed
#   make test-oldest     some tests on the lowest versions that pyproject.toml admits, likewise
#   make test-integrations   the pages' examples with the packages that they are about, likewise (a download of 1 GB)
#   make site    the docs as a site in build/site, with all links checked
#   make dist    wheel and source distribution in dist/, checked

PYTHON ?= python3
VENV ?= .venv
# A worker takes whole stretches of the suite, so that tests that stand together share what they computed.
PYTEST_ARGS ?= -n auto --dist worksteal
# BLAS on one thread: with a worker a core its threads would only wait for each other. Bytecode is kept, whatever the
# environment says: some tests start processes, and each would compile the package again.
TEST_WITH := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PYTEST := $(TEST_WITH) $(VENV)/bin/python -m pytest
MODEL ?= lenet5
CALIB ?= mnist_calib
UNSEEN ?= mnist_unseen

# uv installs in seconds what pip takes half a minute for; where it cannot be had, pip does it. Bytecode is compiled as
# modules are imported, few of all.
# $(call installed,ENVIRONMENT,ARGUMENTS)
installed = { $(1)/bin/python -m pip install -qq uv && $(1)/bin/uv pip install -q --python $(1)/bin/python $(2); } \
  || $(1)/bin/python -m pip install -qq $(2)

# onnxruntime-openvino takes the place of onnxruntime, so it needs an environment of its own.
OPENVINO ?= onnxruntime-openvino==1.24.1
OPENVINO_VENV ?= .venv-openvino
OPENVINO_PYTHON := $(OPENVINO_VENV)/bin/python
OPENVINO_NEEDS := 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  needs = project["dependencies"] + [each for each in project["optional-dependencies"]["dev"] if "pytest>" in each]; \
  print(*(each for each in needs if "onnxruntime" not in each), sep="\n")'

# The engine `torch` of gradients, without CUDA.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VENV ?= .venv-torch
TORCH_PYTHON := $(TORCH_VENV)/bin/python

# The lowest Python and the lowest version of each dependency: both are read from pyproject.toml, and by uv, since
# pip takes the newest only. Where that Python is missing it is PYTHON, and the lowest versions that have wheels for it.
OLDEST_VENV ?= .venv-oldest
OLDEST_PYTHON := $(OLDEST_VENV)/bin/python
OLDEST_PIP = $(OLDEST_VENV)/bin/uv pip install -q --python $(OLDEST_PYTHON)
LOWEST_PYTHON = $(shell sed -n 's/^requires-python = ">=\([0-9.]*\).*/python\1/p' pyproject.toml)
# Reading and writing, every pass on drawn models, the pipeline on small ones, the command as a process.
OLDEST_TESTS ?= tests/graph/ir tests/test_model.py tests/test_target.py::test_asks_the_installed_version_what_it_loads \
  tests/test_every_pass.py \
  tests/pipeline/test_pipeline.py tests/cli/test_process.py
OLDEST_CHECKS ?= -k "not test_every_pass or -result or -encodings"

COMMA := ,
# The docs as a site.
SITE_VENV ?= .venv-site
SITE_BIN := $(SITE_VENV)/bin
SITE_NEEDS := 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
  print(*extras["docs"], sep="\n")'
SCHEMA := $(SITE_BIN)/check-jsonschema --quiet --builtin-schema

# What examples of the pages are about, beside onnxcomp; each is left out where it cannot be had.
INTEGRATIONS_VENV ?= .venv-integrations
INTEGRATIONS_PYTHON := $(INTEGRATIONS_VENV)/bin/python
INTEGRATIONS ?= onnxscript skl2onnx mlflow dvc pre-commit olive-ai

BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# What bounds `make mutants`: the files, all that pyproject.toml names where none is given, and the mutants of each.
MUTANTS_FILES ?=
MUTANTS_SAMPLE ?= 8
MUTANTS_SEED ?= 0

.PHONY: demo test test-browser test-slow test-thorough test-openvino test-torch test-oldest test-integrations mutants check
.PHONY: lint types docs docs-check site dist clean
.DEFAULT_GOAL := check

# Set up again only when the dependencies may have changed.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "onnxcomp needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one, for example: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(call installed,$(VENV),--editable '.[dev]')
	@touch $@

demo: $(READY)
	@mkdir -p out
	$(BIN)/onnxcomp optimize models/$(MODEL).onnx --calib-data models/$(CALIB).npz -o out/$(MODEL).opt.onnx --force
	$(BIN)/onnxcomp compare models/$(MODEL).onnx out/$(MODEL).opt.onnx --data models/$(UNSEEN).npz
	@ls -l models/$(MODEL).onnx out/$(MODEL).opt.onnx

test: $(READY)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(READY)
	$(PYTEST) -m slow $(PYTEST_ARGS)

# With every pair of passes on every model of models/, and on those below the folder ONNXCOMP_MORE_MODELS: an hour.
test-thorough: $(READY)
	ONNXCOMP_THOROUGH=1 $(PYTEST) -m slow $(PYTEST_ARGS)

# Where the package cannot be had the tests are skipped, and say so. One after another: they print latencies.
test-openvino:
	@$(PYTHON) -m venv $(OPENVINO_VENV)
	@if ! { $(call installed,$(OPENVINO_VENV),'$(OPENVINO)'); }; then \
	  echo "OpenVINO tests skipped: $(OPENVINO) cannot be installed here, for the reason above"; exit 0; fi; \
	set -e; $(OPENVINO_PYTHON) -c $(OPENVINO_NEEDS) > $(OPENVINO_VENV)/needs.txt; \
	$(call installed,$(OPENVINO_VENV),-r $(OPENVINO_VENV)/needs.txt); \
	$(call installed,$(OPENVINO_VENV),--no-deps --editable .); \
	PYTHONDONTWRITEBYTECODE= $(OPENVINO_PYTHON) -m pytest tests/providers

# Those of the engine, and the pages about PyTorch and scikit-learn. Where torch cannot be had the tests are skipped, and
# say so.
test-torch:
	@$(PYTHON) -m venv $(TORCH_VENV)
	@if ! { $(call installed,$(TORCH_VENV),torch --index-url $(TORCH_INDEX)); }; then \
	  echo "tests of the engine torch skipped: torch cannot be installed here, for the reason above"; exit 0; fi; \
	set -e; { $(call installed,$(TORCH_VENV),onnxscript pytest pytest-xdist skl2onnx --editable '.[train]'); }; \
	$(TEST_WITH) $(TORCH_PYTHON) -m pytest $(PYTEST_ARGS) -m "not slow" -k "torch_graph or frameworks" \
	  tests/training/torch_graph tests/docs

# The report in a real browser. Where Chromium or playwright cannot be had the tests are skipped, and say so.
test-browser: $(READY)
	@if ! { $(call installed,$(VENV),--editable '.[dev$(COMMA)browser]'); }; then \
	  echo "tests in a browser skipped: playwright cannot be installed here, for the reason above"; exit 0; fi; \
	$(PYTEST) tests/report/test_browser.py || [ $$? = 5 ]

test-oldest:
	@python=$(LOWEST_PYTHON); $$python -c '' 2> /dev/null || python=$(PYTHON); $$python -m venv $(OLDEST_VENV)
	@$(OLDEST_PYTHON) -m pip install -qq uv
	@$(OLDEST_PIP) --resolution lowest-direct --only-binary :all: -r pyproject.toml
	@$(OLDEST_PIP) hypothesis pytest pytest-xdist
	@$(OLDEST_PIP) --no-deps --editable .
	@$(OLDEST_VENV)/bin/uv pip freeze -q --python $(OLDEST_PYTHON) --exclude-editable
	$(TEST_WITH) $(OLDEST_PYTHON) -m pytest -m "not slow" $(PYTEST_ARGS) $(OLDEST_CHECKS) $(OLDEST_TESTS)

test-integrations:
	@$(PYTHON) -m venv $(INTEGRATIONS_VENV)
	@$(call installed,$(INTEGRATIONS_VENV),torch --index-url $(TORCH_INDEX)) || echo "without torch"
	@for each in $(INTEGRATIONS); do \
	  { $(call installed,$(INTEGRATIONS_VENV),$$each); } || echo "without $$each"; done
	@$(call installed,$(INTEGRATIONS_VENV),--editable '.[dev]')
	$(TEST_WITH) $(INTEGRATIONS_PYTHON) -m pytest tests/docs $(PYTEST_ARGS)

# Goes on where it was stopped; MUTANTS_ARGS=--again tests once more what survived. A large sample takes hours.
mutants: $(READY)
	@$(BIN)/python -c 'import cosmic_ray' 2> /dev/null || $(BIN)/python -m pip install -qq --editable '.[mutants]'
	$(TEST_WITH) $(BIN)/python -m benchmarks.mutants --sample $(MUTANTS_SAMPLE) --seed $(MUTANTS_SEED) \
	  $(MUTANTS_ARGS) --files $(MUTANTS_FILES)

check: lint types docs-check test

lint: $(READY)
	$(BIN)/ruff check .

# An editable install hides onnxcomp.passes from mypy, so it is shown the layout of the installed package by links.
types: $(READY)
	@rm -rf build/types && mkdir -p build/types/onnxcomp
	@ln -s $(CURDIR)/onnxcomp/* build/types/onnxcomp/ && ln -s $(CURDIR)/passes build/types/onnxcomp/passes
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache -p onnxcomp

docs: $(READY)
	$(BIN)/python -m onnxcomp.cli.docs

docs-check: $(READY)
	$(BIN)/python -m onnxcomp.cli.docs --check

# Where the packages cannot be had it is skipped, and says so.
site:
	@$(PYTHON) -m venv $(SITE_VENV)
	@$(SITE_VENV)/bin/python -c $(SITE_NEEDS) > $(SITE_VENV)/needs.txt
	@if ! { $(call installed,$(SITE_VENV),-r $(SITE_VENV)/needs.txt); }; then \
	  echo "the site is not built: its packages cannot be installed here, for the reason above"; exit 0; fi; \
	set -e; NO_MKDOCS_2_WARNING=1 $(SITE_BIN)/mkdocs build --strict --quiet -f docs/site/mkdocs.yml -d $(CURDIR)/build/site; \
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml docs/integrations/github-actions.yml; \
	$(SCHEMA) vendor.citation-file-format CITATION.cff; \
	echo "build/site: $$(find build/site -name '*.html' | wc -l) pages, every link leads somewhere"

# The wheel is made of the source distribution, so that both hold what the package needs. Where twine cannot be had they
# are not checked, and that is said.
dist: $(READY)
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	@if $(BIN)/python -c 'import twine' 2> /dev/null || { $(call installed,$(VENV),twine); }; then \
	  $(BIN)/python -m twine check --strict dist/*; \
	else echo "dist/ is not checked: twine cannot be installed here, for the reason above"; fi

clean:
	rm -rf build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
