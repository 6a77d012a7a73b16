"""Rooms by what they may touch, and the few rules of the house that a program can check."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "alignment"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = [
    path
    for pattern in ("*.md", "*.toml", "alignment/**/*.py", "tests/**/*.py", "scripts/*", "conf/**/*", "recipes/*")
    for path in sorted(REPOSITORY.glob(pattern))
    if path.is_file()
]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 250, 60
PAGES = {"rl/groups.py": 60, "tasks/online_dpo.py": 80}  # what GRPO and online DPO have beside what methods share

LIBRARY = {"data", "distributed", "models"}
ROOMS = {  # room: the rooms it may import, beside itself and those that everybody may
    "terminal": set(),
    "preempt": set(),
    "process": set(),
    "user_error": set(),
    "lazy": set(),
    "losses": set(),
    "toy": set(),
    "config": {"losses"},
    "runs": {"config"},
    "hub": {"config", "data", "runs"},  # which commits names stand for, in the hub's words or a run's, and their files
    "data": {"config", "toy", "runs"},  # what files hold, and files that are there whole or not at all
    "distributed": {"config", "runs"},
    "models": {"config", "data", "distributed", "toy"},
    "training": {"config", "losses", "runs", *LIBRARY},
    "generation": {"config", "losses", *LIBRARY},
    "rl": {"config", "losses", "runs", "training", "generation", *LIBRARY},
    "evaluate": {"config", "losses", "runs", *LIBRARY},
    "tasks": {"config", "hub", "losses", "toy", "runs", "training", "generation", "rl", "evaluate", *LIBRARY},
    "check": {"config", "losses", "toy", "runs", "training", "generation", "rl", "evaluate", "tasks", *LIBRARY},
    "plan": {"config", "training", "tasks", *LIBRARY},
    "slurm": {"config", "runs", "tasks"},  # its words and commands: text and subprocesses, no model and no data
    "overview": {"config", "runs", "evaluate", "slurm"},  # of runs by their folders: text, no model and no data
    "cli": {"config", "hub", "slurm", "runs", "tasks", "plan", "check", "overview"},
    "api": {"config", "data", "runs", "cli"},  # the command from Python: beside what it is given in memory, cli's work
    "__main__": {"cli"},
    "__init__": {"api", "config", "data", "losses", "models"},  # names alone, which nothing is imported for
}
EVERYBODYS = {"terminal", "preempt", "process", "user_error", "lazy"}
DOORS = {  # library: the only rooms or modules that may import it
    "hydra": ["alignment.cli"],
    "yaml": ["alignment.cli", "alignment.runs.settings"],
    "omegaconf": ["alignment.cli", "alignment.config", "alignment.runs.commits", "alignment.runs.lifecycle"],
    "deepspeed": ["alignment.distributed.deepspeed"],
    "trl": [
        "alignment.data.chat",
        "alignment.generation.transfer",
        "alignment.models.activations",
        "alignment.models.fused_head",
    ],
    "accelerate": ["alignment.training.trackers"],
    "peft": [
        "alignment.api.result",
        "alignment.check.plain",
        "alignment.models.adapter_files",
        "alignment.models.adapters",
        "alignment.models.eva",
        "alignment.models.lora",
        "alignment.models.merge",
        "alignment.models.prompt_files",
        "alignment.models.quantized",
        "alignment.models.saved_adapter",
    ],
    "datasets": ["alignment.data.tables"],
    "torchao": ["alignment.models.fp8"],
    "huggingface_hub": ["alignment.hub", "alignment.models.files", "alignment.models.init"],
    "matplotlib": ["alignment.evaluate"],
    "rich": ["alignment.terminal", "alignment.training.progress", "alignment.evaluate.table"],
}
ONLY = {  # rooms that import no other library
    "losses": {"torch"},
    "toy": set(),
    "terminal": {"rich"},
    "preempt": set(),
    "process": set(),
    "user_error": set(),
    "lazy": set(),
}


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line} imports {self.module}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def imports() -> Iterator[Import]:
    """Every import of the package's source, those within functions too."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (Import(path, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                assert node.module is not None
                if node.module == "alignment":
                    yield from (Import(path, node.lineno, f"alignment.{alias.name}") for alias in node.names)
                else:
                    yield Import(path, node.lineno, node.module)


def test_every_room_is_known() -> None:
    assert {room_of(module_of(path)) for path in SOURCES} == set(ROOMS)


def test_rooms_import_only_what_is_below_them() -> None:
    wrong = []
    for each in imports():
        if each.module.split(".")[0] == "alignment":
            room, other = room_of(module_of(each.path)), room_of(each.module)
            if other not in {room, *ROOMS[room], *EVERYBODYS}:
                wrong.append(str(each))
    assert wrong == []


