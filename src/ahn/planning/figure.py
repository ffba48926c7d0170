"""The picture of a plan: bytes of the cache by length, and what a GPU has for them."""

from __future__ import annotations

from ahn.io.files import AnyPath, written_whole
from ahn.planning.costs import METHODS, NUMBER, Plan, cache_nbytes, free_nbytes
from ahn.planning.decoder import Decoder
from ahn.planning.gpus import Gpu
from ahn.plots import STYLES

GIB = 2**30
POINTS = 9  # lengths, each twice the one before


def plan_figure(decoder: Decoder, plan: Plan, path: AnyPath, gpu: Gpu | None) -> None:
    """Draw the bytes of the batch's caches by length, with each way to look back.

    Args:
        path: PNG to write, completely or not at all.
        gpu: whose room for caches is drawn as a line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lengths = [max(1, plan.length * 4 >> shift) for shift in reversed(range(POINTS))]
    number = NUMBER[plan.dtype]
    for method, (color, dashes) in zip(METHODS, STYLES):
        held = [plan.batch * cache_nbytes(decoder, method, n, number) / GIB for n in lengths]
        axes.plot(lengths, held, color=color, linestyle=dashes, label=method)
    if gpu is not None and (free := free_nbytes(decoder, plan.dtype, gpu)) > 0:
        axes.axhline(free / GIB, color="#999999", label="free on the GPU")
    axes.set(xscale="log", yscale="log", xlabel="tokens of a text", ylabel="GiB of caches")
    axes.set_title(f"batch {plan.batch}, {plan.dtype} weights")
    axes.legend(frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
