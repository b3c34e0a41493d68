# The commands of daily work; CI runs these very targets.
#
# Everything is installed in .venv. `install` runs again only after setup.cfg, the pinned versions or
# this file have changed.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Versions that were tried together; CONSTRAINTS=constraints-lowest.txt installs the oldest allowed ones.
CONSTRAINTS ?= constraints.txt

# Detectron2's Python sources from PyPI, pinned by their hash, without a compiler. The wheel is named for
# Python 3.10 because of its compiled part, which is not used: ROIAlign and NMS come from torchvision.
# DETECTRON2=official skips this step, for an environment with Detectron2 from the official sources.
DETECTRON2 ?= simmim_bench/diagnostics/detectron2.txt

# Records, tables and documents that are committed.
COMMITTED := benchmarks/records --out benchmarks --into README.md

# Number of processes of `make test`, each with one thread and up to 3 GiB of memory.
TESTS_AT_ONCE ?= 2

.PHONY: help install demo bench docs test test-fast test-slow test-faults fuzz check leaderboard leaderboard-check wheel-check clean

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP)  ## create .venv and install everything (about 3 minutes, no compiler)

$(STAMP): setup.cfg Makefile $(CONSTRAINTS) simmim_bench/diagnostics/detectron2.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "simmim-bench needs Python >= 3.10; name one with make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --editable '.[det,seg,hub,tiff,dev]'
	test "$(DETECTRON2)" = official || $(BIN)/python -m pip install --quiet --upgrade \
	    --require-hashes --no-deps --only-binary=:all: --python-version 3.10 \
	    --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	    -r $(DETECTRON2)
	touch $@

demo: $(STAMP)  ## run everything on synthetic data, from pretraining to a leaderboard (about 4 minutes on two idle cores)
	$(BIN)/simmim-bench demo

leaderboard: $(STAMP)  ## write the committed tables again from the committed records, and check them
	$(BIN)/simmim-bench leaderboard build $(COMMITTED)
	$(BIN)/simmim-bench leaderboard check $(COMMITTED)
	$(BIN)/python benchmarks/tables.py

leaderboard-check: $(STAMP)  ## recompute every committed score, compare hashes and tables
	$(BIN)/simmim-bench leaderboard check $(COMMITTED)
	$(BIN)/python benchmarks/tables.py --check

