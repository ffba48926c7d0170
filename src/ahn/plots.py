"""Figures from result JSON alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ahn.io.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2**20
# Okabe and Ito's colours, told apart with any colour vision; the dashes serve print without any.
STYLES: tuple[tuple[str, Any], ...] = (
    ("#000000", "-"),
    ("#D55E00", "--"),
    ("#0072B2", "-"),
    ("#009E73", "-."),
    ("#CC79A7", (0, (3, 1, 1, 1, 1, 1))),
    ("#E69F00", ":"),
    ("#56B4E9", "-"),
    ("#7F7F7F", "--"),
)


def demo_figure(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the result of `ahn demo`: facts found, loss by position, bytes of the cache by length.

    Args:
        result: the demo's JSON object.
        path: PNG to write, completely or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    panels = [_prediction, _cache_bytes]
    if result["facts"]:
        panels.insert(0, _facts_found)
    for axes, panel in zip(figure.subplots(1, len(panels)), panels):
        panel(axes, result)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")


def training_figure(log: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw loss and learning rate of a training run.

    Args:
        log: what was logged, each with its `step`.
        path: PNG to write, completely or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rate = axes.twinx()
    for of, name, (colour, dashes) in (
        (axes, "loss", STYLES[0]),
        (rate, "learning_rate", STYLES[1]),
    ):
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        of.plot(*(zip(*points) if points else ((), ())), color=colour, linestyle=dashes)
        of.set_ylabel(name.replace("_", " "), color=colour)
        _plain(of)
    rate.grid(visible=False)
    axes.set(title="Training", xlabel="step")
    axes.set_ylim(bottom=0)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _facts_found(axes: Axes, result: Mapping[str, Any]) -> None:
    rows = result["rows"]
    colours = [colour for colour, _ in STYLES[: len(rows)]]
    bars = axes.barh(range(len(rows)), [row["found"] for row in rows], color=colours, height=0.7)
    axes.bar_label(bars, padding=3)
    axes.set(title="Facts found that have left the window", xlabel=f"of {result['facts']}")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()  # in the order of the table
    _plain(axes)
    axes.grid(visible=False)
    axes.set_xlim(0, 1.1 * result["facts"])


def _prediction(axes: Axes, result: Mapping[str, Any]) -> None:
    curves = result["bits_per_byte_by_position"]
    best = next(iter(curves.values()))  # full attention; differences are small beside the values
    for (name, curve), (colour, dashes) in zip(curves.items(), STYLES):
        lost = [x - y for x, y in zip(curve, best)]
        axes.plot(result["positions"], lost, color=colour, linestyle=dashes, label=name)
    budget = result["memory"]["window"] + result["memory"]["num_sinks"]
    axes.axvline(budget, color="0.6", linewidth=1)
    axes.annotate("budget", (budget, 1), xycoords=("data", "axes fraction"), xytext=(3, -12),
                  textcoords="offset points", color="0.4", fontsize=9)  # fmt: skip
    axes.set(title="What each loses against full attention", xlabel="position (tokens)")
    axes.set_ylabel("bits per byte lost, running mean")
    _plain(axes)


def _cache_bytes(axes: Axes, result: Mapping[str, Any]) -> None:
    sizes = result["held_by_length"]
    for (name, points), (colour, dashes) in zip(sizes.items(), STYLES):
        lengths, in_bytes = zip(*points)
        axes.plot(lengths, [x / MIB for x in in_bytes], color=colour, linestyle=dashes, label=name)
    axes.set(title="What each holds", xlabel="text read (tokens)", ylabel="cache (MiB)")
    axes.set_ylim(bottom=0)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_xlim(left=0)
