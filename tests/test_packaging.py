"""The wheel holds what the checkout holds, and the constraints cover what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import circuitdb
from circuitdb import resources

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDERS = ("schemas", "ingest", "queries")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built with what is installed: no network, no environment of its own."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*command, str(CHECKOUT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    """Pinned version by canonical name."""
    lines = (CHECKOUT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def files(folder: Path) -> dict[str, bytes]:
    """Contents by path relative to a folder, without what Python and editors leave there."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    kept = {k: p for k, p in found.items() if "__pycache__" not in k and not p.name.startswith(".")}
    return {name: path.read_bytes() for name, path in kept.items()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_wheel_holds_each_data_folder_whole(unpacked, folder):
    held = files(unpacked / "circuitdb" / "_data" / folder)
    assert held
    assert held == files(CHECKOUT / folder)


def test_the_wheel_holds_the_package_whole_and_nothing_else(unpacked):
    held = files(unpacked / "circuitdb")
    package = {k: v for k, v in held.items() if not k.startswith("_data/")}
    assert package == files(CHECKOUT / "circuitdb")
    assert "py.typed" in package
    tops = {path.name for path in unpacked.iterdir()}
    assert tops == {"circuitdb", f"circuitdb-{circuitdb.__version__}.dist-info"}


def test_the_wheel_holds_the_toy_weights_and_they_stay_small(unpacked):
    weights = [*(unpacked / "circuitdb" / "models" / "toy").rglob("*.safetensors")]
    assert weights
    assert sum(path.stat().st_size for path in weights) <= 15 * 2**20


def test_the_wheel_brings_the_command_and_the_licence(unpacked):
    info = unpacked / f"circuitdb-{circuitdb.__version__}.dist-info"
    assert "circuitdb = circuitdb.cli:main" in (info / "entry_points.txt").read_text("utf-8")
    assert (info / "licenses" / "LICENSE").is_file()


def run_unpacked(unpacked: Path, code: str, cwd: Path) -> str:
    """What code prints with the unpacked wheel in front of everything else."""
    front = f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", front + code], capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_installed_package_reads_its_own_copy_of_the_data(unpacked, tmp_path):
    code = "from circuitdb import resources\nprint(resources.folder('schemas'))"
    found = Path(run_unpacked(unpacked, code, tmp_path))
    assert found == unpacked / "circuitdb" / "_data" / "schemas"


def test_an_installed_package_reads_migrations_recipes_and_queries(unpacked, tmp_path):
    code = (
        "from circuitdb import ingest, queries, schemas\n"
        "print(bool(schemas.migrations()), bool(ingest.shipped()), bool(queries.names()))"
    )
    assert run_unpacked(unpacked, code, tmp_path) == "True True True"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_checkout_reads_the_folders_beside_the_package(folder):
    assert resources.folder(folder) == CHECKOUT / folder


def test_a_folder_that_is_nowhere_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "circuitdb")
    (tmp_path / "schemas").mkdir()
    # A folder of that name beside the package is not ours unless the project file is there too.
    with pytest.raises(FileNotFoundError, match=r"'schemas' is missing .*; reinstall circuitdb"):
        resources.folder("schemas")
    (tmp_path / "pyproject.toml").touch()
    assert resources.folder("schemas") == tmp_path / "schemas"


def test_constraints_are_plain_pins():
    for line in (CHECKOUT / "constraints.txt").read_text("utf-8").splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), (
            line
        )


def test_constraints_meet_every_dependency_of_the_project(project, constraints):
    table = project["project"]
    for text in [*table["dependencies"], *table["optional-dependencies"]["dev"]]:
        needed = Requirement(text)
        pin = constraints[canonicalize_name(needed.name)]
        assert needed.specifier.contains(pin, prereleases=True), f"{text} and {pin}"


def test_constraints_pin_torch(constraints):
    assert constraints["torch"] == "2.13.0"


def test_constraints_cover_everything_that_is_pulled_in(project, constraints):
    table = project["project"]
    queue = [Requirement(t) for t in table["dependencies"]]
    queue += [Requirement(t) for t in table["optional-dependencies"]["dev"]]
    done: set[str] = set()
    while queue:
        needed = queue.pop()
        name = canonicalize_name(needed.name)
        # What a package pins exactly itself (torch its CUDA libraries) needs no pin of ours.
        exact = any(s.operator == "==" for s in needed.specifier)
        assert exact or name in constraints, f"constraints.txt lacks {name}"
        if name in done:
            continue
        done.add(name)
        try:
            further = [Requirement(t) for t in distribution(name).requires or []]
        except PackageNotFoundError:
            continue
        extras = {"", *needed.extras}
        queue += [
            r
            for r in further
            if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)
        ]


def test_the_citation_names_this_version():
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == circuitdb.__version__
    assert citation["cff-version"] == "1.2.0"


def test_the_readme_has_the_two_commands_that_ci_runs():
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    blocks = dict(re.findall(r"<!-- ci: (\w+) -->\n```sh\n(.*?)\n```", readme, re.DOTALL))
    assert blocks["discover"].endswith("&& .venv/bin/circuitdb discover --task months")
    assert ".venv/bin/pytest" in blocks["test"]
    assert all("\n" not in block for block in blocks.values())
