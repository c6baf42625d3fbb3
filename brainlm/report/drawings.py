"""Drawings of the evaluation's tasks. Same style as :mod:`brainlm.report.figures`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..evaluation.latent import TOKENS
from .figures import _DASHES, _INK, _MARKERS, _QUIET, SERIES, _draw, _shorten, style, to_svg

#: Points of a scatter beyond which they are one image instead of a path each.
_MANY_POINTS = 2000
#: Classes of a variable that get a colour and a marker of their own.
_MAX_CLASSES = 6


def draw_steps(name: str, table: pd.DataFrame, marks: pd.DataFrame) -> str:
    """R² per forecast step, a panel per cohort; below, where the model is better or worse.

    Parameters
    ----------
    table : DataFrame
        cohort, method, step, value; the model's rows have low and high.
    marks : DataFrame
        cohort, method, step, better (bool): steps with a corrected p below 0.05.
    """
    cohorts, methods = list(dict.fromkeys(table["cohort"])), list(dict.fromkeys(table["method"]))
    others = methods[1:]

    def paint(axes):
        for (lines, stars), cohort in zip(axes.reshape(2, -1).T, cohorts, strict=True):
            part = table[table["cohort"] == cohort]
            for number, method in enumerate(methods):
                rows = part[part["method"] == method].sort_values("step")
                _plot_line(lines, rows, number, method, band=number == 0)
            lines.set_title(_shorten(cohort))
            found = marks[marks["cohort"] == cohort]
            for better, marker, words in ((True, "*", "model better"), (False, "x", "worse")):
                rows = found[found["better"] == better]
                places = [others.index(method) for method in rows["method"]]
                stars.plot(rows["step"], places, marker, color=_INK, ms=5, label=words)
            stars.set_yticks(range(len(others)), [_shorten(o, 22) for o in others], fontsize=8)
            stars.set(xlabel="step ahead", ylim=(len(others) - 0.4, -0.6))
            stars.grid(True, axis="x")
            stars.xaxis.get_major_locator().set_params(integer=True)
            lines.grid(True)
        top = axes.reshape(2, -1)
        top[0, 0].set_ylabel("R²")
        top[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        top[1, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="p < 0.05")

    size = (4.2 * len(cohorts) + 2.2, 3.2 + 0.22 * len(others))
    return _draw(name, len(cohorts), size, paint, rows=2, sharex=True,
                 height_ratios=[3, 0.3 + 0.25 * len(others)])  # fmt: skip


def _plot_line(ax, rows: pd.DataFrame, number: int, label: str, *, band: bool = False) -> None:
    x, value = rows["step"], rows["value"].astype(float)
    colour = SERIES[number % 6]
    ax.plot(x, value, color=colour, ls=_DASHES[number % 6], marker=_MARKERS[number % 6], ms=3,
            lw=2 if band else 1.2, label=_shorten(label))  # fmt: skip
    if band and rows["low"].notna().any():
        low, high = rows["low"].astype(float), rows["high"].astype(float)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def draw_forecasts(name: str, examples: pd.DataFrame, methods: list[str]) -> str:
    """The measured signal and its forecasts, a panel per recording and parcel."""
    parts = list(examples.groupby(["recording_id", "parcel"], sort=False))[:3]

    def paint(axes):
        for ax, ((recording, parcel), part) in zip(axes, parts, strict=True):
            truth = part[(part["method"] == "truth") & (part["step"] > -40)]
            ax.plot(truth["step"], truth["value"], color=_INK, lw=1.2, label="measured")
            ax.axvline(0.5, color=_QUIET, lw=1)
            for number, method in enumerate(methods):
                rows = part[part["method"] == method]
                ax.plot(rows["step"], rows["value"], color=SERIES[number % 6],
                        ls=_DASHES[number % 6], lw=1.6, label=_shorten(method))  # fmt: skip
            ax.set_title(f"{_shorten(recording, 24)}, parcel {parcel}", fontsize=8)
            ax.set_xlabel("step ahead")
        axes[0].set_ylabel("signal (IQR units)")
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _draw(name, len(parts), (9.6, 2.7), paint)


def draw_brains(
    name: str, maps: dict[str, np.ndarray], places: np.ndarray, large: np.ndarray
) -> str:
    """Values of parcels [R] on glass brains, a row per map, from the left, above and the right.

    A map whose name contains "minus" is coloured around 0, blue to red; the others share a scale.
    Its parcels that are `large`, bool [R], have larger dots.
    """
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from nilearn import plotting

    with style(name):
        figure = Figure(figsize=(9, 2.5 * len(maps)))
        plain = np.concatenate([v for t, v in maps.items() if " minus " not in t])
        for number, (title, values) in enumerate(maps.items()):
            bottom, height = 1 - (number + 1) / len(maps), 1 / len(maps)
            signed = " minus " in title
            known = np.isfinite(values)
            low, top = _limits(values if signed else plain, signed)
            plotting.plot_markers(
                values[known], places[known],
                node_size=(np.where(large, 40, 10) if signed else np.full(len(values), 14))[known],
                display_mode="lzr", annotate=False,
                node_cmap="RdBu_r" if signed else "cividis", node_vmin=low, node_vmax=top,
                node_kwargs={"linewidths": 0}, alpha=0.9, colorbar=False, figure=figure,
                axes=(0, bottom, 0.88, height * 0.88),
            )  # fmt: skip
            figure.text(0.01, bottom + height * 0.92, title, fontsize=10)
            figure.text(0.01, bottom + height * 0.02, "left, above, right", fontsize=8)
            bar = figure.add_axes((0.9, bottom + height * 0.15, 0.012, height * 0.6))
            Colorbar(bar, _mappable("RdBu_r" if signed else "cividis", low, top))
        return to_svg(figure, name).replace("#000000", "var(--quiet)")


def _limits(values: np.ndarray, signed: bool) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    top = float(np.abs(known).max()) if signed else float(known.max())
    return (-top if signed else float(known.min())), top


def _mappable(colours: str, low: float, high: float):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), colours)


def draw_latent(name: str, points: pd.DataFrame, colour: str) -> str:
    """Map of recordings, a panel per kind of token, coloured by a number or by a few classes."""
    maps = [part for _, part in points.groupby("token", sort=False)]
    numeric = pd.api.types.is_numeric_dtype(points[colour])

    def paint(axes):
        for ax, part in zip(axes, maps, strict=True):
            many = len(part) > _MANY_POINTS
            if numeric:
                shown = _scatter_numbers(ax, part, colour, many)
            else:
                words = part[colour].fillna("not known").astype(str)
                _scatter_classes(ax, part, words, many, legend=ax is axes[-1])
            ax.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=(), yticks=())
            ax.set_title(TOKENS[part["token"].iloc[0]])
            ax.set_aspect("equal", adjustable="datalim")
        if numeric:
            axes[0].figure.colorbar(shown, ax=axes, label=_shorten(colour))

    return _draw(name, len(maps), (3.7 * len(maps) + 1.4, 3.6), paint)


def _scatter_numbers(ax, points: pd.DataFrame, colour: str, many: bool):
    known = points[colour].notna()
    ax.scatter(points["x"][~known], points["y"][~known], s=8, color=_QUIET, alpha=0.3, lw=0,
               rasterized=many)  # fmt: skip
    return ax.scatter(points["x"][known], points["y"][known], c=points[colour][known], s=10,
                      cmap="viridis", lw=0, rasterized=many)  # fmt: skip


def _scatter_classes(
    ax, points: pd.DataFrame, words: pd.Series, many: bool, *, legend: bool
) -> None:
    frequent = list(words.value_counts().index[:_MAX_CLASSES])
    rest = ~words.isin(frequent)
    if rest.any():
        ax.scatter(points["x"][rest], points["y"][rest], s=8, color=_QUIET, alpha=0.4, lw=0,
                   label=f"{words[rest].nunique()} others", rasterized=many)  # fmt: skip
    for number, word in enumerate(frequent):
        part = points[words == word]
        ax.scatter(part["x"], part["y"], s=12, color=SERIES[number], marker=_MARKERS[number],
                   alpha=0.8, lw=0, label=_shorten(word), rasterized=many)  # fmt: skip
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def draw_scaling(name: str, table: pd.DataFrame) -> str:
    """R² against the number of training participants, a line per model size, a panel per cohort.

    `table` has columns cohort, method (the preset), x, value, low, high.
    """
    cohorts, methods = list(dict.fromkeys(table["cohort"])), list(dict.fromkeys(table["method"]))

    def paint(axes):
        for ax, cohort in zip(axes, cohorts, strict=True):
            for number, method in enumerate(methods):
                rows = table[(table["cohort"] == cohort) & (table["method"] == method)]
                rows = rows.sort_values("x")
                value = rows["value"].to_numpy(float)
                low = rows["low"].astype(float).fillna(rows["value"]).to_numpy()
                high = rows["high"].astype(float).fillna(rows["value"]).to_numpy()
                ax.errorbar(rows["x"], value, np.clip([value - low, high - value], 0, None),
                            color=SERIES[number % 6], ls=_DASHES[number % 6], capsize=2,
                            marker=_MARKERS[number % 6], ms=5, label=_shorten(method))  # fmt: skip
            ax.set(xscale="log", xlabel="training participants", title=_shorten(cohort))
            ax.set_xticks(sorted(set(table["x"])), [f"{x:g}" for x in sorted(set(table["x"]))])
            ax.minorticks_off()
            ax.grid(True)
        axes[0].set_ylabel("masked R²")
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="model")

    return _draw(name, len(cohorts), (3.6 * len(cohorts) + 1.4, 3.2), paint, sharey=True)


def draw_confusion(name: str, counts: pd.DataFrame) -> str:
    """Share of each row's clips (the true condition) in each column (the answer)."""
    shares = counts.div(counts.sum(axis=1), axis=0)
    size = 0.45 * np.array(shares.shape[::-1]) + (3.0, 1.4)

    def paint(axes):
        ax = axes[0]
        ax.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares.to_numpy()):
            colour = "#ffffff" if share < 0.5 else "#111111"
            ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                    color=colour)  # fmt: skip
        short = [_shorten(label, 18) for label in shares.columns]
        ax.set_xticks(range(len(short)), short, rotation=90, fontsize=8)
        labels = [_shorten(label, 18) for label in shares.index]
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
        ax.set(xlabel="answer", ylabel="condition", title="% of clips")

    return _draw(name, 1, tuple(size), paint)
