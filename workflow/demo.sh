#!/usr/bin/env bash
# The demo: simulated raw BIDS and an external cohort of parcel series through the whole pipeline. Run by `make demo`.
set -euo pipefail
cores=$1
cohort=data/demo
if [ ! -e "$cohort/.complete" ]; then
  echo "simulating a raw BIDS cohort in $cohort"
  brainlm simulate "$cohort" --subjects 40 --seed 1 --workers "$cores"
  touch "$cohort/.complete"
fi
external=data/demo_external # other participants, 100 in seconds
if [ ! -e "$external/.complete" ]; then
  brainlm simulate "$external" --series --subjects 100 --first-subject 101 --seed 1
  touch "$external/.complete"
fi
snakemake --cores "$cores" --configfile config.yaml workflow/demo.yaml
echo "$PWD/results/report/index.html"
