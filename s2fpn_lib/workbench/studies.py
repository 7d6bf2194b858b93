"""Studies: many notebooks run with one description. A YAML file becomes jobs, each with a folder of its own.

    jobs = read_study("notebooks/studies/ablation.yaml")

What must run is Snakemake's business (Snakefile), how a notebook runs `s2fpn_lib.workbench.run_notebook`'s. Here are only names:

    <results>/studies/<study>/<variant>-<dataset>-<model>-<revision>-s<seed>-<hash>/
        variant.json       study, variant, dataset, model, revision, seed, switches, preset, recipe (hash of the whole
                           recipe), split, limit (images scored, 0: all), hash (the folder's)
        run/               the training run: config.json, metrics.jsonl, result.json, ...; last.pt until it is finished
        evaluation.json    the scores; its provenance is that of 11_evaluate (model, revision, switches, seed,
                           checkpoint_rule, pretraining, recipe, git_sha, ...) with the keys "study" and "variant"
        predictions.png, 20_ablation.ipynb (as executed)
        failure.json       while the last attempt failed: notebook, cell, error, time, and the study's names
        done.json          when the notebook has finished; the only file that Snakemake knows

The hash is of what decides the numbers, so that a changed configuration gets a new folder and a finished one stays.
A measuring study (12_speed) has one folder, <results>/studies/<study>/<notebook>-<hash>/, with the same last four.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import DatasetNotFound, open_dataset
from s2fpn_lib.model import Switches
from s2fpn_lib.runs import config_hash, read_json, results_root

# The fields of a study file and their defaults; None: must be given.
TRAINING: dict[str, Any] = {
    "question": None,  # what the study answers
    "notebook": "20_ablation",
    "threads": 1,  # of a job, at most what `snakemake --cores` allows
    "device": "auto",  # cpu, cuda, or auto: cuda where there is one
    "preset": None,  # of TrainConfig
    "changes": {},  # other fields of TrainConfig
    "datasets": ["auto"],  # auto: CamVid where found, else RoadScenes
    "models": ["s2fpn18"],
    "revisions": ["v1"],
    "seeds": [0, 1, 2],
    "variants": {"full": {}},  # name: switches, and under "changes" fields of TrainConfig
    "split": "val",  # what is scored
    "limit": 0,  # images scored, evenly spread; 0: all
}
MEASURING: dict[str, Any] = {
    "question": None,
    "notebook": None,
    "parameters": {},  # of the notebook
}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class StudyError(ValueError):
    """A study file that cannot be carried out; the message names file and field."""


@dataclass(frozen=True)
class Job:
    """One notebook run of a study. threads None: it measures time, on all cores, so that nothing runs beside it."""

    study: str
    name: str
    notebook: str
    parameters: dict[str, Any]
    threads: int | None
    gpus: int

    def folder(self, results: str | Path | None = None) -> Path:
        """Where it keeps everything, under `results` (None: `results_root()`)."""
        return _folder(results, self.study, self.name)

    def arguments(self, results: str | Path) -> dict[str, Any]:
        """The notebook's parameters with its `results`: a variant finds its folder itself, a measurement is told it."""
        return {**self.parameters, "results": str(results if self.threads else self.folder(results))}


@dataclass(frozen=True)
class Variant:
    """One training and its score: what 20_ablation does, and the name of its folder."""

    study: str
    name: str
    preset: str
    config: TrainConfig
    split: str = "val"
    limit: int = 0

    @property
    def hash(self) -> str:
        """Of what differs from TrainConfig's defaults: a field that a later version adds changes no folder's name."""
        defaults = TrainConfig().recipe()
        recipe = {name: value for name, value in self.config.recipe().items() if value != defaults[name]}
        return config_hash({**recipe, "split": self.split, "limit": self.limit})

    @property
    def folder_name(self) -> str:
        c = self.config
        return f"{self.name}-{c.dataset}-{c.model}-{c.revision}-s{c.seed}-{self.hash}"

    def folder(self, results: str | Path | None = None) -> Path:
        """Where it keeps everything, under `results` (None: `results_root()`)."""
        return _folder(results, self.study, self.folder_name)

    def record(self) -> dict[str, Any]:
        """What variant.json holds."""
        c = self.config
        return {
            "study": self.study,
            "variant": self.name,
            "dataset": c.dataset,
            "model": c.model,
            "revision": c.revision,
            "seed": c.seed,
            "switches": c.switches,
            "preset": self.preset,
            "recipe": config_hash(c.recipe()),
            "split": self.split,
            "limit": self.limit,
            "hash": self.hash,
        }


def make_variant(
    study: str,
    name: str,
    preset: str,
    changes: Mapping[str, Any],
    *,
    split: str = "val",
    limit: int = 0,
) -> Variant:
    """The variant with its dataset resolved: "auto" would name another folder once CamVid is installed.

    Raises StudyError for names that make no folder or switches that do not exist, ValueError and TypeError as
    `TrainConfig` does.
    """
    for what, value in {"study": study, "variant": name}.items():
        if not NAME.fullmatch(value):
            raise StudyError(f"{what} {value!r}: lower-case letters, digits, - and _ make a folder's name")
    _check_names(f"variant {name}", changes.get("switches", {}), [each.name for each in fields(Switches)], "switch")
    config = TrainConfig.preset(preset, **changes)
    return Variant(study, name, preset, config.replace(dataset=_resolved(config)), split, limit)


