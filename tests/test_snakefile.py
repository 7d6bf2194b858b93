"""The Snakefile run as a command: dry run, separate processes, a failing variant, a kill, a second start."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from s2fpn_lib.checkpoint import load_state
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.runs import RunDirectory, read_json
from s2fpn_lib.workbench.studies import failures, read_study

PROJECT = Path(__file__).resolve().parent.parent
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
ONE_RUN = ("--config", "seeds=[0]", "variants={full: {}}")
LONGEST = 600  # seconds; less than a minute on an idle machine

pytestmark = pytest.mark.timeout(LONGEST + 20)


@pytest.fixture(autouse=True)
def _no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path / "none"))


def start(results: Path, *words: str | Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [str(word) for word in (SNAKEMAKE, *words)],
        cwd=PROJECT,
        env={**os.environ, "S2FPN_RESULTS": str(results)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def snakemake(results: Path, *words: str | Path) -> tuple[int, str]:
    """Exit status and output."""
    process = start(results, *words)
    said = process.communicate(timeout=LONGEST)[0]
    return process.returncode, said


def test_dry_run_of_all(tmp_path):
    status, said = snakemake(tmp_path, "-n", "all", "--cores", "3")
    assert status == 0, said
    planned = {path.stem: read_study(path) for path in (PROJECT / "notebooks" / "studies").glob("*.yaml")}
    jobs = [job for study in ("ablation", "sizes", "speed") for job in planned[study]]
    assert re.search(rf"^notebook +{len(jobs)}$", said, re.MULTILINE)
    assert all(str(job.folder(tmp_path)) in said for job in jobs)
    threads = {
        study: re.search(rf"output: {planned[study][0].folder(tmp_path)}/.*?threads: (\d+)", said, re.DOTALL)[1]
        for study in ("ablation", "speed")
    }
    assert threads == {"ablation": "2", "speed": "3"}, "a measurement takes every core, so that nothing runs beside it"
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


def test_unknown_field_on_the_command_line(tmp_path):
    status, said = snakemake(tmp_path, "-n", "tiny", "--config", "variant=full")
    assert status
    assert "unknown field 'variant'. Did you mean 'variants'?" in said


def test_fields_need_to_fit_the_requested_study_alone(tmp_path):
    variants = "variants={full: {}, lite2: {changes: {model: s2fpn_lite2}}}"  # in `sizes` each network occurs twice
    status, said = snakemake(tmp_path, "-n", "tiny", "--config", variants)
    assert status == 0, said
    assert "lite2-roadscenes" in said
    status, said = snakemake(tmp_path, "-n", "sizes", "--config", variants)
    assert status
    assert "sizes.yaml: lite2-" in said
    assert "occurs more than once" in said


def test_a_second_study_names_the_process_of_the_first(tmp_path):
    with RunDirectory(tmp_path / "studies").lock():
        status, said = snakemake(tmp_path, "tiny", "--cores", "1", *ONE_RUN)
    assert status
    assert f"another study is running in {tmp_path}" in said
    assert f"process {os.getpid()}" in said
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["lock"]


def test_results_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "results").write_text("in the way")
    status, said = snakemake(tmp_path / "results", "tiny", "--cores", "1", *ONE_RUN)
    assert status
    assert f"the results folder {tmp_path / 'results'} cannot be written" in said
    assert (tmp_path / "results").read_text() == "in the way"


@pytest.mark.parametrize("name", ["default", "slurm", "kubernetes"])
def test_profiles_continue_after_failures_and_kills(name):
    profile = yaml.safe_load((PROJECT / "profiles" / name / "config.yaml").read_text())
    for option in ("keep-going", "rerun-incomplete", "nolock"):
        assert profile[option] is True
    assert profile["rerun-triggers"] == ["mtime"]
    if name == "default":
        assert profile["resources"] == ["gpu=1"]
    else:
        assert profile["executor"] == name
        assert profile["set-resources"]["notebook"]["gpu"] == 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> tuple[Path, int, str, Path]:
    """A tiny run and one that must fail, as cluster jobs: results, exit status, output, job folders."""
    folder = tmp_path_factory.mktemp("cluster")
    jobs = folder / "jobs"
    jobs.mkdir()
    submit, status = folder / "submit.sh", folder / "status.sh"
    submit.write_text(
        f"""#!/usr/bin/env bash
job=$(mktemp -d {jobs}/XXXXXX)
( setsid bash "$1" > "$job/log" 2>&1; echo $? > "$job/status" ) > /dev/null 2>&1 &
echo "$job"
"""
    )
    status.write_text(
        """#!/usr/bin/env bash