def test_the_files_of_rl_read_from_top_to_bottom() -> None:
    """In the order of the room's docstring, which names each of them: a file imports only files above it."""
    text = (PACKAGE / "rl" / "__init__.py").read_text()
    order = re.findall(r"^    (\w+) {2,}", text, re.MULTILINE)
    files = sorted(path.stem for path in (PACKAGE / "rl").glob("*.py") if path.stem != "__init__")
    assert sorted(order) == files
    rl = [each for each in imports() if room_of(module_of(each.path)) == "rl" and room_of(each.module) == "rl"]
    assert len(rl) > 10
    up = [str(each) for each in rl if order.index(each.module.split(".")[2]) >= order.index(each.path.stem)]
    assert up == []


def test_heavy_libraries_have_few_doors() -> None:
    wrong = []
    for each in imports():
        doors = DOORS.get(each.module.split(".")[0])
        if doors is not None and not any(f"{module_of(each.path)}.".startswith(f"{door}.") for door in doors):
            wrong.append(str(each))
    assert wrong == []


@pytest.mark.parametrize("room", ONLY)
def test_rooms_useful_to_anybody_need_little(room: str) -> None:
    libraries = {each.module.split(".")[0]: str(each) for each in imports() if room_of(module_of(each.path)) == room}
    foreign = set(libraries) - sys.stdlib_module_names - {"alignment"}
    assert foreign <= ONLY[room], [libraries[name] for name in foreign]


def nodes(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                yield f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}", node


def test_no_typo_can_become_a_default() -> None:
    """No getattr with a default, no hasattr."""
    wrong = []
    for place, node in nodes(ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "hasattr" or (name == "getattr" and len(node.args) + len(node.keywords) > 2):
            wrong.append(f"{place} {name}")
    assert wrong == []


def test_private_names_stay_in_their_module() -> None:
    """Also those of a module that a test has imported whole, to put another in their place."""
    found = []
    for path in [
        *SOURCES,
        *sorted((REPOSITORY / "tests").rglob("*.py")),
        *sorted((REPOSITORY / "scripts").glob("*.py")),
    ]:
        tree = ast.parse(path.read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = [node for node in nodes if node.module is not None and node.module.split(".")[0] == "alignment"]
        names = {alias.asname or alias.name for node in ours for alias in node.names}
        found += [(path, node.lineno) for node in ours if any(alias.name.startswith("_") for alias in node.names)]
        found += [
            (path, node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
            if re.match(r"_[A-Za-z]", node.attr)
        ]
    assert not found, [f"{path.relative_to(REPOSITORY)}:{line}" for path, line in found]


def test_no_error_is_swallowed() -> None:
    """No bare except, no `except Exception`."""
    broad = {"Exception", "BaseException"}
    wrong = []
    for place, node in nodes(ast.ExceptHandler):
        kinds = [] if node.type is None else [part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)]
        if not kinds or broad & set(kinds):
            wrong.append(place)
    assert wrong == []


def test_no_wildcard_and_no_target() -> None:
    stars = [place for place, node in nodes(ast.ImportFrom) if any(alias.name == "*" for alias in node.names)]
    targets = [str(path) for path in SOURCES if "_target_" in path.read_text()]
    assert stars == [] and targets == []


def test_files_and_functions_are_short() -> None:
    files = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in SOURCES}
    functions = {
        f"{place} {node.name}": node.end_lineno - node.lineno + 1
        for place, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: count for name, count in files.items() if count > MAX_FILE_LINES} == {}
    assert {name: count for name, count in functions.items() if count > MAX_FUNCTION_LINES} == {}


def test_a_method_s_own_page_is_a_page() -> None:
    """GRPO, Dr. GRPO and RLOO are what `rl/groups.py` has of their own: nothing else compares the replies to a prompt,
    and only PPO's task and experience ask for it. Online DPO is its task."""
    lengths = {name: len((PACKAGE / name).read_text().splitlines()) for name in PAGES}
    assert {name: count for name, count in lengths.items() if count > PAGES[name]} == {}
    asking = {module_of(each.path) for each in imports() if each.module == "alignment.rl.groups"}
    assert asking == {"alignment.rl.experience", "alignment.tasks.ppo"}
    calling = {
        place.partition(":")[0]
        for place, node in nodes(ast.Name)
        if node.id in ("grpo_advantages", "dr_grpo_advantages", "rloo_advantages")
    }
    assert calling == {"alignment/losses/advantages.py", "alignment/rl/groups.py"}


def test_every_module_says_what_it_is_and_none_is_a_drawer() -> None:
    assert [str(path) for path in SOURCES if ast.get_docstring(ast.parse(path.read_text())) is None] == []
    assert [str(path) for path in SOURCES if path.stem in ("utils", "helpers", "common", "misc")] == []


def test_cuda_is_touched_only_where_devices_are_known() -> None:
    places = [place for place, node in nodes(ast.Attribute) if ast.unparse(node).startswith("torch.cuda")]
    allowed = ("alignment/distributed/", "alignment/training/generators.py")  # a checkpoint holds the GPU's generator
    assert [place for place in places if not place.startswith(allowed)] == []


def test_no_text_names_a_place_on_somebodys_machine() -> None:
    homes = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt|tmp)/\w+")
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in TEXTS
        if path.suffix in (".md", ".toml", ".py", ".sh", ".yaml", "")
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if homes.search(line)
    ]
    assert wrong == []
