# Studies: which notebooks must run. s2fpn_lib/workbench/run_notebook.py runs one of them.
#
#   snakemake -n ablation            what would run
#   snakemake ablation --cores 2     runs it; after any interruption the same command continues
#   snakemake all --cores 16 --resources gpu=4
#
# Each file notebooks/studies/<name>.yaml is a target <name>. `report` makes the report of the existing results, `all`
# runs ablation, sizes, and speed and then the report. Fields of the studies can be changed on the command line, e.g.
# --config seeds=[0] datasets=[roadscenes]. Another configuration runs in its own folders.
import contextlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path

PROJECT = Path(workflow.basedir)
sys.path.insert(0, str(PROJECT))

import psutil

from s2fpn_lib.workbench import studies
from s2fpn_lib.runs import RunDirectory, RunLocked, results_root

RESULTS = results_root().resolve()
if RESULTS.exists() and not RESULTS.is_dir():  # Snakemake fails on it before onstart, with a less clear error
    raise WorkflowError(f"the results folder {RESULTS} cannot be written: there is a file of that name")
FILES = {path.stem: path for path in sorted((PROJECT / "notebooks" / "studies").glob("*.yaml"))}
JOBS = {}  # {study: {name: job}} of the studies that this command needs
RUN = f"cd {shlex.quote(str(PROJECT))} && {shlex.quote(sys.executable)} -m s2fpn_lib.workbench.run_notebook"
REPORT = RUN + " 90_report {params.folder:q} --parameters {params.parameters:q} --html {params.page:q}"
REPORT_PARAMETERS = json.dumps({"results": str(RESULTS)})
HELD = contextlib.ExitStack()  # holds the lock until this process ends


# Environment variables that jobs on other machines need, too
envvars:
    *[name for name in ("S2FPN_RESULTS", "S2FPN_DATA", "S2FPN_CACHE") if name in os.environ],


def jobs(study):
    """{name: job} of a study, which is read when it is needed: the fields may fit no other one."""
    if study not in JOBS:
        JOBS[study] = {job.name: job for job in studies.read_study(FILES[study], config)}
    return JOBS[study]


def job_of(wildcards):
    return jobs(wildcards.study)[wildcards.job]


def done(*names):
    return lambda wildcards: [job.folder(RESULTS) / "done.json" for name in names for job in jobs(name).values()]


wildcard_constraints:
    study="[^/]+",
    job="[^/]+",


rule all:
    input:
        RESULTS / "studies" / "report" / "done.json",


for name in FILES:

    rule:
        name:
            name
        input:
            done(name),


# A training's folder is not an output: Snakemake removes the outputs of an interrupted job, but a training resumes.
rule notebook:
    output:
        RESULTS / "studies" / "{study}" / "{job}" / "done.json",
    params:
        notebook=lambda wildcards: job_of(wildcards).notebook,
        folder=lambda wildcards: job_of(wildcards).folder(RESULTS),
        parameters=lambda wildcards: json.dumps(job_of(wildcards).arguments(RESULTS)),
        fresh=lambda wildcards: "" if job_of(wildcards).threads else "--fresh",
    threads: lambda wildcards: job_of(wildcards).threads or workflow.cores or 16
    resources:
        gpu=lambda wildcards: job_of(wildcards).gpus,
    shell:
        RUN + " {params.notebook} {params.folder:q} --parameters {params.parameters:q} {params.fresh}"
        " --threads {threads} --gpus {resources.gpu}"


rule paper:
    input:
        done("ablation", "sizes", "speed"),
    output:
        RESULTS / "studies" / "report" / "done.json",
    params:
        folder=RESULTS / "studies" / "report",
        parameters=REPORT_PARAMETERS,
        page=RESULTS / "report.html",
    shell:
        REPORT


# Always runs
rule report:
    params:
        folder=RESULTS / "studies" / "report",
        parameters=REPORT_PARAMETERS,
        page=RESULTS / "report.html",
    shell:
        REPORT


# Snakemake's own lock outlives a killed Snakemake, so the profile turns it off. This lock ends with its process.
onstart:
    try:
        HELD.enter_context(RunDirectory(RESULTS / "studies").lock())
    except RunLocked as locked:
        raise WorkflowError(f"another study is running in {RESULTS}: {locked}")
    except OSError as error:
        raise WorkflowError(f"the results folder {RESULTS} cannot be written: {error}")
    start_no_jobs = signal.getsignal(signal.SIGTERM)

    def stop(*received):
        """Stops the notebooks of this machine, which save their trainings; Snakemake alone would wait for their end."""
        if callable(start_no_jobs):
            start_no_jobs(*received)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    signal.signal(signal.SIGTERM, stop)


onerror:
    planned = {f"studies/{study}/{name}" for study, known in JOBS.items() for name in known}
    failed = [each for each in studies.failures(RESULTS) if each["folder"] in planned]
    if failed:
        print(f"{len(failed)} notebooks of the studies failed; the others are not affected:", file=sys.stderr)
    for each in failed:
        place = f"  {each['folder']}\n    {each['notebook']}, cell: {each['cell']}\n    {each['error']}"
        executed = each.get("executed") or "none"
        print(f"{place}\n    the notebook as far as it ran: {executed}", file=sys.stderr)
    print("The same command tries again; `snakemake report` makes the report of the existing results.", file=sys.stderr)
