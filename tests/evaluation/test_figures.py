"""A report's figures: differences to full attention, one colour a method, what left the window."""

from __future__ import annotations

from ahn.evaluation.report import figures

METHODS = {"full": (None, "full"), "window": (None, "window"), "ahn-A": ("A", "ahn"),
           "ahn-B": ("B", "ahn"), "ahn-shuffled-A": ("A", "ahn-shuffled")}  # fmt: skip
LIMITS = {"window": 250, "num_sinks": 6}
RUNS = [{"name": name, "memory": memory, "method": method, "ahn_config": LIMITS}
        for name, (memory, method) in METHODS.items()]  # fmt: skip
PLACES = (0, 128), (128, 512), (512, 2048)


def report(full=True):
    rows = [{"first": a, "last": b, "nats_per_token": 2.0,
             **({"minus_full": {"value": 0.1, "low": 0.0, "high": 0.3}} if full else {})}
            for a, b in PLACES]  # fmt: skip
    cells = [[length, depth, 0.5, 4] for length in (200, 1000) for depth in (0, 0.5, 1)]
    return {"runs": RUNS, "positions": dict.fromkeys(METHODS, rows),
            "needles": {"acc": dict.fromkeys(METHODS, cells)}}  # fmt: skip


def test_positions_are_differences_with_intervals_and_a_labelled_budget():
    figure = figures._positions(report())
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
    assert set(lines) == set(METHODS) - {"full"}
    assert axes.get_ylabel() == "nats per token more than full attention"
    assert [text.get_text() for text in axes.texts] == ["budget: 256"]
    assert len(axes.collections) == len(lines)  # the intervals
    assert not axes.get_legend() and len(figure.legends) == 1
    colours = {name: line.get_color() for name, line in lines.items()}
    assert colours["ahn-A"] == colours["ahn-shuffled-A"]
    assert len(set(colours.values())) == len(lines) - 1
    assert lines["ahn-A"].get_linestyle() != lines["ahn-shuffled-A"].get_linestyle()


def test_without_full_attention_positions_are_the_losses():
    (axes,) = figures._positions(report(full=False)).axes
    labels = {line.get_label() for line in axes.lines}
    assert axes.get_ylabel() == "nats per token" and "full attention" in labels


def test_maps_say_what_left_the_window_how_many_and_chance():
    figure = figures._heat_maps(report(), "acc")
    maps = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert set(maps) == (set(METHODS) - {"full"}) | {"full attention"}
    assert "n = 4 a cell, chance 0.333" in figure.get_suptitle()
    assert not maps["full attention"].lines
    (line,) = maps["window"].lines  # the shorter texts fit
    assert list(line.get_xdata()) == [0.5, 1.5] and line.get_ydata()[0] == 1.5  # depth 0.75
