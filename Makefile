# `make help` lists the targets. FILE=tests/x/test_y.py narrows `make unit`, `make test` and `make test-slow`.
.PHONY: help setup demo study lint format unit test test-slow flags lock clean
.NOTPARALLEL:

PY := .venv/bin/python
# Two processes, and each test file in one of them.
PARALLEL := -n 2 --dist loadfile
LOCK := uv pip compile --universal --python-version 3.11 --quiet --no-annotate --no-header

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: .venv/.installed ## Make .venv and install everything that relic needs

demo: .venv/.installed ## Run the whole job on sample photographs
	$(PY) samples/demo.py

# Takes hours. KODAK: a folder of images that are not used for training.
PHOTOS ?= shards/photos
KODAK ?= kodak

study: .venv/.installed $(PHOTOS) ## Compare calibrated and naive swaps (hours)
	$(PY) prep/make_shards.py --coco_dir $(PHOTOS) --out_dir shards/study
	$(PY) studies/calibration.py --shards shards/study --images $(KODAK)

clean: ## Remove caches; keep .venv, shards and checkpoints
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -r {} +

shards/photos: .venv/.installed
	$(PY) samples/wallpapers.py --out $@

lint: .venv/.installed-dev ## Check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv/.installed-dev ## Correct style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

unit: .venv/.installed-dev ## Run the tests that need neither torch nor whole commands
	$(PY) -m pytest -m "not slow and not torch and not commands" $(if $(FILE),,$(PARALLEL)) --durations=10 $(FILE)

test: lint ## Check style and types, and run the tests
	$(PY) -m pytest -m "not slow" $(if $(FILE),,$(PARALLEL)) $(FILE)

test-slow: .venv/.installed-dev .venv/.installed-cluster ## Run the tests that take longer
	$(PY) -m pytest -m slow $(FILE)

flags: .venv/.installed ## Write docs/flags.md from the configs
	$(PY) -m tests.flags_page > docs/.flags.md
	mv docs/.flags.md docs/flags.md

# Pin everything requirements*.in asks for, for every Python relic runs on, at today's versions (needs uv).
lock: ## Pin all requirements at today's versions (needs uv)
	$(LOCK) requirements.in -o requirements.txt
	$(LOCK) requirements-dev.in -o requirements-dev.txt
	$(LOCK) requirements-cluster.in -o requirements-cluster.txt
	sed -i '1i # Made by `make lock` from requirements-dev.in.' requirements-dev.txt
	sed -i '1i # Made by `make lock` from requirements-cluster.in: for prep/make_shards.py --engine ray.' requirements-cluster.txt
	sed -i '1i # Made by `make lock` from requirements.in: every package, for Python 3.11 and 3.12 on Linux.\n# setup.sh puts pillow-simd in the place of Pillow; with stock Pillow everything works, slower.' requirements.txt

.venv/.installed: requirements.txt setup.sh
	./setup.sh requirements.txt
	touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

# Without ray, the tests of --engine ray are skipped.
.venv/.installed-cluster: requirements-cluster.txt .venv/.installed
	if $(PY) -m pip install --quiet -r requirements-cluster.txt; then touch $@; fi
