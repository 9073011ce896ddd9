"""Who may import whom (ARCHITECTURE.md, "Layers"), read from the source, so that no line can cheat."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ecrec"
MAY_IMPORT = {
    "errors": set(),
    "exit_codes": {"errors"},
    "urls": {"errors"},
    "termination": {"exit_codes"},
    "tether": set(),
    "torchx_component": set(),
    "codec": {"_native", "errors"},
    "store": {"_native", "codec", "errors"},
    "protocol": {"_native", "codec", "store", "errors", "urls"},
    "transport": {"_native", "protocol", "codec", "errors"},
    "data": {"errors", "urls"},
    "checkpoint": {"_native", "protocol", "transport", "errors", "urls"},
    "training": {"_native", "checkpoint", "data", "protocol", "transport", "errors", "termination"},
    "bench": {"_native", "training", "protocol", "errors", "tether"},
    "launch": {
        "bench",
        "checkpoint",
        "training",
        "data",
        "transport",
        "protocol",
        "codec",
        "store",
        "errors",
        "urls",
        "exit_codes",
        "_native",
        "termination",
        "tether",
    },
    "ray": {"launch", "training", "transport", "protocol", "errors", "exit_codes", "tether"},
    "train": {
        "checkpoint",
        "launch",
        "ray",
        "training",
        "data",
        "transport",
        "protocol",
        "errors",
        "urls",
        "exit_codes",
    },
    "reproduce": {"checkpoint", "data", "launch", "train", "transport", "protocol", "errors", "exit_codes", "tether"},
    "__main__": {"cli", "exit_codes"},
    "cli": {
        "checkpoint",
        "launch",
        "reproduce",
        "train",
        "training",
        "transport",
        "protocol",
        "errors",
        "urls",
        "exit_codes",
    },
}
FORBIDDEN = {
    "protocol": {"socket", "zmq", "time", "random", "os", "logging", "threading", "asyncio", "torch", "secrets"},
    "codec": {"torch", "zmq"},
    "store": {"torch", "zmq"},
    "transport": {"torch"},
    "data": {"torch"},
}
CPP = PACKAGE.parent / "src" / "cpp"
MAY_INCLUDE = {
    "threads": set(),
    "kernels": set(),
    "base": {"kernels", "threads"},
    "gf": {"kernels"},
    "codec": {"gf", "kernels", "threads"},
    "files": {"codec"},
    "batch": {"base", "kernels", "threads"},
    "store": {"base", "codec", "gf", "kernels", "threads"},
}
"""The same for the folders of src/cpp."""
LAUNCH_MAY_IMPORT = {"servers": set(), "local": {"servers"}, "tools": {"local"}}
"""The same for the folders of ecrec/launch; what they share lies beside them, and imports only from `local`."""
LAZY_TORCH = {"launch", "cli"}
"""Here torch is imported by nobody; the layer reaches it only through `ecrec.training`, inside of functions."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import; ``from ecrec import x`` counts as ``ecrec.x``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"ecrec.{a.name}" for a in node.names] if node.module == "ecrec" else [node.module or ""]
            found += [(node.lineno, name) for name in names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_layers_below(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "ecrec" and len(parts) > 1 and parts[1] != layer and not parts[1].startswith("__"):
            assert parts[1] in MAY_IMPORT[layer], f"{path}:{line}: {layer} imports {name}"
        assert parts[0] not in FORBIDDEN.get(layer, set()), f"{path}:{line}: {layer} imports {name}"
        if layer in LAZY_TORCH:
            assert parts[0] != "torch", f"{path}:{line}: torch belongs to ecrec.training"
        assert parts[0] not in {"pickle", "marshal", "shelve"}, f"{path}:{line}: {name}: no pickle on any wire or disk"


def test_checkpoints_are_read_and_written_with_numpy_alone() -> None:
    # Servers do both. What takes checkpoints elsewhere imports the packages for it inside of functions.
    allowed = {*sys.stdlib_module_names, "numpy", "msgspec", "ecrec"}
    for path in sorted((PACKAGE / "checkpoint").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert {name.split(".")[0] for name in names} <= allowed, f"{path}:{node.lineno}: {names}"


def test_the_folders_of_launch_import_only_from_those_below() -> None:
    launch = PACKAGE / "launch"
    for path in sorted(launch.rglob("*.py")):
        folder = path.relative_to(launch).parts[0]
        allowed = LAUNCH_MAY_IMPORT.get(folder, {"local"}) | {folder}
        for line, name in imports(path):
            inside = name.removeprefix("ecrec.launch.").split(".")[0] if name.startswith("ecrec.launch.") else ""
            assert inside not in LAUNCH_MAY_IMPORT or inside in allowed, f"{path}:{line}: imports {name}"


def test_the_simulator_imports_the_protocol_and_what_is_below_alone() -> None:
    simulator = PACKAGE.parent / "tests" / "simulator" / "simulation"
    allowed = MAY_IMPORT["protocol"] | {"protocol"}
    for path in sorted(simulator.rglob("*.py")):
        for line, name in imports(path):
            parts = name.split(".")
            assert parts[0] != "ecrec" or parts[1] in allowed, f"{path}:{line}: the simulator imports {name}"


def test_only_launch_reads_the_environment() -> None:
    for path in modules():
        if path.relative_to(PACKAGE).parts[0] not in {"launch", "train", "cli.py"}:
            text = path.read_text()
            assert "os.environ" not in text and "getenv" not in text, path


def test_messages_are_imported_from_their_package_alone() -> None:
    for path in modules():
        if path.parent != PACKAGE / "protocol" / "messages":
            inside = [name for _, name in imports(path) if name.startswith("ecrec.protocol.messages.")]
            assert inside == [], path


@pytest.mark.parametrize("folder", sorted(path.name for path in CPP.iterdir() if path.is_dir()))
def test_a_folder_of_the_core_includes_only_from_those_below(folder: str) -> None:
    files = [path for path in (CPP / folder).rglob("*") if path.suffix in {".cpp", ".hpp", ".inl"}]
    assert files
    for path in files:
        for name in re.findall(r'^#include "(\w+)/', path.read_text(), re.MULTILINE):
            assert name == folder or name in MAY_INCLUDE[folder], f"{path}: {folder} includes from {name}"
