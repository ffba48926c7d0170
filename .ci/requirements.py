"""Print what the package and its laws need: `lowest` as declared, or the `newest`.

`all` after it adds the extras and what all tests need.

Torch is that of constraints.txt in both: its other versions are on PyPI as builds for CUDA, several
gigabytes each. The extra `gpu` needs a GPU, and `vllm` an environment of its own.
"""

import re
import sys
from pathlib import Path

import tomllib

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
PINNED = dict(re.findall(r"^([\w-]+)==(\S+)$", Path("constraints.txt").read_text(), re.MULTILINE))
TOOLS = ("ruff", "mypy")  # run once, whatever the versions of the rest
APART = ("gpu", "vllm")
OF_LAWS = ("pytest", "hypothesis")  # what the laws need beside the package's own requirements

extras = PROJECT["optional-dependencies"]
chosen = [name for name in extras if name not in APART] if "all" in sys.argv else ["dev"]
others = [line for name in chosen for line in extras[name]]
if "all" not in sys.argv:
    others = [line for line in others if line.startswith(OF_LAWS)]
for line in [*PROJECT["dependencies"], *others]:
    name, brackets, lower = re.match(r"([\w-]+)(\[.*\])?(?:>=([\d.]+))?", line).groups()
    if name == "torch":
        print(f"torch=={PINNED['torch']}")
    elif name not in (PROJECT["name"], *TOOLS):
        print(name + (brackets or "") + (f"=={lower}" if sys.argv[1] == "lowest" else ""))
