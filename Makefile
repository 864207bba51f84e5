# make demo: set up and run the whole job on sample photographs.   make test: set up and run the tests.
.PHONY: setup demo study lint test test-slow lock
.NOTPARALLEL:

PY := .venv/bin/python
LOCK := uv pip compile --universal --python-version 3.11 --quiet --no-annotate --no-header

setup: .venv/.installed

demo: .venv/.installed
	$(PY) samples/demo.py

# Hours: what calibration is worth. KODAK: a folder of pictures that nothing is trained on.
PHOTOS ?= shards/photos
KODAK ?= kodak

study: .venv/.installed $(PHOTOS)
	$(PY) prep/make_shards.py --coco_dir $(PHOTOS) --out_dir shards/study
	$(PY) studies/calibration.py --shards shards/study --images $(KODAK)

shards/photos: .venv/.installed
	$(PY) samples/wallpapers.py --out $@

lint: .venv/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -m "not slow"

test-slow: .venv/.installed-dev
	$(PY) -m pytest -m slow

# Pin everything requirements*.in asks for, for every Python relic runs on, at today's versions (needs uv).
lock:
	$(LOCK) requirements.in -o requirements.txt
	$(LOCK) requirements-dev.in -o requirements-dev.txt
	sed -i '1i # Made by `make lock` from requirements-dev.in.' requirements-dev.txt
	sed -i '1i # Made by `make lock` from requirements.in: every package, for Python 3.11 and 3.12 on Linux.\n# setup.sh puts pillow-simd in the place of Pillow; with stock Pillow everything works, slower.' requirements.txt

.venv/.installed: requirements.txt setup.sh
	./setup.sh requirements.txt
	touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@
