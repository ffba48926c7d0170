"""A report's figures: needles by depth and length, loss by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahn.io.files import written_whole
from ahn.plots import STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
MAPPED = {"acc": (0, 1), "nats": (0, None)}  # of the needles' metrics, and their range
FULL, SHUFFLED = "full", "ahn-shuffled"
DASHES = {"window": "--", "compressive-max": "-.", "compressive-avg": "-.", SHUFFLED: ":"}


def draw(report: Mapping[str, Any], folder: Path) -> list[str]:
    """Write every figure there are data for, as PNG and SVG; returns the names of the PNGs."""
    figures = {f"needles_{m}": _heat_maps(report, m) for m in MAPPED if m in report["needles"]}
    if report["positions"]:
        figures["positions"] = _positions(report)
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


def _heat_maps(report: Mapping[str, Any], metric: str) -> Figure:
    """One map of depth x length for each run, on one scale; above its line a needle has left."""
    runs, about = report["needles"][metric], {run["name"]: run for run in report["runs"]}
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    figure = _figure(figsize=(3.2 * columns, 2.9 * rows + 0.5))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    low, high = MAPPED[metric]
    high = high or max(cell[2] for cells in runs.values() for cell in cells)
    image = None
    for place, (name, cells) in zip(axes, runs.items()):
        image = _heat_map(place, cells, low, high)
        place.set_title(_title(about[name]), fontsize=9)
        settings = about[name]["ahn_config"] if about[name]["method"] != FULL else None
        if settings:
            _eviction_line(place, cells, settings["window"])
    for place in axes[len(runs) :]:
        place.set_axis_off()
    figure.suptitle(_what_a_map_shows(runs, metric), fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=axes.tolist(), label=metric)
    return figure


def _heat_map(place: Any, cells: Sequence[Any], low: float, high: float) -> Any:
    lengths, depths = sorted({c[0] for c in cells}), sorted({c[1] for c in cells})
    value = {(cell[0], cell[1]): cell[2] for cell in cells}
    grid = [[value.get((n, d), float("nan")) for n in lengths] for d in depths]
    image = place.imshow(grid, aspect="auto", vmin=low, vmax=high, cmap="viridis")
    place.set(xlabel="length (tokens)", ylabel="depth")
    place.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], fontsize=7)
    place.set_yticks(range(len(depths)), [f"{d:g}" for d in depths], fontsize=7)
    return image


def _eviction_line(place: Any, cells: Sequence[Any], window: int) -> None:
    """Where, at each length, a needle stands at the window's far end when it is asked for."""
    import numpy as np

    lengths, depths = sorted({c[0] for c in cells}), sorted({c[1] for c in cells})
    for column, length in enumerate(lengths):
        if length > window:
            row = float(np.interp(1 - window / length, depths, range(len(depths))))
            place.plot([column - 0.5, column + 0.5], [row, row], color="red", linewidth=1.5)


def _what_a_map_shows(runs: Mapping[str, Any], metric: str) -> str:
    cells = [cell for cells in runs.values() for cell in cells]
    numbers = sorted({cell[3] for cell in cells})
    count = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    needles = len({cell[1] for cell in cells})  # of a haystack: one at each depth
    chance = f", chance {1 / needles:.3g}" if metric == "acc" else ""
    return f"{metric}, n = {count} a cell{chance}; above the red line a needle has left the window"


def _positions(report: Mapping[str, Any]) -> Figure:
    """What each run loses against full attention by position, with its interval.

    Runs of one memory have one colour. Without a run of full attention, the losses themselves.
    """
    about = {run["name"]: run for run in report["runs"]}
    curves = report["positions"]
    has_full = any("minus_full" in row for rows in curves.values() for row in rows)
    shown = {n: rows for n, rows in curves.items() if not has_full or about[n]["method"] != FULL}
    colours = _colours([about[name] for name in shown])
    figure = _figure(figsize=(9, 4.5))
    axes = figure.subplots()
    for name, rows in shown.items():
        middle = [(row["first"] * row["last"]) ** 0.5 or row["last"] / 2 for row in rows]
        values = [row["minus_full"] or _point(float("nan")) for row in rows] if has_full else [
            _point(row["nats_per_token"]) for row in rows]  # fmt: skip
        style: dict[str, Any] = {
            "color": colours[name], "linestyle": DASHES.get(about[name]["method"], "-")
        }  # fmt: skip
        axes.plot(middle, [x["value"] for x in values], label=_title(about[name]), **style)
        low, high = ([x[end] if x[end] is not None else x["value"] for x in values]
                     for end in ("low", "high"))  # fmt: skip
        axes.fill_between(middle, low, high, color=colours[name], alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    what = "nats per token more than full attention" if has_full else "nats per token"
    axes.set(xlabel="position (tokens)", ylabel=what)
    _mark_budget(axes, report)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _point(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def _mark_budget(axes: Any, report: Mapping[str, Any]) -> None:
    """A labelled line where the first token leaves the window."""
    settings = [run["ahn_config"] for run in report["runs"] if run["ahn_config"]]
    if settings:
        budget = settings[0]["window"] + settings[0]["num_sinks"]
        axes.axhline(0, color="0.8", linewidth=1, zorder=0)
        axes.axvline(budget, color="0.6", linewidth=1)
        axes.annotate(f"budget: {budget:,}", (budget, 1), xycoords=("data", "axes fraction"),
                      xytext=(3, -10), textcoords="offset points", color="0.4",
                      fontsize=8)  # fmt: skip


def _title(run: Mapping[str, Any]) -> str:
    """What a run is called in a figure."""
    return "full attention" if run["method"] == FULL else run["name"]


def _colours(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One colour for each memory and for each method without one, by the runs' names."""
    kinds = dict.fromkeys(_kind(run) for run in runs)
    palette = [colour for colour, _ in STYLES[1:]] + [
        "#8C564B",
        "#56B4E9",
        "#7F7F7F",
        "#BCBD22",
        "#000000",
    ]
    chosen = {kind: palette[number % len(palette)] for number, kind in enumerate(kinds)}
    return {run["name"]: chosen[_kind(run)] for run in runs}


def _kind(run: Mapping[str, Any]) -> Any:
    return run["memory"] if run["method"] in ("ahn", SHUFFLED) else run["method"]