case $(cat "$1/status" 2> /dev/null) in "") echo running ;; 0) echo success ;; *) echo failed ;; esac
"""
    )
    words = ["tiny", "--executor", "cluster-generic", "--jobs", "2", "--seconds-between-status-checks", "1"]
    words += ["--cluster-generic-submit-cmd", f"bash {submit}", "--cluster-generic-status-cmd", f"bash {status}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2FPN_DATA", str(folder / "none"))
        result = snakemake(folder / "results", *words, *ONE_RUN, "datasets=[roadscenes, camvid]")
    return folder / "results", *result, jobs


def run_folder(results: Path, dataset: str = "roadscenes") -> Path:
    (found,) = (results / "studies" / "tiny").glob(f"full-{dataset}-*")
    return found


@pytest.mark.slow
def test_cluster_job_writes_a_complete_folder(cluster):
    results, _, said, jobs = cluster
    assert len(list(jobs.glob("*/status"))) == 2, said
    folder = run_folder(results)
    assert read_json(folder / "done.json")["notebook"] == "20_ablation"
    assert read_json(folder / "run" / "result.json")["stopped_by"] == "epochs"
    assert read_json(folder / "run" / "environment.json")["threads"] == 1
    provenance = Evaluation.load(folder / "evaluation.json").provenance
    assert (provenance["study"], provenance["variant"], provenance["seed"]) == ("tiny", "full", 0)
    record = read_json(folder / "variant.json")
    assert record["recipe"] == provenance["recipe"]
    assert folder.name.endswith(record["hash"])
    assert (folder / "predictions.png").stat().st_size > 1000


@pytest.mark.slow
def test_failed_variant_is_listed_and_the_others_finish(cluster):
    results, status, said, _ = cluster
    assert status
    assert "1 notebooks of the studies failed; the others are not affected" in said
    folder = run_folder(results, "camvid")
    (failure,) = failures(results)
    assert failure["folder"] == f"studies/tiny/{folder.name}"
    assert failure["cell"] == "trained = {}"
    assert "DatasetNotFound: camvid was not found" in failure["error"]
    listing = said[said.index("1 notebooks of the studies failed") :]
    assert f"20_ablation.ipynb, cell: {failure['cell']}" in listing
    assert "DatasetNotFound" in listing
    assert f"the notebook as far as it ran: {failure['executed']}" in listing
    assert Path(failure["executed"]) == folder / "20_ablation.ipynb"
    assert "DatasetNotFound" in Path(failure["executed"]).read_text()
    assert (run_folder(results) / "done.json").exists()


def until(process: subprocess.Popen, condition) -> None:
    """Waits until a running study fulfils a condition."""
    limit = time.monotonic() + LONGEST
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_a_study_terminated_in_a_training_and_killed_between_two_notebooks_loses_nothing(cluster, tmp_path):
    reference = run_folder(cluster[0])
    two_runs = ("tiny", "--cores", "1", "--config", "seeds=[0, 1]", "variants={full: {}}")

    process = start(tmp_path, *two_runs, start_new_session=True)
    until(process, lambda: list(tmp_path.glob("studies/tiny/*/run/last.pt")))
    (state,) = tmp_path.glob("studies/tiny/*/run/last.pt")
    written = state.stat().st_mtime_ns
    process.terminate()  # Snakemake alone, not its process group
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "Will exit after finishing currently running jobs" in said
    first = state.parent.parent
    assert not (first / "run" / "result.json").exists(), "the signal came after the training"
    assert state.stat().st_mtime_ns > written
    steps = load_state(state)["step"]

    process = start(tmp_path, *two_runs, start_new_session=True)
    until(process, lambda: len(list(tmp_path.glob("studies/tiny/*/lock"))) == 2)  # the second notebook starts
    runpy.run_path(str(PROJECT / "scripts" / "kill_study.py"))["kill"](process, kernels=True)
    process.communicate()
    environment = read_json(first / "run" / "environment.json")
    assert environment["resumed_at_step"] == steps > 0
    assert len(environment["earlier_starts"]) == 1
    (done,) = (path.parent for path in tmp_path.glob("studies/tiny/*/done.json"))
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}

    status, said = snakemake(tmp_path, *two_runs)
    assert status == 0, said
    assert len(list(tmp_path.glob("studies/tiny/*/done.json"))) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (same,) = tmp_path.glob("studies/tiny/*-s0-*")
    ours, theirs = (load_file(each / "run" / "last.safetensors") for each in (same, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours.keys() == theirs.keys()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}
    status, said = snakemake(tmp_path, *two_runs)
    assert (status, "Nothing to be done" in said) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
