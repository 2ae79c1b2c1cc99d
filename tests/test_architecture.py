"""The architecture as tests: imports point one way, files stay short, and no file collects what belongs elsewhere."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "utils": set(),
    "data": {"utils"},
    "models": {"utils"},
    "evaluation": {"utils"},
    "engine": {"utils", "data", "models", "evaluation"},
    "analysis": {"utils", "data", "models", "evaluation", "engine"},
}
UPWARDS = {"models/__init__.py": {"engine.predictor"}}  # ``from models import load``, imported when it is asked for
INSIDE = {  # what a folder may import from its own package, besides itself
    "analysis/matching": {
        "analysis.mode",
        "analysis.output.pictures",
        "analysis.output.report",
        "analysis.objects",
        "analysis.strategies",
        "analysis.output.plots",
        "analysis.output.result",
    },
    "analysis/score_mismatch": {
        "analysis.error_pictures",
        "analysis.evaluation_images",
        "analysis.matching.losses",
        "analysis.matching.options",
        "analysis.matching.scores",
        "analysis.matching.statistics",
        "analysis.matching.suppression",
        "analysis.matching.views",
        "analysis.mode",
        "analysis.output.pictures",
        "analysis.output.report",
        "analysis.output.result",
    },
    "analysis/output": set(),
    "models/assignment": {"models.heads", "models.raw_maps"},
    "models/checkpoints": {
        "models.connected",
        "models.detection_network",
        "models.exported.open_file",
        "models.exported.required",
        "models.families.table",
        "models.layers",
        "models.network",
        "models.recurrent",
    },
    "models/darknet": {
        "models.activations",
        "models.connected",
        "models.exact_heads",
        "models.head_maps",
        "models.heads",
        "models.layers",
        "models.recurrent",
    },
    "models/families": {
        "models.assignment.assigner",
        "models.assignment.counts",
        "models.assignment.grid",
        "models.assignment.inputs",
        "models.assignment.options",
        "models.assignment.strategies",
        "models.backbone_source",
        "models.decode",
        "models.detection_network",
        "models.exported.required",
        "models.heads",
        "models.learner",
        "models.loss",
        "models.network",
    },
    "models/exported": {
        "models.darknet.cfg",
        "models.darknet.schema",
        "models.exact_heads",
        "models.heads",
        "models.network",
        "models.nms",
    },
    "data/labels": {"data.description", "data.image_files", "data.shapes"},
}
MATCHING_STATS = (  # the files of analysis/matching, from the command down; a file imports from later rows only
    {"command"},
    {"pictures", "browser"},
    {"views"},
    {"statistics", "tables"},
    {"measure"},
    {"scores", "suppression", "losses"},
    {"quality"},
    {"pairs"},
    {"blocks", "options"},
)
SCRIPTS = {"train", "test", "detect", "analyze", "kmeans_anchors", "export", "hubconf"}
AROUND = {"benchmarks", "docs", "tests"}  # folders that use the packages, and that no package may use
SINKS = {"utils", "misc", "general", "common", "helpers"}
MAX_LINES = 400
MAX_FUNCTION_LINES = 60


def imported_modules(path: Path) -> list[str]:
    """Every absolute import of a file, those inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
    return names


def forbidden_imports(root: Path) -> list[str]:
    """Imports that point up the layers, in any package below ``root``."""
    found = []
    for package, allowed in ALLOWED.items():
        for path in sorted((root / package).rglob("*.py")):
            for name in imported_modules(path):
                top = name.split(".")[0]
                is_upwards = top in ALLOWED.keys() | SCRIPTS | AROUND and top != package and top not in allowed
                if is_upwards and name not in UPWARDS.get(str(path.relative_to(root)), ()):
                    found.append(f"{path.relative_to(root)} imports {name}")
    for folder, allowed in INSIDE.items():
        own = folder.replace("/", ".")
        for path in sorted((root / folder).rglob("*.py")):
            for name in imported_modules(path):
                is_of_package = name.split(".")[0] == own.split(".")[0]
                if is_of_package and not f"{name}.".startswith(f"{own}.") and name not in allowed:
                    found.append(f"{path.relative_to(root)} imports {name}")
    return found


def source_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()] or sorted(ROOT.rglob("*.py"))


def test_imports_point_one_way():
    assert forbidden_imports(ROOT) == []


def test_a_wrong_import_would_be_found(tmp_path):
    for package in ALLOWED:
        (tmp_path / package).mkdir()
    (tmp_path / "models" / "bad.py").write_text("def f():\n    from data.loader import x\n")
    (tmp_path / "models" / "__init__.py").write_text("import engine.predictor\nimport engine.resolve\n")
    (tmp_path / "utils" / "bad.py").write_text("import train\n")
    (tmp_path / "data" / "labels").mkdir()
    text = "import data.description\nimport data.labels.find\nimport data.loader\n"
    (tmp_path / "data" / "labels" / "bad.py").write_text(text)
    assert forbidden_imports(tmp_path) == [
        "utils/bad.py imports train",
        "models/__init__.py imports engine.resolve",
        "models/bad.py imports data.loader",
        "data/labels/bad.py imports data.loader",
    ]


def test_the_files_of_matching_stats_import_one_way():
    row_of = {name: number for number, row in enumerate(MATCHING_STATS) for name in row}
    files = {path.stem: path for path in (ROOT / "analysis/matching").glob("*.py") if path.stem != "__init__"}
    assert files.keys() == row_of.keys()
    upwards = []
    for stem, path in files.items():
        imported = [name.split(".") for name in imported_modules(path)]
        inside = [parts[2] for parts in imported if parts[:2] == ["analysis", "matching"] and len(parts) > 2]
        upwards += [f"{stem} imports {name}" for name in inside if row_of[name] <= row_of[stem]]
    assert upwards == []


def test_every_package_has_its_place():
    """A folder with programs is listed above, and no file around the packages hides one of them by its name."""
    paths = [path.relative_to(ROOT) for path in source_files()]
    assert {path.parts[0] for path in paths if len(path.parts) > 1} == ALLOWED.keys() | AROUND
    assert {path.stem for path in paths if len(path.parts) == 1} <= SCRIPTS
    assert [path for path in paths if path.parts[0] in AROUND and path.stem in ALLOWED] == []


def test_no_two_classes_have_one_name():
    homes: dict[str, list[str]] = {}
    for path in source_files():
        if path.parent.name != "tests":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_no_file_is_a_sink_by_name():
    assert [path.name for path in source_files() if path.stem in SINKS] == []


def test_files_and_functions_stay_short():
    too_long = []
    for path in source_files():
        if path.parent.name == "tests":
            continue
        text = path.read_text()
        if text.count("\n") > MAX_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert too_long == []


def test_nothing_unpickles_and_nothing_needs_torchvision():
    """``torch.load`` only with ``weights_only=True``, no ``pickle.load``, no torchvision outside tests."""
    found = []
    for path in source_files():
        if path.parent.name == "tests":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = f"{getattr(node.func.value, 'id', '?')}.{node.func.attr}"
                safe = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
                if call in {"pickle.load", "pickle.loads"} or (call == "torch.load" and not safe):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {call}")
                if call == "numpy.load" or call == "np.load":
                    unsafe = any(k.arg == "allow_pickle" and getattr(k.value, "value", None) for k in node.keywords)
                    found += [f"{path.relative_to(ROOT)}:{node.lineno} {call}"] if unsafe else []
        found += [
            f"{path.relative_to(ROOT)} {name}" for name in imported_modules(path) if name.startswith("torchvision")
        ]
    assert found == []
