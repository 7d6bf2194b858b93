"""Study files: read with clear errors, expanded into jobs, each in a folder that its configuration names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from s2fpn_lib.train import TrainConfig
from s2fpn_lib.workbench import studies
from s2fpn_lib.workbench.pipeline import declared_types
from s2fpn_lib.workbench.studies import StudyError, failures, make_variant, read_study

SHIPPED = Path(__file__).resolve().parents[2] / "notebooks" / "studies"
SMALL = {
    "question": "Does it work?",
    "preset": "quick",
    "datasets": ["roadscenes"],
    "models": ["s2fpn_lite"],
    "seeds": [0, 1],
    "variants": {"full": {}, "no-ssam": {"ssam": False}},
}


@pytest.fixture(autouse=True)
def _no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path / "none"))
    studies._opened.cache_clear()
    yield
    studies._opened.cache_clear()


def write(folder: Path, name: str = "small", **changes) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**SMALL, **changes}.items() if v is not None}))
    return path


def shipped() -> dict[str, list[studies.Job]]:
    return {path.stem: read_study(path) for path in SHIPPED.glob("*.yaml")}


def test_the_studies_of_the_paper():
    found = shipped()
    assert found.keys() >= {"ablation", "ablation-lite", "sizes", "speed", "tiny"}
    ablation = [job.parameters for job in found["ablation"]]
    off = {name for each in ablation for name, value in each["switches"].items() if value is False}
    assert off == {"apf", "ssam", "crb", "gfu", "deep_supervision"}
    assert {"strip_axis": "width"} in [each["switches"] for each in ablation]
    assert {each["revision"] for each in ablation} == {"v1", "v2"}
    for study in ("ablation", "ablation-lite", "sizes"):
        runs = [job.parameters for job in found[study]]
        assert len({each["seed"] for each in runs}) >= 3
        full = {
            (each["dataset"], each["model"], each["revision"], each["seed"]) for each in runs if not each["switches"]
        }
        assert full == {(each["dataset"], each["model"], each["revision"], each["seed"]) for each in runs}
    assert {job.parameters["model"] for job in found["sizes"]} == {"s2fpn18", "s2fpn34", "s2fpn34m"}
    assert [(job.notebook, job.threads) for job in found["speed"]] == [("12_speed", None)]
    for name, jobs in found.items():
        assert len({job.name for job in jobs}) == len(jobs), name
        notebooks = {job.notebook: declared_types(SHIPPED.parent / f"{job.notebook}.ipynb") for job in jobs}
        for job in jobs:
            assert job.arguments("results").keys() <= notebooks[job.notebook].keys()


def test_ablations_score_images_that_were_not_trained_on():
    for study, jobs in shipped().items():
        for job in jobs:
            if job.threads:
                p = job.parameters
                config = TrainConfig.preset(p["preset"], dataset=p["dataset"], **p["changes"])
                trained, apart, left_out = config.train_split.partition(":drive!=")
                if apart:  # one drive is scored, the others are trained on
                    assert p["split"] == f"{trained}:drive={left_out}", study
                else:
                    assert (trained.partition(":")[0], p["split"]) == ("train", "val"), study


def test_every_combination_is_a_job_with_a_folder_that_says_what_it_is(tmp_path):
    jobs = read_study(write(tmp_path, revisions=["v1", "v2"]))
    assert [job.name.rsplit("-", 1)[0] for job in jobs] == [
        f"{variant}-roadscenes-s2fpn_lite-{revision}-s{seed}"
        for seed in (0, 1)
        for revision in ("v1", "v2")
        for variant in ("full", "no-ssam")
    ]
    assert jobs[1].folder(tmp_path) == tmp_path / "studies" / "small" / jobs[1].name
    assert jobs[1].arguments(tmp_path)["switches"] == {"ssam": False}
    assert jobs[1].arguments(tmp_path)["results"] == str(tmp_path)


def test_a_variant_may_change_the_recipe(tmp_path):
    variants = {"full": {}, "slow": {"changes": {"lr": 1e-4}}, "both": {"ssam": False, "changes": {"flip": False}}}
    jobs = read_study(write(tmp_path, seeds=[0], changes={"epochs": 2}, variants=variants))
    full, slow, both = sorted(jobs, key=lambda job: list(variants).index(job.parameters["variant"]))
    assert full.parameters["changes"] == {"epochs": 2}
    assert (slow.parameters["switches"], slow.parameters["changes"]) == ({}, {"epochs": 2, "lr": 1e-4})
    assert (both.parameters["switches"], both.parameters["changes"]) == ({"ssam": False}, {"epochs": 2, "flip": False})
    assert all(job.parameters["varied"] == ["flip", "lr"] for job in (full, slow, both))
    assert len({job.name.rsplit("-", 1)[1] for job in (full, slow, both)}) == 3


def test_the_notebook_finds_the_folder_that_the_plan_named(tmp_path):
    for job in read_study(write(tmp_path, changes={"epochs": 2, "crop": [64, 96]}, limit=3)):
        p = job.parameters
        given = {name: p[name] for name in ("dataset", "model", "revision", "switches", "seed", "device")}
        variant = make_variant(
            p["study"], p["variant"], p["preset"], given | p["changes"], split=p["split"], limit=p["limit"]
        )
        assert variant.folder(tmp_path) == job.folder(tmp_path)
        assert variant.record["hash"] == job.name.rsplit("-", 1)[1]
        assert json.loads(json.dumps(p)) == p, "parameters must survive the command line"


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"changes": {"lr": 1e-4}}, True),
        ({"limit": 5}, True),
        ({"split": "test"}, True),
        ({"preset": "demo"}, True),
        ({"changes": {"checkpoint_minutes": 1.0}}, False),
        ({"changes": {"workers": 2}}, False),
        ({"device": "cpu"}, False),
        ({"threads": 2}, False),
        ({"changes": {"poly_power": 0.9}}, False),
    ],
)
def test_only_what_decides_the_numbers_gives_a_new_folder(tmp_path, changes, moves):
    before = {job.name for job in read_study(write(tmp_path))}
    after = {job.name for job in read_study(write(tmp_path, **changes))}
    assert (before.isdisjoint(after), before == after) == (moves, not moves)


def test_a_field_that_a_later_version_adds_moves_no_folder(tmp_path, monkeypatch):
    before = [job.name for job in read_study(write(tmp_path))]
    recipe = TrainConfig.recipe
    monkeypatch.setattr(TrainConfig, "recipe", lambda self: {**recipe(self), "new": 0})
    assert [job.name for job in read_study(write(tmp_path))] == before


def test_auto_is_what_there_is(tmp_path, monkeypatch, request):
    path = write(tmp_path, datasets=["auto"])
    assert {job.parameters["dataset"] for job in read_study(path)} == {"roadscenes"}
    monkeypatch.undo()
    request.getfixturevalue("camvid_root")
    studies._opened.cache_clear()
    assert {job.parameters["dataset"] for job in read_study(path)} == {"camvid"}


def test_fields_given_on_the_command_line(tmp_path):
    paths = [write(tmp_path), tmp_path / "fast.yaml"]
    paths[1].write_text("question: How fast?\nnotebook: 12_speed\nparameters: {models: [s2fpn18]}\n")
    given = {"seeds": ["7"], "limit": "4", "changes": {"flip": "false", "init_from": ""}}
    found = {path.stem: read_study(path, given) for path in paths}
    assert {job.parameters["seed"] for job in found["small"]} == {7}
    assert {job.parameters["limit"] for job in found["small"]} == {4}
    assert {job.parameters["changes"]["flip"] for job in found["small"]} == {False}
    assert {job.parameters["changes"]["init_from"] for job in found["small"]} == {""}  # not None
    measuring = found["fast"][0]
    assert measuring.arguments(tmp_path) == {"models": ["s2fpn18"], "results": str(measuring.folder(tmp_path))}
    for path in paths:
        with pytest.raises(StudyError, match=r"unknown field 'seed'\. Did you mean 'seeds'"):
            read_study(path, {"seed": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown field 'sedes'. Did you mean 'seeds'"),
        (
            {"variants": {"no-ssam": {"sasm": False}}},
            "variant no-ssam has an unknown switch 'sasm'. Did you mean 'ssam'",
        ),
        ({"variants": {"No SSAM": {}}}, "lower-case letters"),
        ({"variants": {"slow": {"changes": {"epoch": 1}}}}, "Did you mean 'epochs'"),
        ({"variants": {"slow": {"changes": 0.1}}}, "fields of TrainConfig under changes"),
        ({"variants": {"slow": None}}, "variant slow is None"),
        ({"preset": "quik"}, "Did you mean 'quick'"),
        ({"changes": {"epoch": 3}}, "Did you mean 'epochs'"),
        ({"preset": None}, "does not give preset"),
        ({"question": None}, "does not give question"),
        ({"seeds": 3}, "seeds is 3; it takes a list"),
        ({"seeds": [1, 1]}, "occurs more than once"),
        ({"seeds": ["one"]}, "seed is 'one'"),
    ],
)
def test_a_wrong_study_is_refused_by_its_name(tmp_path, changes, message):
    with pytest.raises(StudyError) as caught:
        read_study(write(tmp_path, **changes))
    assert message in str(caught.value)
    assert str(tmp_path / "small.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "cannot be read as YAML"), ("- a", "has no fields"), ("", "has no fields")]
)
def test_a_file_that_is_no_study(tmp_path, text, message):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(StudyError, match=message):
        read_study(path)


def test_gpus_are_counted_only_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(studies.torch.cuda, "is_available", lambda: True)
    assert {job.gpus for job in read_study(write(tmp_path))} == {1}
    assert {job.gpus for job in read_study(write(tmp_path, changes={"devices": 2}))} == {2}
    assert {job.gpus for job in read_study(write(tmp_path, device="cpu"))} == {0}
    monkeypatch.setattr(studies.torch.cuda, "is_available", lambda: False)
    assert {job.gpus for job in read_study(write(tmp_path))} == {0}


def test_failures_are_found(tmp_path):
    assert failures(tmp_path) == []
    folder = tmp_path / "studies" / "small" / "full-roadscenes"
    folder.mkdir(parents=True)
    record = {"notebook": "20_ablation.ipynb", "cell": "train()", "error": "ValueError: no"}
    (folder / "failure.json").write_text(json.dumps(record))
    assert failures(tmp_path) == [{"folder": "studies/small/full-roadscenes", **record}]
