# make image | test | test-web | cuda | test-cuda | bench-cuda | parity | parity-full | bench | bench-memory | notebooks | docs | golden | lint | train: each sets up all it needs.
PYTHON ?= python3
PROMPT ?= a glossy red sphere left of a small blue cube
SEED ?= 2
GOLDEN_PROMPT := a glossy red sphere left of a small blue cube
VENV := .venv
PARITY := .venv-parity
PARITY_TESTS := tests/parity
BENCH := .venv-bench
NOTEBOOKS := .venv-notebooks
DOCS := .venv-docs
CUDA := .venv-cuda
WEB := .venv-web
CHROMIUM ?= /usr/bin/chromium
BENCH_OPTIONS ?=

.PHONY: help image test test-web cuda test-cuda bench-cuda parity parity-full bench bench-memory notebooks docs golden lint train clean

help:
	@echo "make image        draw '$(PROMPT)' with the bundled model (PROMPT=... for another)"
	@echo "make test         the tests, without torch"
	@echo "make test-web     the server: real clients, a real browser, real sockets; many processes: Dask"
	@echo "make cuda         the GPU's kernels without a GPU: in lockstep, and through its compiler"
	@echo "make test-cuda    the same on a GPU: instructions, every kernel, bits, copies; five minutes"
	@echo "make bench-cuda   that, and times beside torch's: eight minutes"
	@echo "make parity       comparisons with torch 2.13.0, diffusers 0.42.1, transformers 5.23.0"
	@echo "make parity-full  the same at published sizes, FAMILY=sd1, sdxl or sd3: half an hour, 20 GB of memory"
	@echo "make bench        refsd, PyTorch and OpenVINO in turns: 20 minutes, 20 GB of memory, 9 GB of disk"
	@echo "make bench-memory the most memory of Stable Diffusion 1.5 and XL, option by option: an hour, 10 GB of disk"
	@echo "make notebooks    execute the notebooks anew, pictures and all: minutes"
	@echo "make docs         the pages of docs/, the notebooks, and a page for every op: build/docs/index.html"
	@echo "make golden       record the committed golden packs anew"
	@echo "make lint         ruff"
	@echo "make train        make the bundled model anew: hours"

# An environment with the extra that a target needs. torch 2.13.0 comes first and alone where it is
# wanted, so that nothing else pulls a build with CUDA, and parity and bench have the same one.
TORCH :=
$(VENV)/ready: EXTRA := test
$(PARITY)/ready: EXTRA := dev
$(BENCH)/ready: EXTRA := bench
$(NOTEBOOKS)/ready: EXTRA := notebooks
$(DOCS)/ready: EXTRA := docs
$(CUDA)/ready: EXTRA := cuda-compile
$(WEB)/ready: EXTRA := test-web
$(PARITY)/ready $(BENCH)/ready: TORCH := torch==2.13.0

$(VENV)/ready $(PARITY)/ready $(BENCH)/ready $(NOTEBOOKS)/ready $(DOCS)/ready $(CUDA)/ready $(WEB)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(if $(TORCH),$(@D)/bin/python -m pip install --quiet $(TORCH))
	$(@D)/bin/python -m pip install --quiet -e ".[$(EXTRA)]"
	touch $@

image: $(VENV)/ready
	$(VENV)/bin/python -m refsd "$(PROMPT)" -s $(SEED) -o image.png

# Two processes: most of the time one of them waits for a compiler or for a process of its own. Of
# these there are hundreds, which shall find the package compiled.
test: $(VENV)/ready
	PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n 2 --dist loadfile tests

# The browser is Debian's; CHROMIUM=PATH names another Chromium or Chrome.
test-web: $(WEB)/ready $(CHROMIUM)
	PYTHONDONTWRITEBYTECODE= CHROMIUM=$(CHROMIUM) $(WEB)/bin/python -m pytest \
		-o addopts="-q --strict-markers" -n 2 --dist loadfile $(wildcard tests/web tests/farm)

