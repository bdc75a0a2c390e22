#!/usr/bin/env bash
# Snakemake runs this in the environment that it has made of study.yaml: onejump itself comes from the clone.
set -euo pipefail
if [ ! -f src/onejump/cli.py ]; then
    echo "envs/study.post-deploy.sh: $PWD is no clone of onejump; run Snakemake there once with --conda-create-envs-only" >&2
    exit 1
fi
python -m pip install --no-deps --editable .
