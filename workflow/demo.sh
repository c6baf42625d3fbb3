#!/usr/bin/env bash
# The demo: a simulated raw BIDS cohort through the whole pipeline. Run by `make demo`.
set -euo pipefail
cores=$1
cohort=data/demo
if [ ! -e "$cohort/.complete" ]; then
  echo "simulating a raw BIDS cohort in $cohort"
  brainlm simulate "$cohort" --subjects 40 --seed 1 --workers "$cores"
  touch "$cohort/.complete"
fi
snakemake --cores "$cores" --configfile config.yaml workflow/demo.yaml
echo "$PWD/results/report/index.html"