$(CHROMIUM):
	@echo "the page is tested in a browser, and $@ is not there: it is installed with apt-get"
	apt-get install --yes --no-install-recommends chromium || \
		{ apt-get update && apt-get install --yes --no-install-recommends chromium; }

# The kernels of the GPU without one: in lockstep, through its compiler, on a driver that pretends.
cuda: $(CUDA)/ready
	$(CUDA)/bin/python -m pytest -o addopts="-q --strict-markers" -n 2 --dist loadfile tests/cuda

# On a machine with a GPU. One without a registry: docs/cuda-gpu.md.
test-cuda: $(CUDA)/ready
	$(CUDA)/bin/python -m benchmarks.gpu run --tests $(BENCH_OPTIONS)

# torch as the registry has it, which is a build with CUDA.
bench-cuda: $(CUDA)/ready
	$(CUDA)/bin/python -m pip install --quiet torch==2.13.0
	$(CUDA)/bin/python -m benchmarks.gpu run $(BENCH_OPTIONS); code=$$?; \
	$(CUDA)/bin/python -m benchmarks table && exit $$code

# A thread for each of the two processes: two each would wait for each other.
parity: $(PARITY)/ready
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PARITY)/bin/python -m pytest -o addopts="-q --strict-markers" -n 2 --dist loadfile -m "not full" $(PARITY_TESTS)

parity-full: $(PARITY)/ready
	$(PARITY)/bin/python -m pytest -o addopts="-q --strict-markers" -m full -s $(PARITY_TESTS) \
		$(if $(FAMILY),-k "$(FAMILY)")

# The tables are made even if something was red, which they show; the exit code stays.
bench: $(BENCH)/ready
	$(BENCH)/bin/python -m benchmarks run $(BENCH_OPTIONS); code=$$?; \
	$(BENCH)/bin/python -m benchmarks table && exit $$code

# Resumed where it was stopped; BENCH_OPTIONS="--cells sd1-block" measures some, "--fresh" again.
bench-memory: $(VENV)/ready
	$(VENV)/bin/python -m benchmarks.bounded $(BENCH_OPTIONS); code=$$?; \
	$(VENV)/bin/python -m benchmarks table && exit $$code

# From an empty cache of kernels: what a newcomer's machine does.
notebooks: $(NOTEBOOKS)/ready
	cache=`mktemp -d`; REFSD_CACHE=$$cache $(NOTEBOOKS)/bin/python notebooks/run.py; code=$$?; \
	rm -rf $$cache; exit $$code

# Warnings are errors: a link that leads nowhere, a formula that cannot be set, a page in no contents.
docs: $(DOCS)/ready
	rm -rf build/docs
	$(DOCS)/bin/python docs/site/pages.py
	$(DOCS)/bin/python -m sphinx -c docs/site -E -n -W --keep-going -q build/docs-source build/docs
	@echo "build/docs/index.html"

# The packs that are committed; tests/test_golden_drift.py says when they no longer hold.
golden: $(VENV)/ready
	rm -rf golden/ops golden/bundled
	for family in `$(VENV)/bin/python -c "from refsd.golden.recording.cases import families; \
		print(*families())"`; do $(VENV)/bin/python -m refsd golden make \
		-o golden/ops/$$family --ops --family $$family || exit 1; done
	$(VENV)/bin/python -m refsd golden make -o golden/bundled "$(GOLDEN_PROMPT)" --level 2 \
		--steps 4 -W 64 -H 64 -s 2

lint: $(PARITY)/ready
	$(PARITY)/bin/ruff check refsd tests training benchmarks examples notebooks docs

train: $(PARITY)/ready
	$(PARITY)/bin/python -m training

clean:
	rm -rf $(VENV) $(PARITY) $(BENCH) $(NOTEBOOKS) $(DOCS) $(CUDA) $(WEB) .bench build *.egg-info
