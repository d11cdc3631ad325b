"""The workflows of the public CI: what they run is here, and they name the versions that we do."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.run import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLASSIFIERS = PROJECT["project"]["classifiers"]
VERSIONS = [found[1] for found in (re.search(r":: (3\.\d+)$", one) for one in CLASSIFIERS) if found]

each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs_of(path: Path) -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return jobs


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs_of(path).values() for step in job["steps"]]


def matrix_of(job: dict[str, Any]) -> list[dict[str, str]]:
    """The combinations that GitHub makes of a job's matrix."""
    matrix = dict(job["strategy"]["matrix"])
    included = matrix.pop("include", [])
    made = [
        dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())
    ]
    for one in made:
        for more in included:
            if all(one[key] == more[key] for key in matrix if key in more):
                one.update(more)
    return made


@each
def test_a_workflow_runs_scripts_that_are_here(path: Path) -> None:
    for step in steps_of(path):
        for script in re.findall(r"(?:^|[\s=])(\./\w+|\.ci/\w+)", step.get("run", "")):
            assert os.access(ROOT / script, os.X_OK), script


@each
def test_a_workflow_may_only_read_where_it_does_not_say_more(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    granted = {
        name: job["permissions"] for name, job in jobs_of(path).items() if "permissions" in job
    }
    assert granted == ({"publish": {"id-token": "write"}} if path.stem == "release" else {})


def test_the_public_ci_runs_what_everybody_runs() -> None:
    (ci,) = (path for path in WORKFLOWS if path.stem == "ci")
    commands = [step["run"] for step in steps_of(ci) if "run" in step]
    assert ".ci/run" in commands
    names = {one["check"] for one in matrix_of(jobs_of(ci)["check"])}
    listed = set(re.findall(r"^#   (\w+) ", (ROOT / "check").read_text(), re.MULTILINE))
    assert names == {"tests", "portable"}
    assert names <= listed


def test_the_public_ci_tests_each_version_on_each_system() -> None:
    (ci,) = (path for path in WORKFLOWS if path.stem == "ci")
    tested = {
        (one["python"], one["os"].partition("-")[0]) for one in matrix_of(jobs_of(ci)["check"])
    }
    assert tested == set(itertools.product(VERSIONS, ("ubuntu", "macos", "windows")))
    assert PROJECT["project"]["requires-python"] == f">={VERSIONS[0]}"


def test_one_build_is_for_all_versions() -> None:
    lowest = VERSIONS[0].replace(".", "")
    assert PROJECT["tool"]["cibuildwheel"]["build"][0] == f"cp{lowest}-*"
    assert f'"py_limited_api": "cp{lowest}"' in (ROOT / "setup.py").read_text()
