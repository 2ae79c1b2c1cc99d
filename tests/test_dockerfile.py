"""The Dockerfile without Docker: what it copies is there and is enough, and its entry point passes arguments on."""

import json
import os
import re
import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.test_architecture import AROUND, imported_modules
from tests.tiny_project import REPOSITORY

LINES = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
COPIED = [shlex.split(line)[1:-1] for line in LINES if line.startswith("COPY ")]
SOURCES = [Path(source) for sources in COPIED for source in sources]
IGNORED = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]


def test_what_is_copied_is_there_and_not_ignored():
    assert len(SOURCES) > 9
    for source in SOURCES:
        assert list(REPOSITORY.glob(str(source))), source
        assert not any(fnmatch(str(source), pattern) for pattern in IGNORED), source


def test_whatever_a_copied_file_imports_is_copied():
    files = [*REPOSITORY.glob("*.py"), *(path for source in SOURCES for path in REPOSITORY.glob(f"{source}/**/*.py"))]
    imported = {name.split(".")[0] for path in files for name in imported_modules(path)}
    ours = {path.parent.name for path in REPOSITORY.glob("*/*.py")}
    assert len(files) > 100 and imported & ours <= {str(source) for source in SOURCES}
    assert ours - imported == AROUND


def test_the_versions_of_ci_are_installed_and_no_address_is_written_down():
    text = "\n".join(LINES)
    assert "-r requirements.txt -c constraints.txt" in text
    assert not re.search(r"https?:|\.(org|com|io)\b", text)


@pytest.mark.parametrize("has_torch", [True, False])
def test_what_export_needs_is_installed_where_it_is_asked_for(tmp_path, has_torch):
    """Run the installing line as Docker does, with a pip that only says what it is given."""
    command = next(line for line in LINES if line.startswith("RUN extras=")).removeprefix("RUN ")
    for name, text in (("pip", 'echo "$@"'), ("python", f"exit {int(not has_torch)}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    said = []
    for extras in ("", "requirements-export.txt requirements-search.txt"):
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {"PATH": path, "EXTRAS": extras, "TORCH_INDEX": ""}
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
        said.append(done.stdout.splitlines()[-1])
    assert said[1] == f"{said[0]} -r requirements-export.txt -r requirements-search.txt"
    assert ("-c constraints.txt" in said[0]) != has_torch
    assert all((REPOSITORY / name).is_file() for name in extras.split())


@pytest.mark.parametrize("arguments", [["a.py"], ["a.py", "--source", "two words.jpg", "$HOME", "*", ""]])
def test_the_entry_point_passes_arguments_on(tmp_path, arguments):
    """Run it as Docker does, with a folder of our own in place of the image's."""
    entry = json.loads(next(line for line in LINES if line.startswith("ENTRYPOINT ")).removeprefix("ENTRYPOINT "))
    (tmp_path / "a.py").write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    command = [part.replace("/app", str(tmp_path)) for part in entry] + arguments
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == arguments[1:], done.stderr
    default = json.loads(next(line for line in LINES if line.startswith("CMD ")).removeprefix("CMD "))
    assert (REPOSITORY / default[0]).is_file()
