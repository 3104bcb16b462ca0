# Every target sets up .venv by itself, so that a fresh clone needs Python 3.10 or newer, git and make only.
#
# PYTHON=python3.12 make test     another Python for .venv (remove .venv first if there is one)
# pip's own variables work too. On Linux without a GPU, this takes torch and torchvision, which must come from the same
# place, from PyTorch's CPU index, and saves gigabytes of CUDA libraries:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-all coverage test-heavy test-slow reliability soak slurm hosts poor-links flake fuzz test-tensorflow test-frameworks test-ray rivals test-rivals lint bench unequal bench-gpu bench-quick studies results clean

help:
	@echo "make demo         four nodes learn together, with a table and a picture (about a minute)"
	@echo "make test         the tests to run before a commit (two minutes on two cores)"
	@echo "make test-all     these, and what starts processes, trains, attacks or measures (twenty minutes)"
	@echo "make coverage     make test-all without the heavy ones, and which share of the code they run: at least 90 %"
	@echo "make test-heavy   the part of make test-all that coverage does not trace"
	@echo "make test-slow    what takes longer still, such as a whole demo and floods of ten seconds"
	@echo "make reliability  the figures of docs/reliability.md (half an hour; leave the machine alone meanwhile)"
	@echo "make soak         ten minutes of training, in which memory, descriptors and threads must not grow (MINUTES=10)"
	@echo "make slurm        a SLURM of two hosts on this machine: srun, a killed task, a requeued job (five minutes, root, Debian's slurm)"
	@echo "make hosts        four and eight hosts learn over slow links with keys, while a cable is pulled (ten minutes, root; leave the machine alone)"
	@echo "make poor-links   time to 88 % by method and codec at 1 Gbit/s, 100 and 20 Mbit/s (hours, root; can be stopped and goes on later)"
	@echo "make flake        the tests of faults, of strangers and of life and death, 20 times in a row (TIMES=20; about an hour)"
	@echo "make fuzz         a minute of coverage-guided fuzzing of the wire format and of cluster files (SECONDS=60; needs atheris)"
	@echo "make test-tensorflow  compares TensorFlow's trainings with torch's (needs tensorflow-cpu)"
	@echo "make test-frameworks  runs docs/frameworks.md with Lightning, Transformers and Accelerate (downloads 200 MB once)"
	@echo "make test-ray     dpwa on a Ray cluster of two nodes on this machine, one of which is lost (downloads 80 MB once)"
	@echo "make rivals       an environment with hivemind and Decent-DP in build/rivals, for their rows in the lab (downloads 30 MB)"
	@echo "make test-rivals  trains with these two"
	@echo "make lint         ruff, mypy, and which folder may import which (import-linter)"
	@echo "make bench        all benchmarks, and docs/benchmarks.md made anew (leave the machine alone meanwhile)"
	@echo "make unequal      four nodes, one of them four times slower: time and accuracy over five seeds (half an hour)"
	@echo "make studies      all studies of the lab, for docs/results.md (30 hours; can be stopped and goes on later)"
	@echo "make results      tables and curves of docs/results.md made anew from the results in docs/results (a minute)"
	@echo "make bench-gpu    the benchmark that needs a GPU"
	@echo "make bench-quick  shows that the benchmarks run (about a minute)"
	@echo "make clean        remove .venv and everything that was built"

demo: $(STAMP)
	@$(BIN)/dpwa demo

test: $(STAMP)
	@$(BIN)/python -m pytest

test-all: $(STAMP)
	@$(BIN)/python -m pytest -m 'not slow'

# Without the heavy tests: they depend on speed and on signals, and coverage takes time and holds a lock where a signal
# may come. Afterwards, .venv/bin/coverage report shows each file.
coverage: $(STAMP)
	@$(BIN)/python -m pytest -m 'not heavy and not slow' --hypothesis-profile=thorough --cov --cov-report=

test-heavy: $(STAMP)
	@$(BIN)/python -m pytest -m 'heavy and not slow' --hypothesis-profile=thorough

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow --hypothesis-profile=thorough

# Each test prints its figure. The one that parts a network needs root, and says so without.
reliability: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow tests/launch/test_reliability.py tests/launch/test_starts.py tests/launch/test_poor_links.py \
		tests/node/test_member_processes.py
	@$(BIN)/python benchmarks/goodput.py --json build/goodput.json

