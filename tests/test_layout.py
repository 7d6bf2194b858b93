"""The structure of the library: rooms import only from rooms below them, and the core needs few packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "s2fpn_lib"
# From top to bottom; rooms on one line do not import each other
LAYERS = [
    ("inspector",),
    ("report",),
    ("workbench",),
    ("benchmark",),
    ("attention",),
    ("viz",),
    ("inference",),
    ("train",),
    ("replay",),
    ("state",),
    ("config",),
    ("optim",),
    ("evaluate",),
    ("losses", "checkpoint"),
    ("data",),
    ("metrics", "distributed"),
    ("model",),
    ("runs", "validate"),
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MOST_ENTRIES = 23
MOST_LINES = {"file": 350, "library": 12_500}

# What pyproject.toml declares for the library beyond what the core needs, and what Jupyter brings
BLOCKED = [
    *("pandas", "pyarrow", "matplotlib", "seaborn", "tqdm", "packaging", "yaml", "onnx", "openvino"),
    *("jupyterlab", "ipywidgets", "anywidget", "papermill", "IPython", "ipykernel", "nbformat", "nbconvert"),
    *("onnxruntime", "traitlets", "jupyter_client", "snakemake", "av", "huggingface_hub", "timm", "torchmetrics"),
    *("optuna", "tensorboard", "mlflow", "sqlalchemy", "alembic", "onnx_ir", "onnxscript", "psutil"),
]
CORE = """
import sys
sys.modules.update(dict.fromkeys({blocked}))  # importing any of them fails
import s2fpn_lib.train
assert "s2fpn_lib.evaluate" in sys.modules
above = ("inference", "benchmark", "workbench", "report", "viz", "attention", "inspector")
found = [name for name in sys.modules if name.startswith(tuple(f"s2fpn_lib.{{room}}" for room in above))]
assert not found, found
"""
TRAIN = """
from s2fpn_lib.data.roadscenes import dataset
from s2fpn_lib.train import TrainConfig, train
dataset.COUNTS = {"train": 30, "val": 5}
changes = dict(dataset="roadscenes", train_split="train:drive=park", crop=[32, 48], epochs=1, eval_images=1)
result = train(TrainConfig.preset("demo", **changes), run_dir=sys.argv[1])
assert result.history[0]["val_miou"] >= 0
"""


def modules() -> list[Path]:
    return sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("s2fpn_lib.")}
    return rooms


def test_every_entry_is_a_room_or_data():
    entries = {path.name for path in LIBRARY.iterdir()} - {"__pycache__"}
    assert {name.removesuffix(".py") for name in entries} == {*LEVEL, "__init__", "weights"}
    assert len(entries) <= MOST_ENTRIES


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_point_down(path):
    own = room(path)
    for other in imported_rooms(path) - {own}:
        assert LEVEL[other] > LEVEL[own], f"{path.relative_to(LIBRARY)} imports {other}, which is not below {own}"


def test_files_stay_short():
    lines = {path: len(path.read_text().splitlines()) for path in modules()}
    assert {path: count for path, count in lines.items() if count > MOST_LINES["file"]} == {}
    assert sum(count for path, count in lines.items() if "roadscenes" not in path.parts) <= MOST_LINES["library"]


def test_the_core_works_with_few_packages(tmp_path):
    """Importing train imports evaluate."""
    code = CORE.format(blocked=BLOCKED) + TRAIN
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
