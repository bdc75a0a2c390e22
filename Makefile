# `make demo` runs the embedded study, `make test` the tests; both first install what they need into .venv. The Slurm
# tests need root on Debian or Ubuntu, where they install a one-node Slurm from the distribution's packages; elsewhere
# `make test` skips them and says so. `make test-cluster` also kills the jobs, the node and Snakemake itself (an hour).
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Neither the demo nor the tests need the Hugging Face hub, so nothing may try to reach it.
export HF_HUB_OFFLINE := 1

# The study that `make provenance` and `make screenshots` work on.
CONFIG ?= config/config.yaml
NAME_OF_STUDY := import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["study"])
STUDY = $(or $(shell $(VENV)/bin/python -c '$(NAME_OF_STUDY)' '$(CONFIG)' 2>/dev/null),\
	$(error CONFIG=$(CONFIG): expected the config of a study, with a key study; give one that exists))

# The studies of `make study`, in order.
STUDIES := models study one-jump scales seeds lenses ranks bos generated

# The scripts of `make bench`, in order.
BENCHMARKS := machine dump stream fits lenses divergence exact scores evaluation claims growth startup overhead trajectory generate guard

.PHONY: demo demo-results jumps tutorial study provenance test test-cluster test-gpu flips lint rehearse bench docs architectures screenshots install lock clean

demo: $(INSTALLED)
	snakemake --profile profiles/local

# What docs/findings.md tells, study after study: three models at the paper's sample sizes, the choices that the paper leaves
# open, and what one jump for all levels is made of. Hours on two cores; run it again to resume.
study: $(INSTALLED)
	for name in $(STUDIES); do snakemake --profile profiles/local --configfile config/$$name.yaml || exit 1; done
	python docs/keep_results.py $(addprefix results/,$(STUDIES))
	python docs/describe_results.py

# What the README says about the demo.
demo-results: demo
	python docs/keep_results.py results/demo

# The jumps that come with onejump, jumps/, from the demo and a study of a larger model: hours on two cores; run it again
# to resume. $(1) is a study, $(2) its model, $(3) the SHA-256 of that model's file, $(4) its id on the hub.
PUBLISH = onejump publish --results results/$(1) --config results/$(1)/config.json --model $(2) --variant one-jump \
	--base resources/models/$(3) --base-id $(4) --licence apache-2.0 --text-licence "CC BY-SA 3.0" --out jumps/$(2)
jumps: demo
	$(call PUBLISH,demo,smollm2-135m,b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53,$\
		HuggingFaceTB/SmolLM2-135M-Instruct)
	snakemake --profile profiles/local --configfile config/ready.yaml
	$(call PUBLISH,ready,qwen2.5-coder-1.5b,cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046,$\
		Qwen/Qwen2.5-Coder-1.5B-Instruct)
	python docs/describe_jumps.py

# Executes the cells of the tutorial, and keeps what they print: two minutes after the demo.
tutorial: demo
	python docs/run_tutorial.py

# A zip with a page that shows, for each figure and table of a finished study, the jobs that made it, their code and times.
provenance: $(INSTALLED)
	@test -e reports/$(STUDY).html || { echo "make provenance: reports/$(STUDY).html is missing; run the study to its \
	end first: snakemake --profile profiles/local --configfile $(CONFIG)" >&2; exit 1; }
	snakemake --cores 1 --configfile $(CONFIG) --report reports/$(STUDY)-provenance.zip

test: $(INSTALLED) lint
	pytest -n 2 --dist loadgroup --durations 20 tests/unit tests/workflow tests/report tests/cluster/test_slurm.py

test-cluster: $(INSTALLED)
	pytest -s tests/cluster

# What can differ on a GPU, against the CPU: for a machine that has one, with a CUDA build of PyTorch.
test-gpu: $(INSTALLED)
	pytest tests/gpu

# 20 random bits flipped in each kind of file that a stage reads, as a table: noticed, or the output is identical.
flips: $(INSTALLED)
	ONEJUMP_TEST_FLIPS=20 pytest -s tests/workflow/test_flips.py

# The paper's models at full size with random weights on disk (14 GB at once): each stage's predicted time, memory and
# disk beside the measured.
rehearse: $(INSTALLED)
	onejump rehearse gpt2-xl --dtype float32
	onejump rehearse phi-3-mini --dtype bfloat16
	onejump rehearse llama-2-7b --dtype float16

# Measures each claim of speed against a baseline in the same run: about 40 minutes on two otherwise idle cores. The
# overhead of `make demo` is taken from the demo's last run; `make clean demo bench` measures it from scratch.
bench: demo
	for name in $(BENCHMARKS); do echo "== $$name"; python benchmarks/$$name.py || exit 1; done
	python benchmarks/page.py

# The parts of the docs that are generated: the table of config keys, and screenshots of a finished study's report.
docs: $(INSTALLED)
	python docs/describe_config.py

# Every causal language model of the installed Transformers, tiny and with random weights: a few minutes.
architectures: $(INSTALLED)
	python docs/describe_architectures.py

screenshots: $(INSTALLED)
	python tests/report/screenshots.py reports/$(STUDY).html docs/screenshots

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

install: $(INSTALLED)

# Resolves the dev extra of pyproject.toml anew into envs/requirements.lock. The libraries of a CUDA build are left out,
# because they depend on the machine. The pins in envs/study.yaml and .pre-commit-config.yaml follow by hand; a test says
# which ones differ.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	{ grep '^#' envs/requirements.lock; $(VENV)-lock/bin/python -m pip freeze --exclude-editable \
		| sed -E '/^(cuda|nvidia|triton)/d; s/\+cpu$$//'; } > $(VENV)-lock/requirements.lock
	mv $(VENV)-lock/requirements.lock envs/requirements.lock
	rm -r $(VENV)-lock

$(INSTALLED): envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .snakemake results resources
