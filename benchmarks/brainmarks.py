"""Where a model folder stands in Brainmarks, the public benchmark, by its own logistic protocol.

    python benchmarks/brainmarks.py --data ROOT --model results/models/r1/pretrain --space cc200

ROOT is what Brainmarks calls BRAINMARKS_DATA_ROOT: its arrow datasets and target maps. Each row is
one run of `python -m brainmarks.main_logistic`, unmodified (a frozen encoder, logistic regression
on its summary): the connectome, and the model trained and as it was initialised, for the mean
token, the connectivity pool and the tokens. Needs `pip install --no-deps brainmarks` and what it
imports (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

PLUGIN = Path(__file__).resolve().parents[1] / "plugins"
STATES = {"pretrained": False, "untrained": True}
SUMMARIES = {"mean token": ("cls", "mean"), "connectivity pool": ("cls", "connectivity"),
             "tokens": ("patch", "mean")}  # fmt: skip


def run(model: str, representation: str, dataset: str, options: list[str], args) -> pd.DataFrame:
    """The table of one run: a row per split and trial."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "brainmarks.main_logistic", model, representation, dataset,
            "--overrides", f"output_root={out}", "device=cpu", "num_workers=1", "amp=false",
            f"n_trials={args.trials}", *options,
        ]  # fmt: skip
        environment = os.environ | {
            "BRAINMARKS_DATA_ROOT": str(args.data),
            "PYTHONPATH": os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        (table,) = Path(out).rglob("eval_table.csv")
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
    parser.add_argument("--space", default="a424")
    parser.add_argument("--datasets", nargs="+", default=["abide_dx", "abide_sex", "abide_age"])
    parser.add_argument("--trials", type=int, default=8, help="random splits")
    args = parser.parse_args()
    rows = []
    for dataset in args.datasets:
        space = [f"model_kwargs.space={args.space}"]
        found = run("connectome_pipeline", "cls", dataset, space, args)
        rows.append(summarise(found, "connectome", dataset))
        for summary, (representation, pool) in SUMMARIES.items():
            for state, untrained in STATES.items():
                options = [*space, f"model_kwargs.model={args.model.absolute()}",
                           f"model_kwargs.pool={pool}",
                           f"model_kwargs.untrained={str(untrained).lower()}"]  # fmt: skip
                found = run("brainlm_pipeline", representation, dataset, options, args)
                rows.append(summarise(found, f"{summary}, {state}", dataset))
                print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
