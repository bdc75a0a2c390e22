# `make demo` runs the embedded study and `make test` the tests; both install what they need into .venv first. The tests
# on Slurm need root on Debian or Ubuntu, and install a one-node Slurm from their packages; elsewhere `make test` skips
# them, and says so. `make test-cluster` adds a study whose jobs, node and Snakemake are killed, for some 15 minutes.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# The study takes nothing from the hub, so nothing may try to reach it.
export HF_HUB_OFFLINE := 1

# The study that `make provenance` and `make screenshots` are about.
CONFIG ?= config/config.yaml
STUDY = $(shell sed -n 's/^study: *//p' $(CONFIG))

# The scripts of `make bench`, in order.
BENCHMARKS := machine dump fits exact scores evaluation claims growth startup overhead guard

.PHONY: demo study provenance test test-cluster lint rehearse bench docs screenshots install clean

demo: $(INSTALLED)
	snakemake --profile profiles/local

# The embedded model at the paper's sample sizes; hours on two cores, and it goes on where it stopped. Its tables are kept
# but for the course of each fit, which is large.
study: $(INSTALLED)
	snakemake --profile profiles/local --configfile config/study.yaml
	mkdir -p docs/results
	cp results/study/summary/*.csv results/study/figures/*.sensitivity.svg docs/results/
	rm docs/results/curves.csv
	{ echo 'make study, at commit' "$$(git rev-parse HEAD)"; echo; pip freeze --exclude-editable; } > docs/results/made-by.txt
	python docs/describe_results.py

# Each figure and table of a finished study with the jobs that made it, their code and times: a zip with a page in it.
provenance: $(INSTALLED)
	snakemake --cores 1 --configfile $(CONFIG) --report reports/$(STUDY)-provenance.zip

test: $(INSTALLED) lint
	pytest -n 2 --dist loadgroup tests/unit tests/workflow tests/report tests/cluster/test_slurm.py

test-cluster: $(INSTALLED)
	pytest -s tests/cluster

# The paper's models at full size with random weights: predicted beside measured time, memory and disk of each stage.
rehearse: $(INSTALLED)
	onejump rehearse gpt2-xl --dtype float32
	onejump rehearse phi-3-mini --dtype bfloat16
	onejump rehearse llama-2-7b --dtype float16

# Each claim of speed, measured beside a baseline in the same run: some 40 minutes on two cores that do nothing else.
# The share of `make demo` beside its stages is that of the run that is there: `make clean demo bench` measures it anew.
bench: demo
	for name in $(BENCHMARKS); do echo "== $$name"; python benchmarks/$$name.py || exit 1; done
	python benchmarks/page.py

# What in the docs is made from code and results: the table of all keys, and pictures of a finished study's report.
docs: $(INSTALLED)
	python docs/describe_config.py

screenshots: $(INSTALLED)
	python tests/report/screenshots.py reports/$(STUDY).html docs/screenshots

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

install: $(INSTALLED)

$(INSTALLED): envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .snakemake results resources
