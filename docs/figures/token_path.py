"""Draws the figure of docs/architecture.md: one token's path through one attention layer.

    python docs/figures/token_path.py [--out FOLDER]

Writes token_path.svg and token_path.png into the folder of this script, or into FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

SINK, WINDOW, NEW, EVICTED, LEAVING = "#9ecae1", "#a1d99b", "#31a354", "#f0f0f0", "#fdae6b"
EXACT, MEMORY, BASE = "#eaf4e8", "#fff1e3", "#f7f7f7"
LINE, TEXT = "#404040", "#202020"
# Everything below is placed on a canvas of this size, in the same units in both directions.
WIDTH, HEIGHT = 24.0, 15.6
TOKENS_Y, TOKEN = 10.7, 0.92  # lower edge and side of the boxes of the tokens


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A rounded box with its lower left corner at x, y and text in its middle."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.18",
        facecolor=color, edgecolor=LINE, linewidth=0.9,
    )  # fmt: skip
    ax.add_patch(shape)
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=TEXT, fontsize=8.5)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0) -> None:
    """An arrow; `bend` curves it."""
    style = {"arrowstyle": "-|>", "color": LINE, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    style["connectionstyle"] = f"arc3,rad={bend}"
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def note(ax: Axes, x: float, y: float, text: str, **options: str) -> None:
    """Small text beside something; its middle at x, y unless options say otherwise."""
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 8, "color": TEXT, **options})


def tokens(ax: Axes) -> dict[str, float]:
    """The row of tokens; gives the middle of each group."""
    groups = [
        ("sinks", ["0", "1"], SINK),
        ("evicted", ["2", "3", "…", ""], EVICTED),
        ("leaving", ["t-W"], LEAVING),
        ("window", ["", "", "…", "", "t-1"], WINDOW),
        ("new", ["t"], NEW),
    ]
    x, middles = 1.2, {}
    for name, labels, color in groups:
        middles[name] = x + len(labels) * TOKEN / 2
        for label in labels:
            box(ax, x, TOKENS_Y, TOKEN - 0.1, TOKEN, label, color)
            x += TOKEN
        x += 0.45
    return middles


def captions(ax: Axes, middle: dict[str, float]) -> None:
    """What each group of tokens is, above the row."""
    y = TOKENS_Y + TOKEN + 0.65
    note(ax, middle["sinks"], y, "S sinks\nexact for ever")
    note(ax, middle["evicted"], y, "evicted tokens\nin no buffer")
    note(ax, middle["leaving"], y + 1.1, "leaves the window\nas t enters")
    note(ax, middle["window"] - 0.1, y, "the last W tokens, t included\nexact, in the ring")
    note(ax, middle["new"] + 0.2, y + 1.1, "the new token:\nquery, key, value")
    for name in ("leaving", "new"):
        arrow(ax, (middle[name], y + 0.6), (middle[name], TOKENS_Y + TOKEN + 0.08))


def layer(ax: Axes, middle: dict[str, float]) -> None:
    """What one layer computes of the row of tokens."""
    under = TOKENS_Y - 0.1
    box(ax, 1.2, 6.6, 6.0, 1.5, "memory: write t-W\nMemory.forward", MEMORY)
    box(ax, 1.2, 3.9, 6.0, 1.3, "state, of fixed size\ncache.states", MEMORY)
    box(ax, 1.2, 1.0, 6.0, 1.5, "memory: read by query t\nMemory.forward", MEMORY)
    box(ax, 9.6, 6.6, 6.4, 1.5, "softmax over\nsinks + window + exact rows", EXACT)
    box(ax, 11.9, 2.6, 1.8, 1.0, "add", EXACT)
    box(ax, 15.0, 2.6, 1.8, 1.0, "o_proj", BASE)
    arrow(ax, (middle["leaving"], under), (5.6, 8.2), 0.12)
    note(ax, 9.1, 9.8, "key, value and\nwrite inputs of t-W")
    arrow(ax, (4.2, 6.5), (4.2, 5.3))
    arrow(ax, (4.2, 3.8), (4.2, 2.6))
    arrow(ax, (7.3, 7.35), (9.5, 7.35))
    note(ax, 8.4, 7.85, "exact rows,\nif it has some")
    arrow(ax, (middle["window"], under), (12.2, 8.2))
    arrow(ax, (middle["sinks"], under), (10.4, 8.2), 0.05)
    arrow(ax, (12.8, 6.5), (12.8, 3.7))
    note(ax, 13.0, 5.1, "[B, C, H, V]", ha="left")
    arrow(ax, (7.3, 1.75), (12.3, 2.5), 0.15)
    note(ax, 9.6, 1.1, "[B, E, H, V], the last E queries")
    arrow(ax, (13.8, 3.1), (14.9, 3.1))
    arrow(ax, (middle["new"], under), (15.2, 8.2), -0.05)
    note(ax, 15.7, 9.3, "query t", ha="left")


def calls(ax: Axes) -> None:
    """The calls that lead there, from top to bottom, each with the file to read."""
    steps = [
        ("generation.prefill, stream, generate", "cut the prompt into chunks", BASE),
        ("decoder's hook: ForwardContext", "ahn.hf.hooks: mode, padding, documents", MEMORY),
        ("layer's hook: LayerContext", "ahn.hf.hooks: hidden states, cache", MEMORY),
        ("self_attn of transformers", "q, k, v, norms, RoPE, cache.update", BASE),
        ("ahn_attention", "ahn.layer.attention: packed documents", MEMORY),
        ("the mode: attend_chunk, decode", "ahn.layer.modes: the page", MEMORY),
        ("commit", "the cache takes t and the new state", MEMORY),
    ]
    y = 13.0
    for number, (name, detail, color) in enumerate(steps):
        box(ax, 18.2, y, 5.6, 1.25, f"{name}\n", color)
        note(ax, 21.0, y + 0.38, detail, fontsize=7)
        if number:
            arrow(ax, (21.0, y + 1.9), (21.0, y + 1.3))
        y -= 1.95


def draw() -> plt.Figure:
    """The whole figure."""
    figure, ax = plt.subplots(figsize=(WIDTH / 2, HEIGHT / 2))
    ax.set_xlim(0.6, WIDTH)
    ax.set_ylim(0.6, HEIGHT)
    ax.set_aspect("equal")
    ax.axis("off")
    note(ax, 1.2, 15.1, "One layer, as token t enters", ha="left", weight="bold")
    note(ax, 18.2, 15.1, "The calls that lead there", ha="left", weight="bold")
    middle = tokens(ax)
    captions(ax, middle)
    layer(ax, middle)
    calls(ax)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().out
    # Text stays text, and the same script gives the same bytes.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ahn"})
    figure = draw()
    figure.savefig(folder / "token_path.svg", bbox_inches="tight", metadata={"Date": None})
    metadata = {"Software": None}
    figure.savefig(folder / "token_path.png", bbox_inches="tight", dpi=120, metadata=metadata)


if __name__ == "__main__":
    main()
