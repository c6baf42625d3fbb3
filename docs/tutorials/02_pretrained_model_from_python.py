# %% [markdown]
# # A pretrained model on your own parcel series
#
# You have a model folder (from `01_from_bids_to_report.py`, a colleague or the Hugging Face hub)
# and parcel series of your own: an array [time, parcel], in the parcels and the order of the
# model's atlas. Run this from the clone's root, as a notebook or as a script; it takes seconds.

# %%
from pathlib import Path

import numpy as np
import torch

from brainlm.config import load_config
from brainlm.model import from_pretrained, make_windows

# %% [markdown]
# ## 1. The model
#
# A folder, or `owner/name` on the hub. It carries its atlas' coordinates and the scaling that it
# was trained with.

# %%
config = load_config("config.yaml", "tutorial.yaml")  # only to find where tutorial 1 put its model
models = config.results / "models" / config.release
model = from_pretrained(models / "pretrain")
print(f"{model.config.num_parcels} parcels of {model.scaling.atlas}, windows of "
      f"{model.config.window} s")  # fmt: skip

# %% [markdown]
# ## 2. Your series
#
# Here: an array of means as a scanner gives them, one row every 2 s. The model wants percent of
# each parcel's mean (`model.scaling.units`). A parcel without data is a column of NaN: its tokens
# never reach the encoder.

# %%
rng = np.random.default_rng(0)
tr_s = 2.0
networks = rng.normal(size=(150, 7)).cumsum(0)
networks -= networks.mean(0)
mixing = rng.normal(size=(7, model.config.num_parcels))
means = 1000 + networks @ mixing + rng.normal(size=(150, model.config.num_parcels))  # [T, R]
means[:, 5] = np.nan

percent = 100 * (means / means.mean(0) - 1)

# %% [markdown]
# `make_windows` resamples to the model's rate, applies the model's scaling and cuts windows.

# %%
windows = make_windows(model, percent, tr_s=tr_s)  # [K, R, T]
print(f"{windows.shape[0]} windows of {windows.shape[1]} parcels and {windows.shape[2]} s")

# %% [markdown]
# ## 3. Embeddings
#
# One vector per window: the CLS token, the mean over tokens, or, of a model with a token per
# parcel, the correlations between the parcels' encodings. On real people the last tells most of
# who they are; it is what fine-tuning reads. Nothing is masked and nothing is random, so the same
# series gives the same vector.

# %%
with torch.no_grad():
    cls = model.embed(windows)  # [K, D]
    mean = model.embed(windows, "mean")
    pairs = model.embed(windows, "connectivity")  # [K, R (R - 1) / 2], NaN where no data
assert torch.equal(cls, model.embed(windows).detach())
print(f"CLS {tuple(cls.shape)}, mean of tokens {tuple(mean.shape)}, pairs {tuple(pairs.shape)}")

# %% [markdown]
# ## 4. Masked reconstruction
#
# Three quarters of the tokens are hidden and predicted from the rest. R² is over the hidden values
# that are known, against predicting the median (0 after scaling).

# %%
with torch.no_grad():
    out = model(windows, mask_ratio=0.75, generator=torch.Generator().manual_seed(0))
hidden = out.pixel_mask
error = (out.prediction - windows)[hidden].square().sum()
r2 = 1 - error / windows[hidden].square().sum()
print(f"{hidden.float().mean():.0%} of the values hidden, R² {r2:.2f}")
assert not hidden[:, 5].any()  # no data there: nothing to compare with

# %% [markdown]
# ## 5. Prediction
#
# A fine-tuned model is a folder too. It gives a value in the label's units, or the probability of
# each class, for every window; average over the recording. These series are made up, and so is
# the age.

# %%
finetuned = sorted(Path(models).glob("finetune-*/**/model.safetensors"))
for path in finetuned[:1]:
    model = from_pretrained(path.parent)
    values, names = model.predict(make_windows(model, percent, tr_s=tr_s))
    found = zip(names, values.mean(0).tolist(), strict=True)
    print(path.parent.relative_to(models), *(f"{name}: {value:.2f}" for name, value in found))
