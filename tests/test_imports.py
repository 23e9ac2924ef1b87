"""What may import what; and that no file knows the machine on which it was written."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LONG
from tests.kit import PROJECT, clean_environment

OURS = ("schemas", "ingest", "consumers", "tests")

#: Package → which of ours it may import, beside itself.
ALLOWED = {
    "schemas": set(),
    "ingest": {"schemas"},
    "consumers": {"schemas", "ingest"},
    "ingest.simulator": set(),
    "ingest.providers": {"schemas", "ingest"},
}

#: Nothing else lies at the top.
TOP = {"schemas", "ingest", "consumers", "deploy", "tests"}


def modules(package: str) -> Iterator[Path]:
    yield from sorted((PROJECT / Path(*package.split("."))).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at the top or in a function, typing included."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            yield node.lineno, ast.unparse(node.args[0]).strip("'\"")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    found = list(modules(package))
    assert found
    wrong = [
        f"{path.relative_to(PROJECT)}:{line} imports {module}"
        for path in found
        for line, module in imports_of(path)
        if module.split(".")[0] in OURS
        and not is_within(module, package)
        and not any(is_within(module, other) for other in ALLOWED[package])
    ]
    assert wrong == []


def test_providers_do_not_know_each_other() -> None:
    folders = [
        p for p in (PROJECT / "ingest" / "providers").iterdir() if (p / "__init__.py").exists()
    ]
    assert folders
    for folder in folders:
        for path in folder.rglob("*.py"):
            for line, module in imports_of(path):
                if is_within(module, "ingest.providers"):
                    own = f"ingest.providers.{folder.name}"
                    assert is_within(module, own), f"{path}:{line} imports {module}"


def test_providers_do_no_io() -> None:
    """They say what is theirs and what it means; others post, write and look at clocks."""
    banned = {"asyncio", "socket", "httpx", "os", "time", "random", "sqlite3", "apsw", "starlette"}
    for path in modules("ingest.providers"):
        for line, module in imports_of(path):
            assert module.split(".")[0] not in banned, f"{path}:{line} imports {module}"


def test_tests_are_nobodys_dependency() -> None:
    for package in ("schemas", "ingest", "consumers"):
        for path in modules(package):
            for line, module in imports_of(path):
                assert module.split(".")[0] not in ("tests", "pytest"), f"{path}:{line}"


def test_the_checker_sees_what_it_should(tmp_path: Path) -> None:
    path = PROJECT / "ingest" / "eventlog" / "lanes.py"
    found = {module for _, module in imports_of(path)}
    assert "ingest.errors.PublishError" in found
    assert "asyncio" in found


ALL = [name_of(path) for package in ("schemas", "ingest", "consumers") for path in modules(package)]


def test_every_module_can_be_imported() -> None:
    for name in ALL:
        importlib.import_module(name)


@pytest.mark.timeout(620)  # a busy machine takes long to load a hundred modules
def test_every_module_can_be_imported_first_and_says_nothing() -> None:
    """No circle that only works from one side, no warning, no thread, nothing printed."""
    code = """
import gc, importlib, os, sys, threading
# What others wrote is loaded once, before: it takes long.
import aiokafka.admin, anyio.to_thread, apsw, httpx, httptools, jwt, msgspec, orjson, phonenumbers
import prometheus_client, pybase64, pydantic, rich.console, rich.text, stamina, standardwebhooks
import starlette.applications, structlog, tomli_w, typer, uvicorn.protocols.http.httptools_impl
import uvloop, websockets.asyncio.client, websockets.asyncio.server
pydantic.BaseModel, pydantic.TypeAdapter
# A layer imports nobody above it, so no circle leaves it: whoever is above finds it loaded.
for layer in ("schemas", "ingest", "consumers"):
    names = [name for name in sys.argv[1:] if name.split(".")[0] == layer]
    gc.freeze()
    for name in names:
        process = os.fork()
        if process == 0:
            try:
                importlib.import_module(name)
                assert threading.active_count() == 1, f"{name} starts a thread"
            except BaseException as error:
                print(name, repr(error), flush=True)
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        if status := os.waitpid(process, 0)[1]:
            print(name, "ends with", status)
    for name in names:
        importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *ALL],
        check=False,
        cwd=PROJECT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_what_subscribers_import_of_schemas_loads_no_server() -> None:
    code = "import sys, schemas.event, schemas.call, schemas.topics; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=PROJECT,
        env=clean_environment(),
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in ("uvicorn", "starlette", "httpx", "apsw", "structlog", "typer", "phonenumbers"):
        assert name not in loaded


# Files


#: Made by tools; whatever else begins with a dot is ours, like `.ci`.
_NOT_OURS = {
    ".git",
    ".hypothesis",
    ".kafka",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".uv",
    ".venv",
    "__pycache__",
    "build",
    "data",
    "dist",
    "node_modules",
}


def files_of_the_project() -> Iterator[Path]:
    for folder, folders, names in os.walk(PROJECT):
        folders[:] = [name for name in folders if name not in _NOT_OURS]
        yield from (Path(folder, name) for name in names if not name.endswith(".egg-info"))


def _foreign() -> re.Pattern[str]:
    # Put together here, so that this file does not find itself.
    places = ["/" + "work/", "/" + "home/", "/" + "Users/", "/" + "root/", r"\.\./" + "shared"]
    return re.compile(rf"(?<![\w.~])({'|'.join(places)})|{re.escape(str(PROJECT))}(?![\w-])")


def test_no_file_names_a_place_on_the_machine_of_its_author() -> None:
    foreign = _foreign()
    found = []
    for path in files_of_the_project():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if foreign.search(line):
                found.append(f"{path.relative_to(PROJECT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_top_level_holds_the_five_folders_and_no_other() -> None:
    parts = [path.relative_to(PROJECT).parts for path in files_of_the_project()]
    assert {way[0] for way in parts if len(way) > 1 and not way[0].startswith(".")} <= TOP


def test_what_is_begun_first_is_there() -> None:
    assert [name for name in LONG if not (PROJECT / "tests" / name).is_file()] == []
