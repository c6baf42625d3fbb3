"""Results of every task of a small invented study, with hostile names, for tests of the pages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from brainlm.evaluation.rows import write_results

HOSTILE = (
    '<script>document.title="owned"</script> "quotes" & <b>bold</b> $x_1$ 🧠 مرحبا ' + "x" * 90
)
PARCELS = 12


def write_tasks(folder: Path, rng) -> None:
    """Forecasting, attention, networks, latent space and scaling."""
    write = partial(write_results, seed=1, config="0123456789ab")
    write(_forecasting(rng), folder / "forecasting.parquet")
    _examples().to_parquet(folder / "forecasting.examples.parquet")
    row = {"task": "attention", "target": "sex", "cohort": "home", "split": "all", "n": 40,
           "method": "CLS attention", "level": "pooled", "left_out": 0}  # fmt: skip
    rows = [{"metric": "max_t", "value": 4.2, "p": 0.01}, {"metric": "parcels_p05", "value": 2.0}]
    write([row | numbers for numbers in rows], folder / "attention.parquet")
    maps = [{"cohort": "home", "target": "sex", "group": group, "parcel": k + 1, "n": 20,
             "mean": rng.random(), "low": 0.1, "high": 0.9, "difference": rng.normal(),
             "p": rng.random()} for group in ("F", "M") for k in range(PARCELS)]  # fmt: skip
    pd.DataFrame(maps).to_parquet(folder / "attention.maps.parquet")
    write(_networks(), folder / "networks.parquet")
    participants = pd.DataFrame(rng.normal(size=(40, 2)), columns=["x", "y"])
    participants["cohort"], participants["split"] = "home", "test"
    participants["age"] = rng.uniform(20, 80, 40)
    participants["site"] = np.where(np.arange(40) % 2, "A", HOSTILE)
    participants["recording_id"] = [f"sub-{k:02d}_task-rest" for k in range(40)]
    tokens = [participants.assign(token=token) for token in ("cls", "mean")]
    pd.concat(tokens).to_parquet(folder / "latent.points.parquet")
    row = {"task": "latent", "target": "age", "cohort": "home", "split": "all", "n": 40,
           "method": "CLS token", "level": "pooled", "metric": "r2", "value": 0.2}  # fmt: skip
    write([row], folder / "latent.parquet")
    row = {"task": "scaling", "cohort": "home", "split": "test", "n": 9, "metric": "r2",
           "level": "pooled", "left_out": 0}  # fmt: skip
    rows = [row | {"method": m, "target": f"{s:.0%}", "n_train": int(46 * s), "value": v + s / 5,
                   "low": v + s / 5 - 0.03, "high": v + s / 5 + 0.03}
            for m, v in (("tiny", 0.2), ("13m", 0.25)) for s in (0.1, 0.3, 1.0)]  # fmt: skip
    gap = {"method": "13m minus tiny on 0.1", "target": "100%", "n_train": 46}
    rows.append(row | gap | {"value": 0.2, "low": 0.1, "high": 0.3, "p": 0.01})
    write(rows, folder / "scaling.parquet")


def _forecasting(rng):
    where = {"task": "forecasting", "target": "20 of 200", "cohort": "home", "split": "test",
             "n": 9, "left_out": 0, "note": None}  # fmt: skip
    for method, level in (("AR", 0.3), ("fine-tuned", 0.5), ("LSTM", 0.4), ("zero", 0.0)):
        values = level * np.exp(-np.arange(20) / 6) + rng.normal(0, 0.01, 20)
        rows = [("pooled", None, values.mean())]
        rows += [("step", str(i + 1), v) for i, v in enumerate(values)]
        for kind, unit, value in rows:
            row = where | {"method": method, "level": kind, "unit": unit, "metric": "r2"}
            yield row | {"value": value, "low": value - 0.05, "high": value + 0.05}
            if method != "fine-tuned":
                gap = {"method": f"fine-tuned minus {method}", "metric": "mse"}
                better = {"value": -0.1, "low": -0.2, "high": -0.01, "p": 0.01 if level else 0.5}
                yield row | gap | better


def _examples() -> pd.DataFrame:
    steps = np.arange(-40, 21)
    wave = pd.DataFrame({"cohort": "home", "recording_id": HOSTILE, "parcel": 3, "step": steps,
                         "method": "truth", "value": np.sin(steps / 4)})  # fmt: skip
    methods = enumerate(("fine-tuned", "LSTM", "AR"))
    guesses = [wave[wave["step"] > 0].assign(method=m, value=0.1 * i) for i, m in methods]
    return pd.concat([wave, *guesses])


def _networks():
    row = {"task": "networks", "target": "7 networks", "cohort": "home", "split": "test", "n": 9,
           "metric": "accuracy", "level": "pooled", "left_out": 0}  # fmt: skip
    scores = {"attention rows": 0.7, "connectivity": 0.6, "majority": 0.2, "shuffled": 0.15}
    for method, value in scores.items():
        found = row | {"method": method, "value": value, "low": value - 0.05, "high": value + 0.05}
        yield found
        for unit in ("Vis", "Default"):
            yield found | {"level": "network", "unit": unit}
    yield row | {"method": "attention rows minus majority", "value": 0.5, "low": 0.4, "high": 0.6,
                 "p": 0.001}  # fmt: skip
