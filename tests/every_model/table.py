"""`docs/models.md`: what every class of transformers turned out to be.

`PYTHONPATH=tests python tests/every_model/table.py` tries them all, on two cores, and writes
it; classes named after it are tried alone.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from trials import NOT_BUILT, REFUSED, WORKS, Outcome, try_class

from ahn.modeling.auto_classes import AUTO_CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
NAMES = sorted({name for names in AUTO_CLASSES.values() for name in names.values()})
TITLES = {
    WORKS: ("Works", "work", "memory in"),
    REFUSED: ("Refused", "are refused", "`ahn.attach` expects"),
    NOT_BUILT: ("Not tried", "could not be tried", "reason"),
}
HEAD = """# Models

Every class that `AutoModelForCausalLM`, `AutoModelForImageTextToText` or
`AutoModelForMultimodalLM` of transformers {transformers} loads, tried in a tiny size with random
weights. {counts}. None is silently wrong.

A class works if its tiny model with a memory holds all of these on text:

- up to window + sinks it equals its base bit for bit, and with the memory disabled at any length;
- with the memory off it equals its base under a mask of sinks and window (5e-5, float32);
- chunks of 7, single tokens and uneven chunks equal one forward (5e-5), and the memory acts;
- padded rows equal rows alone, and `generate` equals the plain loop without a cache;
- the cache's bytes do not grow with the text;
- base and memory, merged into a folder, load again by transformers' Auto class;
- the model pickles, and `ahn.detach` gives back the base bit for bit.

Other settings of a config can change the answer: `ahn.attach` looks at the model that it is given.
Text alone is tried here, images with [some families](architecture.md#models-that-see-images).
`AHN_EVERY_MODEL=1 pytest tests/every_model` compares this page with what comes out, and
`PYTHONPATH=tests python tests/every_model/table.py` writes it (torch {torch}, CPU).
"""


def page(outcomes: Mapping[str, Outcome]) -> str:
    """The page in Markdown."""
    of_result = {
        result: {name: x.text for name, x in outcomes.items() if x.result == result}
        for result in TITLES
    }
    counts = [f"{len(rows)} {TITLES[result][1]}" for result, rows in of_result.items()]
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
    parts = [HEAD.format(counts=f"Of {len(outcomes)} classes {', '.join(counts)}", **versions)]
    for result, (title, _, column) in TITLES.items():
        rows = [f"| `{name}` | {text} |" for name, text in of_result[result].items()]
        parts.append(
            "\n".join(["", f"## {title}", "", f"| class | {column} |", "|---|---|", *rows, ""])
        )
    return "".join(parts)


def read_page(text: str) -> dict[str, Outcome]:
    """What a page says of each class."""
    outcomes, results = {}, {title: result for result, (title, *_) in TITLES.items()}
    for title, section in re.findall(r"^## (.*)\n([^#]*)", text, re.MULTILINE):
        for name, reason in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE):
            outcomes[name] = Outcome(results[title], reason)
    return outcomes


def is_of_this_version(text: str) -> bool:
    """Whether a page is of the installed transformers."""
    return f"of transformers {transformers.__version__} loads" in text


def main() -> None:
    """Try every class and write the page."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = sys.argv[1:] or NAMES
    with multiprocessing.Pool(2) as pool:
        tried = dict(zip(names, pool.map(try_class, names, chunksize=4)))
    known = read_page(PAGE.read_text()) if len(names) < len(NAMES) else {}
    PAGE.write_text(page({name: tried.get(name) or known[name] for name in NAMES}))


if __name__ == "__main__":
    main()
