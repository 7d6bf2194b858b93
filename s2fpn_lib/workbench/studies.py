"""Studies: one YAML file describes many notebook runs. Each run is a job with its own folder.

Snakemake decides what must run (Snakefile), and `s2fpn_lib.workbench.run_notebook` runs it. This module reads the files
and names the folders, <results>/studies/<study>/<variant>-<dataset>-<model>-<revision>-s<seed>-<hash>/, of trainings,
and <results>/studies/<study>/<notebook>-<hash>/ of measurements. docs/studies.md lists what they hold.
"""

import functools
import math
import re
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import SegmentationDataset, open_dataset
from s2fpn_lib.model import Switches
from s2fpn_lib.runs import config_hash, read_json, results_root
from s2fpn_lib.validate import did_you_mean, read_yaml

TRAINING, MEASURING = yaml.safe_load(Path(__file__).with_name("study_fields.yaml").read_text()).values()
MOST_JOBS = 10_000  # of a study
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class StudyError(ValueError):
    """A study file has an error. The message names the file and the field."""


class Job(NamedTuple):
    """One notebook run of a study."""

    study: str
    name: str
    notebook: str
    parameters: dict[str, Any]
    threads: int | None  # None: a measurement of time, which takes all cores so that nothing runs beside it
    gpus: int

    def folder(self, results: str | Path) -> Path:
        return Path(results) / "studies" / self.study / self.name

    def arguments(self, results: str | Path) -> dict[str, Any]:
        """The notebook's parameters with `results`: a variant finds its folder in it, a measurement gets its own."""
        return {**self.parameters, "results": str(results if self.threads else self.folder(results))}


class Variant(NamedTuple):
    """One training and its score: what 20_ablation runs. `record` is the content of variant.json."""

    config: TrainConfig
    record: dict[str, Any]

    def folder(self, results: str | Path | None) -> Path:
        """Its folder under `results` (empty: `results_root()`)."""
        name = "{study}/{variant}-{dataset}-{model}-{revision}-s{seed}-{hash}".format(**self.record)
        return Path(results or results_root()) / "studies" / name


def make_variant(
    study: str, name: str, preset: str, changes: Mapping[str, Any], *, split: str = "val", limit: int = 0
) -> Variant:
    """The variant; StudyError for a name that makes no folder name or a switch that does not exist."""
    for what, value in {"study": study, "variant": name}.items():
        if not NAME.fullmatch(value):
            raise StudyError(f"{what} {value!r}: use lower-case letters, digits, - and _, which make a folder name")
    _check_names(f"variant {name}", changes.get("switches", {}), Switches.__dataclass_fields__, "switch")
    config = TrainConfig.preset(preset, **changes)
    if config.dataset == "auto":
        found = _opened("camvid", config.data_root, config.train_split)
        config = config.replace(dataset=found.name if found else "roadscenes")
    recipe, defaults, scored = config.recipe(), TrainConfig().recipe(), {"split": split, "limit": limit}
    # A job whose data are missing or damaged fails when it runs, and says why
    opened = [_opened(config.dataset, config.data_root, each) for each in (config.train_split, split)]
    data = [each.digest() if each else None for each in opened]
    dataset = opened[0].name if opened[0] else Path(config.dataset).stem
    # The hash covers what differs from the defaults, so that a field added later changes no folder's name
    changed = {field: value for field, value in recipe.items() if value != defaults.get(field) and field != "dataset"}
    named = {field: getattr(config, field) for field in ("model", "revision", "seed", "switches")}
    record = {"study": study, "variant": name, "dataset": dataset, **named, "preset": preset}
    record |= {"recipe": config_hash(recipe), **scored, "data": data}
    return Variant(config, record | {"hash": config_hash(changed | scored | {"dataset": dataset, "data": data})})


@functools.cache
def _opened(name: str, root: str, split: str) -> SegmentationDataset | None:
    """The split; None if it is missing, its files are damaged, or the dataset has no such split."""
    try:
        dataset = open_dataset(name, root or None, split)
        dataset.digest()
    except (OSError, ValueError):
        return None
    return dataset