# make soak MINUTES=480     a night
MINUTES ?= 10
soak: $(STAMP)
	@$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) --json build/soak.json

# apt-get install slurmctld slurmd slurm-client munge; skipped, with the reason, where they are not there.
slurm: $(STAMP)
	@$(BIN)/python -m pytest -m slow tests/engines/test_slurm.py

# Each host is a network namespace. They learn Fashion-MNIST where DPWA_DATA_DIR has it, else images that are made up.
# Needs root, the program ip and /dev/net/tun; skipped, with the reason, where they are not there.
hosts: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow tests/launch/test_real_hosts.py

# On such hosts, too. The data: DPWA_DATA_DIR, else ./data, into which they are downloaded.
poor-links: $(STAMP)
	@$(BIN)/python benchmarks/poor_links.py --json build/poor_links.json

# Tests that start processes, inject faults or attack: trusted only after twenty passes in a row.
# make flake TIMES=5 TESTS=tests/launch/test_faults.py
TIMES ?= 20
TESTS ?= $(addprefix tests/,$(addsuffix .py,launch/test_faults launch/test_chaos launch/test_liars launch/test_resume \
	node/test_open_clusters node/test_merging transport/test_lies adapters/test_checkpoints observe/test_verify node/test_joining exchange/test_restart_machines \
	transport/test_strangers transport/test_door transport/test_guests node/test_invited exchange/test_forged_words launch/test_run_keys transport/test_keys \
	transport/test_connections transport/test_slow_links exchange/test_patience node/test_close node/test_fork node/test_surroundings \
	adapters/test_termination transport/test_leftovers launch/test_endings observe/test_journal \
	observe/test_bounded_file adapters/test_saving exchange/test_impossible_numbers transport/test_fault_injection \
	exchange/test_pairing adapters/test_pytorch_memory))
flake: $(STAMP)
	@for pass in $$(seq $(TIMES)); do \
		echo "pass $$pass of $(TIMES)"; $(BIN)/python -m pytest -q -m 'not slow' -p no:cacheprovider $(TESTS) || exit 1; \
	done

# What it finds is kept in build/fuzz, and the next run goes on from there.
SECONDS ?= 60
fuzz: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=2.3'
	@for target in wire cluster_file; do \
		$(BIN)/python tests/fuzzing/fuzz.py $$target build/fuzz $(SECONDS) || exit 1; \
	done

# DPWA_TENSORFLOW_PYTHON=~/tensorflow/bin/python make test-tensorflow     TensorFlow in an environment of its own
test-tensorflow: $(STAMP)
	@$(BIN)/python -m pytest tests/lab/tensorflow_mirrored.py

# An environment of their own, which sees what .venv has, so that torch is not downloaded again. Lightning imports mpi4py
# where it is installed, and mpi4py finds its library by itself only in the environment that both belong to.
FRAMEWORKS := build/frameworks
RAY := build/ray
RIVALS := build/rivals
PACKAGES_FOLDER := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
MPI4PY_LIBMPI ?= $(abspath $(wildcard .venv/lib/libmpi.so.12))
test-frameworks: export MPI4PY_LIBMPI := $(MPI4PY_LIBMPI)
test-frameworks: $(STAMP)
	@test -x $(FRAMEWORKS)/bin/python || $(BIN)/python -m venv $(FRAMEWORKS)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES_FOLDER))')" \
		> $$($(FRAMEWORKS)/bin/python $(PACKAGES_FOLDER))/packages_of_dpwa.pth
	@$(FRAMEWORKS)/bin/python -m pip install --quiet --disable-pip-version-check lightning transformers accelerate
	@$(FRAMEWORKS)/bin/python -m pytest tests/project/other_frameworks.py

# Like that of the frameworks: Ray is an extra, which only this needs.
test-ray: $(STAMP)
	@test -x $(RAY)/bin/python || $(BIN)/python -m venv $(RAY)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES_FOLDER))')" \
		> $$($(RAY)/bin/python $(PACKAGES_FOLDER))/packages_of_dpwa.pth
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check ray
	@$(RAY)/bin/python -m pytest tests/engines/real_ray.py