def read_studies(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, list[Job]]:
    """{name: jobs} of every study file in a folder; raises StudyError.

    overrides: as in `read_study`, also as `snakemake --config` hands them over: lists and mappings of texts.
    """
    overrides = _as_yaml_reads(overrides or {})
    _check_names("the command line", overrides, {**TRAINING, **MEASURING}, "field")
    return {path.stem: read_study(path, overrides) for path in sorted(Path(folder).glob("*.yaml"))}


def read_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> list[Job]:
    """The jobs of a study file: all variants of a seed, then of the next seed.

    overrides: fields that replace the file's where its kind of study has them, e.g. {"seeds": [0]}. Raises StudyError.
    """
    path = Path(path)
    try:
        given = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is no YAML: {error}") from error
    if not isinstance(given, dict):
        raise StudyError(f"{path} holds no fields; a study has {', '.join(TRAINING)}")
    known = MEASURING if "parameters" in given else TRAINING
    given |= {name: value for name, value in (overrides or {}).items() if name in known}
    _check_names(str(path), given, known, "field")
    missing = [name for name, default in known.items() if default is None and not given.get(name)]
    if missing:
        raise StudyError(f"{path} does not say {', '.join(missing)}")
    values = {**known, **given}
    for name, default in known.items():
        if default is not None and not isinstance(values[name], type(default)):
            raise StudyError(f"{path}: {name} is {given[name]!r}; it takes a {type(default).__name__}")
    try:
        return _measuring_jobs(path.stem, values) if known is MEASURING else _training_jobs(path.stem, values)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{path}: {error}") from error


def _measuring_jobs(study: str, values: Mapping[str, Any]) -> list[Job]:
    notebook, parameters = values["notebook"], values["parameters"]
    name = f"{notebook}-{config_hash(parameters)}"
    return [Job(study, name, notebook, parameters, None, _gpus(parameters.get("device", "auto"), 1))]


def _training_jobs(study: str, values: Mapping[str, Any]) -> list[Job]:
    jobs = []
    axes = [values[each] for each in ("seeds", "datasets", "models", "revisions")]
    variants = {name: _variant_parts(name, described) for name, described in values["variants"].items()}
    varied = sorted({field for _, own in variants.values() for field in own})
    for (seed, dataset, model, revision), (name, (switches, own)) in product(product(*axes), variants.items()):
        parameters = {
            "study": study,
            "variant": name,
            "preset": values["preset"],
            "dataset": dataset,
            "model": model,
            "revision": revision,
            "switches": switches,
            "seed": seed,
            "device": values["device"],
            "split": values["split"],
            "limit": values["limit"],
            "changes": values["changes"] | own,
            "varied": varied,
        }
        changes = {key: parameters[key] for key in ("dataset", "model", "revision", "switches", "seed", "device")}
        changes |= parameters["changes"]
        variant = make_variant(study, name, values["preset"], changes, split=values["split"], limit=values["limit"])
        parameters["dataset"] = variant.config.dataset
        gpus = _gpus(values["device"], variant.config.devices)
        jobs.append(Job(study, variant.folder_name, values["notebook"], parameters, values["threads"], gpus))
    twice = {job.name for job in jobs if sum(other.name == job.name for other in jobs) > 1}
    if twice:
        raise ValueError(f"{min(twice)} occurs more than once: name every seed, dataset, model and revision once")
    return jobs


def _variant_parts(name: str, described: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(switches, changes of the recipe) of a variant as the study file describes it."""
    if isinstance(described, Mapping) and isinstance(own := described.get("changes", {}), Mapping):
        return {switch: value for switch, value in described.items() if switch != "changes"}, dict(own)
    raise StudyError(f"variant {name} is {described!r}; it takes switches, and fields of TrainConfig under changes")


def failures(results: str | Path | None = None) -> list[dict[str, Any]]:
    """What failure.json says in every folder under <results>/studies whose last attempt failed, with its `folder`."""
    root = Path(results or results_root())
    found = sorted((root / "studies").glob("*/*/failure.json"))
    return [{"folder": path.parent.relative_to(root).as_posix(), **read_json(path)} for path in found]


def failure_listing(failed: list[dict[str, Any]]) -> str:
    """Failures as the lines that end a study: folder, notebook and cell, error."""
    lines = [f"{len(failed)} notebooks of the studies failed; the others are not affected:"]
    for each in failed:
        lines += [f"  {each['folder']}", f"    {each['notebook']}, cell: {each['cell']}", f"    {each['error']}"]
    return "\n".join(lines)


def _folder(results: str | Path | None, study: str, name: str) -> Path:
    return Path(results or results_root()) / "studies" / study / name


def _resolved(config: TrainConfig) -> str:
    """What "auto" means here, by the split that is trained on."""
    if config.dataset != "auto":
        return config.dataset
    try:
        return open_dataset("camvid", config.data_root or None, config.train_split, cache=False).name
    except DatasetNotFound:
        return "roadscenes"


def _as_yaml_reads(value: Any) -> Any:
    """`value` with every text in it read as YAML: "0" is a number, "false" a bool, "camvid" stays text."""
    if isinstance(value, Mapping):
        return {key: _as_yaml_reads(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_yaml_reads(each) for each in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def _gpus(device: str, devices: int) -> int:
    """GPUs that a job takes on this machine; a cluster's profile sets its own."""
    return 0 if device == "cpu" or not torch.cuda.is_available() else devices


def _check_names(where: str, given: Mapping[str, Any], known: Any, what: str) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), list(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise StudyError(f"{where} has an unknown {what} {name!r}.{hint} Known: {', '.join(known)}")
