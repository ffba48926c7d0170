"""The demo's picture: whole or not at all, and it shows the numbers it is given."""

from __future__ import annotations

import copy

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from ahn.plots import MIB, demo_figure

NAMES = ("full attention", "window + sinks", "GatedDeltaNet", "DeltaNet", "Mamba2", "fresh")
RESULT = {
    "memory": {"window": 16, "num_sinks": 4},
    "facts": 9,
    "rows": [{"name": n, "found": 2 + i} for i, n in enumerate(NAMES)],
    "positions": [10, 20, 30],
    "bits_per_byte_by_position": {n: [2.0, 1.5 + i / 9, 1.0] for i, n in enumerate(NAMES)},
    "held_by_length": {n: [[0, 0], [50, (i + 1) * MIB]] for i, n in enumerate(NAMES)},
}


def pixels(result, path):
    demo_figure(result, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return matplotlib.image.imread(path)


def test_it_is_a_legible_png_and_no_other_file(tmp_path):
    image = pixels(RESULT, tmp_path / "figure.png")
    assert image.shape[0] >= 500 and image.shape[1] >= 1000
    colours = {tuple(x) for x in (image[::3, ::3, :3] * 255).round().astype(int).reshape(-1, 3)}
    assert len(colours) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.slow
@pytest.mark.parametrize("panel", ["bits_per_byte_by_position", "held_by_length"])
def test_every_number_changes_it(tmp_path, panel):
    other = copy.deepcopy(RESULT)
    other[panel]["Mamba2"][1] = [1.2, [50, 9 * MIB]][panel == "held_by_length"]
    first, second = pixels(RESULT, tmp_path / "a.png"), pixels(other, tmp_path / "b.png")
    assert (first != second).any()


def test_the_lines_hold_the_numbers(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: drawn.append(a[0]) or save(*a, **k))
    demo_figure(RESULT, tmp_path / "figure.png")
    facts, left, right = drawn[0].axes
    assert [bar.get_width() for bar in facts.patches] == [2, 3, 4, 5, 6, 7]
    curves = {line.get_label(): line for line in left.get_lines()}
    held = {line.get_label(): line for line in right.get_lines()}
    for index, name in enumerate(NAMES):
        assert curves[name].get_ydata().tolist() == pytest.approx([0.0, index / 9, 0.0])
        assert list(held[name].get_ydata()) == [0, index + 1]
    looks = {(line.get_color(), str(line.get_linestyle())) for line in curves.values()}
    assert len(looks) == len(curves)


def test_nothing_is_left_where_it_fails(tmp_path, monkeypatch):
    def fails(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        demo_figure(RESULT, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
