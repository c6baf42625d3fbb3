# %% [markdown]
# # From BIDS to report
#
# A raw BIDS folder goes in, a trained and evaluated model and a report come out. The recordings
# are simulated, so their truth is known. With your own folder in `tutorial.yaml` three things
# change: the atlas is `a424` (`demo424` is the simulator's), `participants.tsv` needs the column
# `age`, and there is no truth to compare with in section 4. Run this from the clone's root, as a
# notebook or as a script; it takes a few minutes on two cores, and almost no time
# when run again.

# %%
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from brainlm.config import load_config
from brainlm.shards import Corpus

# %% [markdown]
# ## 1. What to do
#
# A configuration says where the recordings are. This one adds to `config.yaml`, which
# explains every key. `layout` is `bids` here; `docs/layouts.md` has fMRIPrep, HCP, UK Biobank, ...

# %%
STUDY = """
results: results/tutorial
cohorts:
  - {name: tutorial, folder: data/tutorial, layout: bids, role: reference}
atlas: {name: demo424}
model: {preset: tiny}
pretrain: {epochs: 20, batch_size: 4, micro_batch_size: 4, learning_rate: 3.0e-3, cpus: 2}
tasks: [reconstruction, workflow/demo/age.yaml]
finetune: {epochs: 10, batch_size: 8}
evaluate: {bootstrap: 500}
"""
if not Path("tutorial.yaml").exists():
    Path("tutorial.yaml").write_text(STUDY)
config = load_config("config.yaml", "tutorial.yaml")
cohort = config.cohorts[0]

# %% [markdown]
# ## 2. Recordings
#
# Sixteen participants, 220 s each. With your own data there is nothing to simulate.

# %%
if not cohort.folder.exists():
    simulate = [sys.executable, "-m", "brainlm", "simulate", str(cohort.folder)]
    subprocess.run([*simulate, "--subjects", "16", "--duration", "220", "--seed", "1"], check=True)
participants = pd.read_csv(cohort.folder / "participants.tsv", sep="\t")
ages = participants["age"]
print(f"{len(ages)} participants, aged {ages.min():.0f} to {ages.max():.0f}")

# %% [markdown]
# ## 3. Everything
#
# One command. It can be stopped and started again, and it does only what is missing: new
# participants in the folder are found at the next run, and only they are processed.

# %%
command = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet"]
subprocess.run([*command, "--configfile", "config.yaml", "tutorial.yaml"], check=True)

# %% [markdown]
# ## 4. What became of every recording
#
# A shard has one row per recording, with its status and the reason where it could not be used.
# Nothing is dropped silently.

# %%
shards = sorted((config.results / "shards" / cohort.name).glob("?????.parquet"))
corpus = Corpus(shards)
print(corpus.table["status"].value_counts().to_string())
print(corpus.table[["recording_id", "split", "mean_fd_mm", "tsnr"]].head().to_string(index=False))

# %% [markdown]
# The series are [time, parcel], in percent of each parcel's mean, one sample a second.

# %%
first = int(corpus.usable()[0])
series = corpus.series(first).astype(float)
print(f"{corpus.table['recording_id'][first]}: {series.shape[0]} s of {series.shape[1]} parcels")

# %% [markdown]
# The cohort is simulated, so we can check how much of the truth was recovered: connectivity of the
# series from the raw images against connectivity of the simulated series.

# %%
truth_file = cohort.folder / f"sourcedata/truth/{corpus.table['participant_id'][first]}.npz"
with np.load(truth_file) as kept:
    truth = np.corrcoef(kept["series"].T)
pairs = np.triu_indices(len(truth), 1)
ours = np.corrcoef(series.T)[pairs]
known = np.isfinite(ours)
agreement = np.corrcoef(ours[known], truth[pairs][known])[0, 1]
print(f"connectivity against the truth: r = {agreement:.2f}")
assert agreement > 0.4

# %% [markdown]
# ## 5. How good the model is
#
# Hidden patches of participants who were not trained on, compared with trivial predictors. A model
# this small, trained for minutes, is only an example.
# %%
table = pd.read_parquet(config.results / "evaluation" / config.release / "reconstruction.parquet")
shown = table[(table["level"] == "pooled") & (table["metric"] == "r2")]
shown = shown[~shown["method"].str.contains(" minus ")]  # paired differences
columns = ["cohort", "target", "method", "value", "low", "high", "n"]
print(shown[columns].round(3).to_string(index=False))

# %% [markdown]
# ## 6. The report
#
# Open it in a browser; it needs no network. Its first screen lists the limitations. The next
# tutorial, `02_pretrained_model_from_python.py`, uses the model that was made here.

# %%
report = config.results / "report/index.html"
assert report.exists()
print(report.absolute())