def read_study(path: Path, overrides: Mapping[str, Any] = {}) -> list[Job]:
    """The jobs of a study file: all variants of the first seed, then of the next one. StudyError if it is no study.

    overrides: fields that replace those of the file where its kind of study has them, e.g. {"seeds": [0]}; texts in
    them are read as YAML, because `snakemake --config` gives texts. StudyError for a field that no study has.
    """
    overrides = _parsed(overrides)
    _check_names("the command line", overrides, {**TRAINING, **MEASURING}, "field")
    try:
        given = read_yaml(path)
    except ValueError as error:
        raise StudyError(str(error)) from error
    if not isinstance(given, dict):
        raise StudyError(f"{path} has no fields; a study has {', '.join(TRAINING)}")
    known, make_jobs = (MEASURING, _measuring_jobs) if "parameters" in given else (TRAINING, _training_jobs)
    given |= {name: value for name, value in overrides.items() if name in known}
    _check_names(str(path), given, known, "field")
    for name, default in known.items():
        if default is None and not given.get(name):
            raise StudyError(f"{path} does not give {name}")
        if default is not None and not isinstance(given.get(name, default), type(default)):
            raise StudyError(f"{path}: {name} is {given[name]!r}; it takes a {type(default).__name__}")
    try:
        if not NAME.fullmatch(given["notebook"] if "notebook" in given else known["notebook"]):
            raise StudyError(f"notebook {given['notebook']!r} is not the name of a notebook of the project")
        return make_jobs(path.stem, {**known, **given})
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise StudyError(f"{path}: {error}") from error


def _measuring_jobs(study: str, values: dict[str, Any]) -> list[Job]:
    notebook, parameters = values["notebook"], values["parameters"]
    gpus = _gpus(parameters.get("device", "auto"), 1)
    return [Job(study, f"{notebook}-{config_hash(parameters)}", notebook, parameters, None, gpus)]


def _training_jobs(study: str, values: dict[str, Any]) -> list[Job]:
    for name, described in values["variants"].items():
        if not isinstance(described, Mapping) or not isinstance(described.get("changes", {}), Mapping):
            takes = "it takes switches, and fields of TrainConfig under changes"
            raise StudyError(f"variant {name} is {described!r}; {takes}")
    variants = [(name, {"changes": {}, **described}) for name, described in values["variants"].items()]
    varied = sorted({field for _, described in variants for field in described["changes"]})
    axes = [values[each] for each in ("seeds", "datasets", "models", "revisions")]
    if (count := math.prod(map(len, (*axes, variants)))) > MOST_JOBS:
        raise ValueError(f"{count} jobs are more than {MOST_JOBS}")
    scored, jobs = {"split": values["split"], "limit": values["limit"]}, {}
    for seed, dataset, model, revision, (name, described) in product(*axes, variants):
        switches = {switch: value for switch, value in described.items() if switch != "changes"}
        network = {"dataset": dataset, "model": model, "revision": revision, "switches": switches}
        network |= {"seed": seed, "device": values["device"]}
        given = {field: value for field, value in network.items() if value not in ("", {})}
        changes = values["changes"] | described["changes"]
        variant = make_variant(study, name, values["preset"], given | changes, **scored)
        folder = variant.folder(None).name
        if folder in jobs:
            raise ValueError(f"{folder} occurs more than once: name every seed, dataset, model, and revision once")
        parameters = {"study": study, "variant": name, "preset": values["preset"], **network, **scored}
        parameters |= {**variant.config.only("dataset", "model", "revision"), "changes": changes, "varied": varied}
        gpus = _gpus(values["device"], variant.config.devices)
        jobs[folder] = Job(study, folder, values["notebook"], parameters, values["threads"], gpus)
    return list(jobs.values())


def failures(results: str | Path) -> list[dict[str, Any]]:
    """The content of failure.json, plus `folder`, of every folder under <results>/studies whose last attempt failed."""
    found = []
    for path in sorted(Path(results).glob("studies/*/*/failure.json")):
        try:
            record = {name: str(value) for name, value in read_json(path).items()}
        except ValueError as error:
            record = {"error": str(error)}
        found.append({"folder": path.parent.relative_to(results).as_posix(), **record})
    return found


def _parsed(value: Any) -> Any:
    """`value` with every text in it read as YAML: "0" becomes a number, "false" a bool; "camvid", "" stay."""
    if isinstance(value, Mapping):
        return {key: _parsed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_parsed(each) for each in value]
    return yaml.safe_load(value) if isinstance(value, str) and value else value


def _gpus(device: str, devices: int) -> int:
    """Number of GPUs that a job takes on this machine."""
    return 0 if device == "cpu" or not torch.cuda.is_available() else devices


def _check_names(where: str, given: Collection[str], known: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise StudyError(f"{where} has an unknown {what} {name!r}.{hint} Known: {', '.join(known)}")
