"""A report's figures: needles by depth and length, loss by position."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahn.io.files import written_whole
from ahn.plots import STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
MARKERS = ".x+1234|_" * 9  # the next marker each time all line styles are used
MAPPED = {"acc": (0, 1), "nats": (0, None)}  # of the needles' metrics, and their range


def draw(report: Mapping[str, Any], folder: Path) -> list[str]:
    """Write every figure there are data for, as PNG and SVG; returns the names of the PNGs."""
    figures = {
        f"needles_{m}": _heat_maps(report["needles"], m) for m in MAPPED if m in report["needles"]
    }
    if report["positions"]:
        figures["positions"] = _positions(report["positions"], _budget(report))
    for name, figure in figures.items():
        for kind in FORMATS:
            with written_whole(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind)
    return [f"{name}.png" for name in figures]


def _figure(**options: Any) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=150, layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure


def _heat_maps(needles: Mapping[str, Any], metric: str) -> Figure:
    """One map of depth x length for each run, on one scale."""
    runs = needles[metric]
    columns = min(4, len(runs))
    figure = _figure(figsize=(3.2 * columns, 2.9 * -(-len(runs) // columns)))
    axes = figure.subplots(-(-len(runs) // columns), columns, squeeze=False).flatten()
    low, high = MAPPED[metric]
    high = high or max(cell[2] for cells in runs.values() for cell in cells)
    image = None
    for place, (name, cells) in zip(axes, runs.items()):
        lengths, depths = sorted({c[0] for c in cells}), sorted({c[1] for c in cells})
        value = {(length, depth): x for length, depth, x in cells}
        grid = [[value.get((n, d), float("nan")) for n in lengths] for d in depths]
        image = place.imshow(grid, aspect="auto", vmin=low, vmax=high, cmap="viridis")
        place.set(title=name, xlabel="length (tokens)", ylabel="depth")
        place.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], fontsize=7)
        place.set_yticks(range(len(depths)), [f"{d:g}" for d in depths], fontsize=7)
    for place in axes[len(runs) :]:
        place.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=axes.tolist(), label=metric)
    return figure


def _positions(positions: Mapping[str, Any], budget: int | None) -> Figure:
    figure = _figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for index, (name, rows) in enumerate(positions.items()):
        (colour, dashes), marker = STYLES[index % len(STYLES)], MARKERS[index // len(STYLES)]
        middle = [(row["first"] * row["last"]) ** 0.5 or row["last"] / 2 for row in rows]
        losses = [row["nats_per_token"] for row in rows]
        axes.plot(middle, losses, color=colour, linestyle=dashes, label=name, marker=marker)
    if budget:
        axes.axvline(budget, color="0.6", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="position (tokens)", ylabel="nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _budget(report: Mapping[str, Any]) -> int | None:
    settings = [run["ahn_config"] for run in report["runs"] if run["ahn_config"]]
    return settings[0]["window"] + settings[0]["num_sinks"] if settings else None
