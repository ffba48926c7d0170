"""`ahn demo`: what a memory recovers of the text beyond its window, measured live."""

from ahn.demo.result import DemoResult, Row, summarise
from ahn.demo.run import DemoSettings, run_demo
from ahn.demo.show import print_result

__all__ = [
    "DemoResult",
    "DemoSettings",
    "Row",
    "print_result",
    "run_demo",
    "summarise",
]
