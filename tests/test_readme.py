"""The README's calls are ones that work: papermill's parameters are declared and typed so, the scripts' rows run."""

import re
import shlex
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from papermill.cli import papermill
from PIL import Image

from s2fpn_lib.model import build_model
from s2fpn_lib.model.published import published_name
from s2fpn_lib.runs import PROJECT
from s2fpn_lib.train import TrainConfig
from s2fpn_lib.validate import as_declared
from s2fpn_lib.workbench.pipeline import declared_types

README = (PROJECT / "README.md").read_text()
TEXTS = README + "".join(path.read_text() for path in sorted((PROJECT / "docs").glob("*.md")))
CALLS = re.findall(r"papermill notebooks/[^`\n]+", TEXTS)
PUBLISHED = dict(re.findall(r"^\| `([a-z_]+\.py)[^|]*\| `(papermill [^`]+)`", README, re.MULTILINE))


def injected(call: str, folder: Path) -> tuple[Path, dict]:
    """The notebook of a papermill call and the values that papermill itself makes of its words."""
    words = shlex.split(call)[1:]
    source, target = PROJECT / words[0], folder / "prepared.ipynb"
    result = CliRunner().invoke(papermill, [str(source), str(target), *words[2:], "--prepare-only"])
    assert result.exit_code == 0, result.output
    cells = nbformat.read(target, as_version=4).cells
    values: dict = {}
    exec(next(cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])), values)
    del values["__builtins__"]
    return source, values


def test_every_published_script_has_its_call():
    assert set(PUBLISHED) == {"train.py", "test.py", "eval_fps.py", "predict.py"}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_gives_declared_parameters_of_their_types(call, tmp_path):
    source, values = injected(call, tmp_path)
    types = declared_types(source)
    assert values
    for name, value in values.items():
        as_declared(value, eval(types[name]))  # raises TypeError for another type


def test_the_published_recipe_is_the_published_command_line(tmp_path):
    _, values = injected(PUBLISHED["train.py"], tmp_path)
    names = {"max_epochs": "epochs", "train_type": "train_split"}
    config = TrainConfig.preset(values.pop("preset"), **{names.get(name, name): values[name] for name in values})
    found = (config.model, config.epochs, config.train_split, config.lr, config.batch_size, config.dataset)
    assert found == ("s2fpn18", 150, "trainval", 3e-4, 8, "camvid")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with a checkpoint in the author's layout, a CamVid of one picture, and a picture of its own."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    state = build_model("s2fpn18", num_classes=11).state_dict()
    torch.save(
        {"epoch": 150, "model": {published_name(k, "v1"): v for k, v in state.items()}}, folder / "model_150.pth"
    )
    for name, shape in (("camvid/test", (360, 480, 3)), ("camvid/testannot", (360, 480)), ("pictures", (48, 64, 3))):
        (folder / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 11, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "0001TP_000001.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "fewer", "artifact"),
    [
        ("test.py", {"images": 1, "pages": 0, "worst_classes": 0}, "11_evaluate/*/row.csv"),
        ("predict.py", {"images": 1}, "13_predict/**/*.png"),
    ],
)
def test_the_calls_on_a_published_checkpoint_run(script, fewer, artifact, published, tmp_path, monkeypatch):
    """As the README has them, with fewer figures: there is but one picture."""
    monkeypatch.setenv("S2FPN_DATA", str(published))
    monkeypatch.setenv("S2FPN_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(published)
    words = [word.replace("notebooks/", f"{PROJECT}/notebooks/") for word in shlex.split(PUBLISHED[script])[1:]]
    words += [word for name, value in fewer.items() for word in ("-p", name, str(value))]
    result = CliRunner().invoke(papermill, [*words, "--no-progress-bar"])
    assert result.exit_code == 0, result.output[-3000:]
    assert list((tmp_path / "results").glob(artifact))
