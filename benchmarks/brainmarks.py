"""Where a model folder stands in Brainmarks, the public benchmark, by its own logistic protocol.

    python benchmarks/brainmarks.py --data ROOT --model results/models/r1/pretrain --space cc200

ROOT is what Brainmarks calls BRAINMARKS_DATA_ROOT: its arrow datasets and target maps. Each row is
one run of `python -m brainmarks.main_logistic`, unmodified (a frozen encoder, logistic regression
on its summary): the connectome, and the model trained and as it was initialised, for the mean
token, the connectivity pool and the tokens (which this protocol averages). Runs that --out holds
are not repeated. Needs `pip install --no-deps brainmarks` and what it
imports (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

PLUGIN = Path(__file__).resolve().parents[1] / "plugins"
STATES = {"pretrained": False, "untrained": True}
SUMMARIES = {"mean token": ("cls", "mean"), "connectivity pool": ("cls", "connectivity"),
             "tokens": ("patch", "mean")}  # fmt: skip


def run(model: str, representation: str, dataset: str, options: list[str], args) -> pd.DataFrame:
    """The table of one run, a row per split and trial; read where it was made already."""
    digest = hashlib.sha256(repr((model, representation, dataset, options, args.trials)).encode())
    out = args.out / digest.hexdigest()[:12]
    if not list(out.rglob("eval_table.csv")):
        command = [
            sys.executable, "-m", "brainmarks.main_logistic", model, representation, dataset,
            "--overrides", f"output_root={out}", "device=cpu", "num_workers=1", "amp=false",
            "metrics=[acc,bacc]", f"n_trials={args.trials}", *options,
        ]  # fmt: skip
        environment = os.environ | {
            "BRAINMARKS_DATA_ROOT": str(args.data),
            "PYTHONPATH": os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
    (table,) = out.rglob("eval_table.csv")
    return pd.read_csv(table)


def summarise(table: pd.DataFrame, name: str, dataset: str) -> dict:
    """Balanced accuracy on the published split (sd of its bootstrap) and over random ones."""
    test = table[table["split"] == "test"]
    fixed, random = test[test["trial"].isna()], test[test["trial"].notna()]
    return {
        "model": name,
        "dataset": dataset,
        "fixed split": f"{fixed['bacc'].iloc[0]:.3f} ± {fixed['bacc_std'].iloc[0]:.3f}",
        "random splits": f"{random['bacc'].mean():.3f} ± {random['bacc'].std():.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/brainmarks-runs"))
    parser.add_argument("--space", default="a424")
    parser.add_argument("--datasets", nargs="+", default=["abide_dx", "abide_sex", "abide_age"])
    parser.add_argument("--trials", type=int, default=8, help="random splits")
    args = parser.parse_args()
    args.out = args.out.absolute()
    rows = []

    def add(model: str, representation: str, dataset: str, name: str, /, **kwargs) -> None:
        options = [f"model_kwargs.{key}={value}" for key, value in kwargs.items()]
        found = run(model, representation, dataset, options, args)
        rows.append(summarise(found, name, dataset))
        print(rows[-1], flush=True)

    for summary, (representation, pool) in SUMMARIES.items():
        for state, untrained in STATES.items():
            kept = args.out / f"tokens-{state}"
            kept.mkdir(parents=True, exist_ok=True)
            for dataset in args.datasets:
                add("brainlm_pipeline", representation, dataset, f"{summary}, {state}",
                    space=args.space, model=args.model.absolute(), pool=pool,
                    untrained=str(untrained).lower(), kept=kept)  # fmt: skip
    for dataset in args.datasets:
        add("connectome_pipeline", "cls", dataset, "connectome", space=args.space)
    print(pd.DataFrame(rows).sort_values("dataset", kind="stable").to_markdown(index=False))


if __name__ == "__main__":
    main()