# Like that of the frameworks. The rows of the lab look for the Python that these two variables name.
rivals: $(RIVALS)/installed
$(RIVALS)/installed: $(STAMP)
	@test -x $(RIVALS)/bin/python || $(BIN)/python -m venv $(RIVALS)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES_FOLDER))')" \
		> $$($(RIVALS)/bin/python $(PACKAGES_FOLDER))/packages_of_dpwa.pth
	@$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check hivemind==1.1.12 decent-dp==0.2.3
	@touch $@
	@echo "export DPWA_HIVEMIND_PYTHON=$(abspath $(RIVALS)/bin/python) DPWA_DECENT_DP_PYTHON=$(abspath $(RIVALS)/bin/python)"

test-rivals: export DPWA_HIVEMIND_PYTHON ?= $(abspath $(RIVALS)/bin/python)
test-rivals: export DPWA_DECENT_DP_PYTHON ?= $(abspath $(RIVALS)/bin/python)
test-rivals: $(RIVALS)/installed
	@$(BIN)/python -m pytest tests/lab/rivals.py

lint: $(STAMP)
	@echo "ruff check"
	@$(BIN)/ruff check
	@echo "ruff format"
	@$(BIN)/ruff format --check
	@echo "mypy"
	@$(BIN)/mypy
	@echo "import-linter (on the package as it is installed, with the adapters and examples inside)"
	@rm -rf build/installed && mkdir -p build/installed && cp -r dpwa build/installed/
	@cp -r adapters examples build/installed/dpwa/
	@cd build/installed && ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache --no-logo

BENCHMARKS := exchange overhead straggler scale many_nodes method_overhead

# HIVEMIND=~/hivemind/bin/python make bench     also hivemind, by an interpreter that can import it
bench: $(STAMP)
	@$(BIN)/python benchmarks/exchange.py --json benchmarks/results/exchange.json $(if $(HIVEMIND),--hivemind $(HIVEMIND))
	@$(BIN)/python benchmarks/overhead.py --json benchmarks/results/overhead.json
	@$(BIN)/python benchmarks/straggler.py --json benchmarks/results/straggler.json
	@$(BIN)/python benchmarks/scale.py --json benchmarks/results/scale.json
	@$(BIN)/python benchmarks/many_nodes.py --json benchmarks/results/many_nodes.json
	@$(BIN)/python benchmarks/method_overhead.py --json benchmarks/results/method_overhead.json
	@$(BIN)/python benchmarks/report.py $(BENCHMARKS:%=benchmarks/results/%.json)

# What one slow machine of four costs a user's script; stopped and started again, it goes on where it was.
unequal: $(STAMP)
	@$(BIN)/python benchmarks/unequal.py --json benchmarks/results/unequal.json
	@$(BIN)/python benchmarks/report.py benchmarks/results/unequal.json

bench-gpu: $(STAMP)
	@$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json

# All studies of the lab but the one to try, for docs/results.md; stopped and started again, it goes on where it was.
# make studies STUDIES="gosgd-p matrices"     these only
STUDIES := $(filter-out digits,$(basename $(notdir $(wildcard samples/studies/*.yaml))))
# With the rivals, if `make rivals` has installed them.
HAS_RIVALS := $(wildcard $(RIVALS)/installed)
studies: export DPWA_HIVEMIND_PYTHON ?= $(if $(HAS_RIVALS),$(abspath $(RIVALS)/bin/python))
studies: export DPWA_DECENT_DP_PYTHON ?= $(if $(HAS_RIVALS),$(abspath $(RIVALS)/bin/python))
studies: $(STAMP)
	@set -e; for name in $(STUDIES); do \
		$(BIN)/dpwa lab run samples/studies/$$name.yaml; \
		$(BIN)/dpwa lab report runs/$$name; \
		$(BIN)/python benchmarks/studies.py runs/$$name; \
	done

# Trains nothing: from docs/results/*.json and samples/studies.
results: $(STAMP)
	@$(BIN)/python benchmarks/studies.py
	@$(BIN)/python benchmarks/report.py benchmarks/results/poor_links.json

bench-quick: $(STAMP)
	@set -e; for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py --quick --json build/bench-quick/$$name.json; \
	done

clean:
	rm -rf .venv build dist dpwa.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(STAMP): pyproject.toml setup.py constraints.txt
	@test -x $(BIN)/python || { echo "Making .venv"; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10) and "dpwa needs Python 3.10 or newer: PYTHON=python3.11 make ...")'
	@echo "Installing dpwa and what it needs (the first time, this downloads PyTorch: minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || \
		echo "torchvision was not built for this torch: your own scripts need what docs/your-script.md says (Torchvision)"
	@touch $@
