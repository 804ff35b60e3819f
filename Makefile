# Every target sets itself up: the first one that runs creates .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow check bench

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/ppgen compare --data digits --prior standard,mog,vamp,flow --posterior diagonal,full,householder,iaf --out runs/demo

# Two processes of one thread each: with more threads than cores, torch's pools slow each other down.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# pytest's status 5 says that there is no test to run, which is no failure.
test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow || test $$? -eq 5

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Quick settings, to runs/bench; benchmarks/README.md has the results of longer runs. Waiting threads sleep, since on
# shared cores they would hold up those that they wait for. A peer that will not install is said by the scripts.
BENCH := runs/bench
bench: export OMP_WAIT_POLICY = passive
bench: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' || echo "The peers could not be installed."
	$(BIN)/python benchmarks/training.py --threads 1 --seconds 25 --out $(BENCH)/training.json
	$(BIN)/python benchmarks/training.py --threads 4 --seconds 25 --out $(BENCH)/training.json
	$(BIN)/python benchmarks/training.py --device cuda --out $(BENCH)/training.json
	$(BIN)/python benchmarks/likelihood.py --samples 1000 --repeats 10 --pythae-repeats 2 --out $(BENCH)/likelihood.json
	$(BIN)/python benchmarks/vamp_prior.py --components 500 --repeats 3 --out $(BENCH)/vamp_prior.json
	$(BIN)/python benchmarks/em.py --rows 20000 --out $(BENCH)/em.json
	$(BIN)/python benchmarks/pixelcnn_sampling.py --quick --out $(BENCH)/pixelcnn_sampling.json
	$(BIN)/python benchmarks/growth.py --rounds 3 --out $(BENCH)/growth.json
	$(BIN)/python benchmarks/report.py --results $(BENCH)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
