"""Drawings as SVG that lives inside the page: its colours and letters are the page's own.

Matplotlib draws with fixed colours; in the SVG they are replaced by the style sheet's variables,
so that one drawing is right in light, in dark and in print. Series differ by marker or dash as
well as by colour (Okabe & Ito's palette, which colour-blind readers can tell apart).
"""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..training.predictors import PREDICTORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Placeholder colour -> CSS variable.
_INK, _QUIET, _PAPER = "#010203", "#040506", "#070809"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_VARIABLES = {_INK: "--ink", _QUIET: "--quiet", _PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 10,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": _QUIET,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "text.color": _INK,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


def style(name: str):
    """Context in which a figure is drawn; `name` makes its ids the same in every run."""
    import matplotlib

    return matplotlib.rc_context(_STYLE | {"svg.hashsalt": name})


def _draw(
    name: str, panels: int, size: tuple[float, float], paint, *, rows: int = 1, **options
) -> str:
    """SVG of `panels` axes side by side in `rows`, painted by ``paint(axes)``; inches."""
    from matplotlib.figure import Figure

    with style(name):
        figure = Figure(figsize=size, layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, panels, **options))
        paint(axes)
        return to_svg(figure, name)


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element without colours, fonts or metadata of its own."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # letters are about as large in every drawing: a small one does not fill the page
    width = f'style="max-width: {6.7 * figure.get_figwidth():.0f}rem"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf"\1 {width}", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' [dxy]="[^"]*"', _round, text)
    text = re.sub(r"data:image/png;base64,([^\"]+)", _shrink, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = text.replace("'DejaVu Sans'", "system-ui").replace("\r", "")
    # Ids are unique on the page: figures must not use each other's clip paths. Of markers that
    # several axes define alike, by a hash of their shape, the first keeps it.
    seen: set[str] = set()
    text = re.sub(r' id="([^"]+)"', lambda m: _name_once(m[1], name, seen), text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    return re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)


def _name_once(text: str, name: str, seen: set[str]) -> str:
    if text in seen:
        return ""
    seen.add(text)
    return f' id="{name}-{text}"'


def _round(attribute: re.Match) -> str:
    """Coordinates to a hundredth of a point, which cannot be seen and saves a third of the bytes.

    Transforms keep all their digits: they multiply the width of a whole image.
    """
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]).replace(" \n", "\n")


def _shrink(address: re.Match) -> str:
    """An embedded image with few colours as a palette image: the same pixels, half the bytes."""
    from PIL import Image

    data = base64.b64decode(address[1])
    return as_address(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))) or address[0]