bench: $(STAMP)  ## measure the speed of steps and of data loading, write the tables (BENCH_GPU=1 BENCH_DEMO=1 BENCH_IMAGES=imagenet OFFICIAL=../SimMIM PROBE_CKPT=runs/vit PROBE_IMAGES=cifar10 BEFORE=../before)
	$(BIN)/python benchmarks/pretrain_step.py --arch vit_b --json benchmarks/results/step_vit_b.json $(if $(OFFICIAL),--official $(OFFICIAL))
	$(BIN)/python benchmarks/pretrain_step.py --arch swin_b --json benchmarks/results/step_swin_b.json $(if $(OFFICIAL),--official $(OFFICIAL))
	$(if $(BENCH_IMAGES),$(BIN)/python benchmarks/data_loading.py --data $(BENCH_IMAGES) --json benchmarks/results/loading.json)
	$(if $(BENCH_IMAGES),$(BIN)/python benchmarks/data_loading.py --data $(BENCH_IMAGES) --evaluation --json benchmarks/results/loading_evaluation.json)
	$(if $(BENCH_IMAGES),$(BIN)/python benchmarks/loader_workers.py --data $(BENCH_IMAGES) --json benchmarks/results/loader_workers.json)
	$(if $(BENCH_IMAGES),$(BIN)/python benchmarks/packed.py --data $(BENCH_IMAGES) --json benchmarks/results/packed.json)
	$(if $(BENCH_GPU),$(BIN)/python benchmarks/detection_step.py --json benchmarks/results/detection_step.json)
	$(BIN)/python benchmarks/leaderboard_build.py --json benchmarks/results/leaderboard_build.json
	$(BIN)/python benchmarks/coco_evaluation.py --json benchmarks/results/coco_evaluation.json
	$(BIN)/python benchmarks/logistic.py --json benchmarks/results/logistic.json
	$(BIN)/python benchmarks/logistic.py --images 40 --channels 128 --json benchmarks/results/logistic_demo_1pct.json
	$(BIN)/python benchmarks/logistic.py --images 400 --channels 128 --json benchmarks/results/logistic_demo_10pct.json
	$(BIN)/python benchmarks/attentive.py $(if $(BENCH_GPU),,--images 32) --json benchmarks/results/attentive.json
	$(if $(PROBE_CKPT),$(BIN)/python benchmarks/linear_probe.py --ckpt $(PROBE_CKPT) --data $(PROBE_IMAGES) --recipe linear_cifar --json benchmarks/results/linear_probe.json)
	$(if $(and $(BEFORE),$(PROBE_CKPT)),for task in "linear" "knn" "fewshot --fraction 1%" "fewshot --fraction 10%"; do $(BIN)/python benchmarks/frozen_tasks.py $$task --before $(BEFORE) --ckpt $(PROBE_CKPT) --data $(PROBE_IMAGES) --json "benchmarks/results/frozen_$$(echo $$task | tr -d ' %-').json" || exit $$?; done)
	$(BIN)/python benchmarks/startup.py $(if $(BEFORE),--before $(BEFORE)) --json benchmarks/results/startup.json
	$(BIN)/python benchmarks/busy_neighbours.py --json benchmarks/results/busy_neighbours.json
	$(BIN)/python benchmarks/side_by_side.py --json benchmarks/results/side_by_side.json
	$(if $(BENCH_DEMO),$(BIN)/python benchmarks/demo.py --out runs/bench-demo --json benchmarks/results/demo.json $(if $(BEFORE),--before $(BEFORE)))
	$(BIN)/python benchmarks/tables.py

docs: $(STAMP)  ## build the documentation in site/, strictly: a missing page, link or anchor fails
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-fast: $(STAMP)  ## run the tests that take less than a second each, before a commit
	$(BIN)/python -m pytest -m 'not slow and not heavy' --numprocesses $(TESTS_AT_ONCE) --dist worksteal

test: $(STAMP)  ## run the tests (about 5 minutes on two idle cores)
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(TESTS_AT_ONCE) --dist worksteal

test-slow: $(STAMP)  ## run the tests that train for minutes (COCO=folder ADE20K=folder for photographs)
	COCO=$(COCO) ADE20K=$(ADE20K) $(BIN)/python -m pytest -m slow --ignore tests/faults

test-faults: $(STAMP)  ## let every file operation of every command fail, one at a time (about 3 hours on one core; FAULTS=100 for a sample of each command)
	FAULTS=$(FAULTS) $(BIN)/python -m pytest -m slow -s tests/faults

fuzz: FUZZ_SECONDS ?= 60
fuzz: FUZZ_SEED ?= 0
fuzz: $(STAMP)  ## mutate untrusted files for a minute in all, each target an equal part (FUZZ_SECONDS=3600 FUZZ_SEED=1)
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -q -s -m slow tests/fuzz

check: $(STAMP)  ## check style, format, types and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel-check: $(STAMP)  ## build the wheel and run it from an empty directory, without the extras
	rm -rf dist build/wheel-check
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet dist/*.whl
	cd "$$(mktemp -d)" && PATH="$(CURDIR)/build/wheel-check/bin:$$PATH" && \
	    simmim-bench --version && \
	    simmim-bench pocket pocket --img-size 32 --imagenet 40 20 --coco 2 2 --ade20k 2 2 && \
	    simmim-bench pretrain --arch vit_pocket --data pocket/imagenet --out run \
	        --epochs 1 -o warmup_epochs=0 && \
	    simmim-bench transfer linear --ckpt run --data pocket/imagenet --out linear

clean:  ## remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
