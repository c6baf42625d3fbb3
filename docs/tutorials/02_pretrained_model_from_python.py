# %% [markdown]
# # You have a model and some scans
#
# A model folder (from `01_from_bids_to_report.py`, a colleague or the Hugging Face hub) and scans
# it has never seen: raw BOLD images, images in template space, or parcel series. Run this from the
# clone's root, as a notebook or as a script; it takes seconds.

# %%
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from brainlm.config import load_config
from brainlm.model import from_pretrained, make_windows

# %% [markdown]
# ## 1. The model
#
# A folder, or `owner/name` on the hub. It carries its atlas's coordinates and the scaling that it
# was trained with.

# %%
config = load_config("config.yaml", "tutorial.yaml")  # only to find where tutorial 1 put its model
folder = config.paths.pretrained
model = from_pretrained(folder)
print(f"{model.config.num_parcels} parcels of {model.scaling.atlas}, windows of "
      f"{model.config.window} s, input in {model.scaling.units}")  # fmt: skip

# %% [markdown]
# ## 2. A scan
#
# Here a parcel series is made up: raw means as a scanner gives them, one row every 2 s, and one
# parcel without data. Your own would be `sub-01_task-rest_bold.nii.gz`, a folder in BIDS, or what
# fMRIPrep made of it; the command is the same.

# %%
rng = np.random.default_rng(0)
networks = rng.normal(size=(150, 7)).cumsum(0)
networks -= networks.mean(0)
mixing = rng.normal(size=(7, model.config.num_parcels))
means = 1000 + networks @ mixing + rng.normal(size=(150, model.config.num_parcels))  # [T, R]
means[:, 5] = 0
scan = Path("results/tutorial/scan_timeseries.npy")
scan.parent.mkdir(parents=True, exist_ok=True)
np.save(scan, means)

# %% [markdown]
# ## 3. One command: scan to embedding
#
# The table has a row per window and one per recording, also for recordings that could not be used,
# with the reason. Next to it is a page that shows how good the recordings are.

# %%
out = scan.with_name("embedding.parquet")
out.unlink(missing_ok=True)
embed = [sys.executable, "-m", "brainlm", "embed", str(scan), "--model", str(folder)]
options = ["--tr", "2", "--units", "scanner", "--config", "tutorial.yaml", "--out", str(out)]
subprocess.run([*embed, *options], check=True)
table = pd.read_parquet(out)
recording = table[table["level"] == "recording"].iloc[0]
print(table[["level", "start_s", "coverage", "pool", "warnings"]].to_string(index=False))

# %% [markdown]
# ## 4. The same from Python
#
# `make_windows` is what the command uses: parcels without data become missing, units and
# amplitudes are checked, time and scale are brought to the model's. Nothing is masked and nothing
# is random, so the same series gives the same vector.

# %%
windows = make_windows(model, means, tr_s=2.0, units="scanner")  # [K, R, T]
tokens = model.tokens(windows)  # .values [K, N, D], and which are .known
vectors = model.embed(windows, "components").detach()  # [K, F]; also "mean", "cls", ...
np.testing.assert_allclose(recording["vector"], vectors.mean(0), atol=2e-2)
print(f"tokens {tuple(tokens.values.shape)}, {tokens.known.float().mean():.1%} with data")

# %% [markdown]
# ## 5. Masked reconstruction
#
# Three quarters of the tokens are hidden and predicted from the rest. R² is over the hidden values
# that are known, against predicting the median (0 after scaling).

# %%
with torch.no_grad():
    made = model(windows, mask_ratio=0.75, generator=torch.Generator().manual_seed(0))
hidden = made.pixel_mask
error = (made.prediction - windows)[hidden].square().sum()
print(f"R² {1 - error / windows[hidden].square().sum():.2f} on {hidden.float().mean():.0%} hidden")
assert not hidden[:, 5].any()  # no data there: nothing to compare with

# %% [markdown]
# ## 6. Prediction
#
# A fine-tuned model is a folder too: `brainlm predict SCAN --model FOLDER`, or from Python. A
# regression answers in the label's units, a classifier with the probability of each class by name.
# The series are made up, so the age means nothing.

# %%
for path in sorted(folder.parent.glob("finetune-*/**/model.safetensors"))[:1]:
    tuned = from_pretrained(path.parent)
    answer = tuned.predict(make_windows(tuned, means, tr_s=2.0, units="scanner"))
    name = path.parent.relative_to(folder.parent)
    print(f"{name}: {answer.names[0]} {answer.mean()[0]:.1f}")
