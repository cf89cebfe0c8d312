"""The shape of the project, read from its source: arrows point down, one library one owner, small files.

Nothing is imported here; the source is parsed. A rule that has to bend is bent in one of the tables below,
in sight, and nowhere else.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data", "chatbot", "trainer")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

LONGEST_FILE = 300
LONGEST_FUNCTION = 60
MAY_IMPORT = {"data": {"data"}, "chatbot": {"chatbot", "data"}, "trainer": {"trainer", "chatbot", "data"}}

OWNERS = {
    "apscheduler": {"data/cron.py", "trainer/watch.py"},
    "argon2": {"chatbot/accounts.py"},
    "accelerate": {"trainer/team.py"},
    "bitsandbytes": {"chatbot/fourbit.py"},
    "gguf": {"chatbot/basemodel.py"},
    "gradio": {"chatbot/pages/", "chatbot/web.py", "chatbot/server.py"},
    "httpx": {"chatbot/vllm.py"},
    "markdown_it": {"chatbot/pages/markdown.py"},
    "pandas": {"chatbot/pages/operate_learning.py"},
    "peft": {"chatbot/policy.py"},
    "prometheus_client": {"chatbot/metrics.py"},
    "pygments": {"chatbot/pages/markdown.py"},
    "pysqlite3": {"data/database.py", "data/sqlite_errors.py"},
    "sqlite3": set[str](),
    "sqlite_utils": {"data/database.py", "data/schema.py"},
    "uvicorn": {"chatbot/server.py"},
}
"""Libraries that only these files (or folders) may import, and nobody else."""

HEAVY = {"torch", "transformers", "gradio", "numpy", "pandas"}
"""What `data` never needs."""

SQL = ("SELECT ", "INSERT ", "UPDATE ", "DELETE FROM", "PRAGMA ")

TESTED_ELSEWHERE = {
    "chatbot/commands.py": "test_chatbot_cli.py",
    "chatbot/data_routes.py": "test_web.py",
    "chatbot/generation.py": "test_engine.py",
    "chatbot/head.py": "test_policy.py",
    "chatbot/interface.py": "test_engine.py",
    "chatbot/manifest.py": "test_adapters.py",
    "chatbot/models.py": "test_policy.py",
    "chatbot/pages/account.py": "test_web.py",
    "chatbot/pages/actions.py": "test_chat.py",
    "chatbot/pages/composer.py": "test_chat.py",
    "chatbot/pages/history.py": "test_chat.py",
    "chatbot/pages/theme.py": "test_page.py",
    "chatbot/pages/payload.py": "test_board.py",
    "chatbot/pages/sidebar.py": "test_chat.py",
    "chatbot/replica.py": "test_writing.py",
    "chatbot/signin.py": "test_web.py",
    "chatbot/terminal.py": "test_chatbot_cli.py",
    "data/backups.py": "test_database.py",
    "data/cron.py": "test_schedule.py",
    "data/errors.py": "test_cli.py",
    "data/forgetting.py": "test_data_cli.py",
    "data/formats.py": "test_exchange.py",
    "data/messages.py": "test_conversations.py",
    "data/records.py": "test_rankings.py",
    "data/recovery.py": "test_database.py",
    "data/runfolder.py": "test_prune.py",
    "data/sqlite_errors.py": "test_rights.py",
    "trainer/commands.py": "test_trainer_cli.py",
    "trainer/improving.py": "test_refresh.py",
    "trainer/members.py": "test_ensemble.py",
    "trainer/slow_commands.py": "test_trainer_cli.py",
}
"""Modules without a test file of their own name, and the file that tests them."""


def name_of(path: Path) -> str:
    """A file's path from the root, with slashes."""
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    """The full names of what a file imports at run time, wherever in the file."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively - name the package"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A function's lines without those of the functions in its body, such as the routes of a router."""
    inner = [node for node in function.body if isinstance(node, FUNCTIONS)]
    return length(function) - sum(length(node) for node in inner)


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def libraries_of(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


def needed_by(path: Path) -> set[str]:
    """The libraries without which a file of ours cannot be imported: what it and ours import on the way."""
    waiting, seen, needed = [path], set[Path](), set[str]()
    while waiting:
        if (file := waiting.pop()) in seen:
            continue
        seen.add(file)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                needed |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                needed.add(node.module.split(".")[0])
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                files = [(ROOT / name.replace(".", "/")).with_suffix(".py") for name in modules]
                waiting += [file for file in files if file.is_file()]
    return needed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = name_of(path).split("/")[0]
    assert libraries_of(path) & set(PACKAGES) <= MAY_IMPORT[own]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_library_has_one_owner(path: Path) -> None:
    name = name_of(path)
    for library in libraries_of(path) & set(OWNERS):
        owners = OWNERS[library]
        assert any(name == owner or (owner.endswith("/") and name.startswith(owner)) for owner in owners), (
            f"{name} imports {library}, which belongs to {sorted(owners) or 'nobody'}"
        )


def test_data_needs_no_model_and_no_page() -> None:
    for path in (ROOT / "data").rglob("*.py"):
        assert not libraries_of(path) & HEAVY, name_of(path)


def test_the_engine_and_the_trainer_reach_no_page() -> None:
    """But for the plain pages of pages/account.py, which are text and need no Gradio."""
    for path in [*(ROOT / "trainer").glob("*.py"), *(ROOT / "chatbot").glob("*.py")]:
        reached = {name for name in imports_of(path) if name.startswith("chatbot.pages.")}
        reached = {name for name in reached if not name.startswith("chatbot.pages.account")}
        assert not reached or name_of(path) == "chatbot/web.py", f"{name_of(path)} imports {sorted(reached)}"


def test_sql_is_written_in_data_only() -> None:
    for path in MODULES:
        if not name_of(path).startswith("data/"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not node.value.lstrip().startswith(SQL), f"{name_of(path)}: {node.value[:60]!r}"


@pytest.mark.parametrize("path", [*MODULES, *(t for t in TESTS if t.stem != "__init__")], ids=name_of)
def test_every_file_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if not path.stem.endswith("words"):  # a dictionary of two languages holds one idea at any length
        assert source.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            name = f"{name_of(path)}: {node.name}"
            assert own_lines(node) <= LONGEST_FUNCTION, name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_test_file(path: Path) -> None:
    name = name_of(path)
    if path.stem == "__init__" or name in TESTED_ELSEWHERE:
        return
    package = path.relative_to(ROOT).parts[0]
    stem = "cli" if path.stem == "__main__" else path.stem
    known = {test.stem for test in TESTS}
    # operate_now.py is part of what test_operate.py tests; trainer/config.py may have test_trainer_config.py.
    wanted = {f"test_{stem}", f"test_{package}_{stem}", f"test_{stem.split('_')[0]}"}
    assert wanted & known, f"no test file for {name}: one of {sorted(wanted)}"


def test_the_list_of_exceptions_is_no_longer_than_it_must_be() -> None:
    known = {test.stem for test in TESTS}
    for name in TESTED_ELSEWHERE:
        assert (ROOT / name).is_file() and f"test_{Path(name).stem}" not in known, name
        assert (ROOT / "tests" / TESTED_ELSEWHERE[name]).is_file(), TESTED_ELSEWHERE[name]


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    for requirement in wanted:
        name = requirement.split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip()
        assert name in pinned, f"{name} is not in constraints.txt"


def test_every_package_folder_is_installed() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    folders = {name_of(path.parent).replace("/", ".") for path in MODULES if path.stem == "__init__"}
    assert folders == set(tools["setuptools"]["packages"])


def test_nothing_names_a_machine_or_leaves_work_for_later() -> None:
    for path in [*MODULES, *TESTS]:
        text = path.read_text(encoding="utf-8")
        for words in ("/ho" + "me/", "/wo" + "rk/", "TO" + "DO", "FIX" + "ME", "XX" + "X"):
            assert words not in text, f"{name_of(path)} says {words}"


def test_the_check_and_benchmarks_of_a_gpu_need_no_database_and_no_page() -> None:
    absent = {"sqlite_utils", "pysqlite3", "uuid_utils", "gradio", "fastapi", "argon2", "bitsandbytes"}
    for name in ("tests/test_gpu.py", "tests/conftest.py", "benchmarks/ppo.py", "benchmarks/serving.py"):
        assert not needed_by(ROOT / name) & absent, name


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_takes_from_the_packages_is_there(path: Path) -> None:
    """mypy reads the packages only, and most benchmarks run for an hour before they would stop."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            module = ROOT / str(node.module).replace(".", "/")
            for name in (alias.name for alias in node.names):
                is_module = (module / f"{name}.py").is_file() or (module / name).is_dir()
                assert is_module or name in offered_by(module.with_suffix(".py")), (
                    f"{node.module} has no {name}"
                )


def offered_by(path: Path) -> set[str]:
    """The names that other modules can import from this one; of none where there is no such file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return found
