"""Every dependency has bounds that were tried; a version outside of them is named at import."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ahn
from ahn.versions import untried_versions, warn_of_untried_versions
from commands import error

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared():
    """What the package and its extras require of others."""
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]
    return [x for x in map(Requirement, lines) if x.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", declared(), ids=lambda x: x.name)
def test_every_dependency_has_both_bounds_and_is_pinned_between_them(requirement):
    assert sorted(each.operator for each in requirement.specifier) == ["<", ">="]
    assert requirement.specifier.contains(pins()[requirement.name])


def pins():
    """The versions that are tested with; vLLM's build for a CPU stands for it."""
    text = (ROOT / "constraints.txt").read_text()
    vllm = re.findall(r"^(vllm)-cpu==(\S+)$", (ROOT / "constraints-vllm.txt").read_text(), re.M)
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M) + vllm)


def installed(folder, name, version, requires=()):
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {x}" for x in requires)]
    (metadata / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, "", ""]))


REQUIRES = [
    "low<2,>=1.5", "fine<2,>=1.5", "dev_build<2,>=1.5", "absent<2,>=1.5", "local<2,>=1.5",
    "high<2,>=1.5; platform_system == 'Linux' and extra == 'gpu'", "tool<2; extra == 'dev'",
]  # fmt: skip
VERSIONS = {
    "low": "1.4", "fine": "1.9.7", "dev_build": "2.0.dev1", "local": "1.5+cpu", "high": "2.1",
    "tool": "3",
}  # fmt: skip


@pytest.fixture
def packages(tmp_path, monkeypatch):
    for name, version in VERSIONS.items():
        installed(tmp_path, name, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_versions_outside_the_bounds_are_named_once(packages):
    installed(packages, "user", "1", REQUIRES)
    assert list(untried_versions("user")) == [
        "dev_build 2.0.dev1 (tested: <2,>=1.5)",
        "high 2.1 (tested: <2,>=1.5)",
        "low 1.4 (tested: <2,>=1.5)",
    ]
    with pytest.warns(UserWarning, match="^user was not tested with dev_build 2.0.dev1 .*: what"):
        warn_of_untried_versions("user")


def test_within_the_bounds_and_without_an_installation_nothing_is_said(packages):
    installed(packages, "user", "1", ["fine<2,>=1.5", "local<2,>=1.5", "absent<1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_untried_versions("user")
        warn_of_untried_versions("no-such-distribution")


@pytest.fixture
def outside(monkeypatch):
    """This package asks for a typer that is not installed; what is said of it begins so."""
    monkeypatch.setattr("ahn.versions.metadata.requires", lambda name: [f"typer<0.1; {name}"])
    return "ahn was not tested with typer "


def test_importing_the_package_names_it(outside):
    with pytest.warns(UserWarning, match=outside):
        importlib.reload(ahn)


@pytest.mark.parametrize("is_program", [True, False])
def test_the_program_names_it_in_one_line(outside, is_program, monkeypatch):
    """Where it is a library, the import has said it."""
    monkeypatch.setattr("ahn.cli.commands.started_as_program", lambda: is_program)
    with warnings.catch_warnings(record=True) as said:
        assert error("inspect", "nowhere").startswith("error: nowhere")
        lines = [warnings.formatwarning(each.message, UserWarning, "", 0) for each in said]
    assert [line.startswith(f"warning: {outside}") for line in lines] == [True] * is_program
    assert all(line.count("\n") == 1 for line in lines)