def as_address(pixels: np.ndarray) -> str:
    """RGBA pixels [Y, X, 4] of at most 256 colours as a PNG in a data address; else nothing."""
    from PIL import Image

    packed = np.ascontiguousarray(pixels, np.uint8).view(np.uint32)[..., 0]
    colours, index = np.unique(packed, return_inverse=True)
    if len(colours) > 256:
        return ""
    palette = colours.view(np.uint8).reshape(-1, 4)
    image = Image.fromarray(index.reshape(packed.shape).astype(np.uint8), "P")
    image.putpalette(palette[:, :3].tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", transparency=palette[:, 3].tobytes(), optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def draw_curve(curve: pd.DataFrame) -> str:
    """Loss and masked R² of the pretraining, with what trivial predictors reach."""

    def paint(axes):
        loss, score = axes
        for number, (split, part) in enumerate(curve.groupby("split", sort=False)):
            part = part.dropna(subset=["loss"])
            loss.plot(part["step"], part["loss"], color=SERIES[number], label=split,
                      ls=_DASHES[number], marker=_MARKERS[number] if len(part) < 40 else "",
                      ms=3.5)  # fmt: skip
        held_out = curve[curve["split"] != "train"]
        names = {"r2": "model"} | {
            f"r2_{name}": name for name in PREDICTORS if f"r2_{name}" in curve
        }
        for number, (column, label) in enumerate(names.items()):
            part = (held_out if len(held_out) else curve).dropna(subset=[column]) \
                if column in curve else curve[:0]  # fmt: skip
            if len(part):
                score.plot(part["step"], part[column], color=SERIES[number], label=label,
                           ls=_DASHES[number],
                           marker="o" if len(part) < 40 else "", ms=3.5)  # fmt: skip
        loss.set(xlabel="update", ylabel="masked MSE (scaled units)")
        score.set(xlabel="update", ylabel="masked R² (validation)")
        for ax in axes:
            ax.grid(True)
            ax.legend()

    return _draw("curve", 2, (8.6, 3.1), paint)


def draw_intervals(name: str, table: pd.DataFrame, xlabel: str, *, zero: bool = True) -> str:
    """Dots with 95 % intervals: one row per group, one marker per method.

    `table` has columns group, method, value, low, high.
    """
    groups = list(dict.fromkeys(table["group"]))
    methods = list(dict.fromkeys(table["method"]))

    def paint(axes):
        ax = axes[0]
        for number, method in enumerate(methods):
            part = table[table["method"] == method]
            y = [groups.index(g) + 0.16 * (number - (len(methods) - 1) / 2) for g in part["group"]]
            _plot_intervals(ax, part, y, number, method)
        if zero:
            ax.axvline(0, color=_QUIET, lw=1)
        ax.set_yticks(range(len(groups)), groups)
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.set_xlabel(xlabel)
        ax.grid(True, axis="x")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _draw(name, 1, (8.6, 1.2 + 0.55 * max(len(groups), 2)), paint)


def _plot_intervals(ax: Axes, part: pd.DataFrame, y, number: int, label: str) -> None:
    value = part["value"].to_numpy(float)
    low, high = (part[c].astype(float).fillna(part["value"]).to_numpy() for c in ("low", "high"))
    spread = np.clip([value - low, high - value], 0, None)
    ax.errorbar(value, y, xerr=spread, fmt=_MARKERS[number % 6], color=SERIES[number % 6],
                ms=5, lw=1.4, capsize=2, label=label)  # fmt: skip


def draw_traces(traces: dict[str, np.ndarray], sample_period_s: float) -> str:
    """Examples: truth, what was hidden, and what the model and linear interpolation put there."""

    def paint(axes):
        for ax, (name, (truth, hidden, model, linear)) in zip(axes, traces.items(), strict=True):
            time = np.arange(len(truth)) * sample_period_s
            gap = hidden > 0
            ax.fill_between(time, 0, 1, where=gap, transform=ax.get_xaxis_transform(),
                            color=_QUIET, alpha=0.15, lw=0, step="mid",
                            label="hidden")  # fmt: skip
            ax.plot(time, truth, color=_INK, lw=1, alpha=0.75, label="measured")
            series = ((model, "model", "-"), (linear, "linear interpolation", "--"))
            for number, (values, label, dash) in enumerate(series):
                ax.plot(time, np.where(gap, values, np.nan), color=SERIES[number], lw=1.8,
                        ls=dash, label=label)  # fmt: skip
            ax.set_title(_shorten(name), fontsize=9)
            ax.set_xlabel("time (s)")
        axes[0].set_ylabel("signal (IQR units)")
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _draw("traces", len(traces), (9.6, 2.7), paint, sharey=True)


def draw_scatter(name: str, table: pd.DataFrame, target: str) -> str:
    """Predicted against true value, a panel per method; columns method, label, prediction."""
    methods = list(dict.fromkeys(table["method"]))
    low, high = (
        table[["label", "prediction"]].min().min(),
        table[["label", "prediction"]].max().max(),
    )

    def paint(axes):
        for number, (ax, method) in enumerate(zip(axes, methods, strict=True)):
            part = table[table["method"] == method]
            ax.plot([low, high], [low, high], color=_QUIET, lw=1)
            ax.plot(part["label"], part["prediction"], _MARKERS[number % 6], ms=4, alpha=0.7,
                    color=SERIES[number % 6], mew=0)  # fmt: skip
            ax.set_title(_shorten(method))
            ax.set_xlabel(f"{_shorten(target)}, true")
            ax.set_aspect("equal", adjustable="box")
            ax.grid(True)
        axes[0].set_ylabel(f"{_shorten(target)}, predicted")

    return _draw(name, len(methods), (2.9 * len(methods) + 0.4, 3.1), paint,
                 sharex=True, sharey=True)  # fmt: skip


def draw_histograms(name: str, columns: dict[str, pd.Series], groups: pd.Series) -> str:
    """Distributions of quality figures, one panel each, one outline per cohort."""

    def paint(axes):
        for ax, (label, values) in zip(axes, columns.items(), strict=True):
            known = values.dropna().astype(float)
            edges = np.histogram_bin_edges(known, bins=min(30, max(5, len(known) // 4)))
            for number, cohort in enumerate(dict.fromkeys(groups[known.index])):
                part = known[groups[known.index] == cohort]
                ax.hist(part, edges, histtype="stepfilled", alpha=0.35,
                        color=SERIES[number % 6], label=_shorten(cohort))  # fmt: skip
                ax.hist(part, edges, histtype="step", color=SERIES[number % 6],
                        ls=_DASHES[number % 6], lw=1.4)  # fmt: skip
            ax.set_xlabel(label)
        axes[0].set_ylabel("recordings")
        if groups.nunique() > 1:
            axes[-1].legend()

    return _draw(name, len(columns), (2.9 * len(columns) + 0.4, 2.6), paint)


def draw_parcels(scaling, coverage: np.ndarray | None) -> str:
    """Median, IQR and coverage per parcel: what the frozen scaling knows of each."""
    panels = [("median", scaling.median), ("IQR", scaling.iqr)] if scaling is not None else []
    panels += [("mean coverage", coverage)] if coverage is not None else []

    def paint(axes):
        for number, (ax, (label, values)) in enumerate(zip(axes, panels, strict=True)):
            ax.plot(np.arange(1, len(values) + 1), values, ".", ms=3, color=SERIES[number])
            ax.set(xlabel="parcel", ylabel=label)
            ax.grid(True, axis="y")
            if label == "mean coverage":
                ax.set_ylim(0, 1.03)

    return _draw("parcels", len(panels), (2.9 * len(panels) + 0.4, 2.5), paint)


def draw_values(name: str, panels: dict[str, np.ndarray], large: np.ndarray) -> str:
    """Values [R] of parcels in the order of the atlas, a panel each; `large`, bool [R], of a
    difference have larger dots."""

    def paint(axes):
        for number, (ax, (title, values)) in enumerate(zip(axes, panels.items(), strict=True)):
            parcels = np.arange(1, len(values) + 1)
            ax.plot(parcels, values, ".", ms=3, color=SERIES[number])
            if " minus " in title:
                ax.plot(parcels[large], values[large], "o", ms=5, color=SERIES[number])
            ax.set(xlabel="parcel", title=_shorten(title))
            ax.grid(True, axis="y")

    return _draw(name, len(panels), (2.9 * len(panels) + 0.4, 2.5), paint)


def _shorten(text: object, limit: int = 34) -> str:
    text = str(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
