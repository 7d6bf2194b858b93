"""Looks up the installed packages in a database of known vulnerabilities; `make check` and `make audit` run it.

    .venv/bin/python scripts/audit.py
    .venv/bin/python scripts/audit.py --vulnerability-service osv     # options of pip-audit, which does the work

The exit status is 1 if a package has a known vulnerability, and if pip-audit fails. Without a connection to the
database, one line says that nothing was audited, and the exit status is 0: pip-audit alone exits with 1 in both cases.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Advisories that don't concern this project: their id and the reason. `make check` passes with them.
ACCEPTED: dict[str, str] = {}

CONNECT_SECONDS, WHOLE_SECONDS = 5, 600  # until an answer to one request; for all of them
UNREACHABLE = "not audited: the vulnerability service cannot be reached ({})"
# One of the last two lines of pip-audit's output, a traceback or not, where a request got no answer of the service
NO_CONNECTION = re.compile(
    r"(requests|urllib3)\.exceptions\.|\S*\b(ConnectionError|ServiceError)\b|.*Could not connect "
)
OPTIONS = ("--skip-editable", "--progress-spinner=off", f"--timeout={CONNECT_SECONDS}", "--format=json")


def audit(command: Sequence[str]) -> int:
    """Runs pip-audit, the command with its options, prints what it found, and returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        ignored = [f"--ignore-vuln={advisory}" for advisory in ACCEPTED]
        try:
            done = subprocess.run(
                [*command, *OPTIONS, *ignored, f"--output={report}"],
                capture_output=True,
                text=True,
                timeout=WHOLE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            print(UNREACHABLE.format(f"pip-audit had not ended after {WHOLE_SECONDS} seconds"))
            return 0
        if not report.exists():
            return _without_report(done.stdout + done.stderr)
        packages = json.loads(report.read_text())["dependencies"]
    skipped = [each["skip_reason"] for each in packages if "editable" not in each.get("skip_reason", "editable")]
    audited = [each for each in packages if "skip_reason" not in each]
    if not audited:
        print(UNREACHABLE.format(f"it knows none of the {len(skipped)} installed packages, as a mirror doesn't"))
        return 0
    for reason in skipped:
        print(f"not audited: {reason}")
    vulnerable = 0
    for package in audited:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"])
            names = ", ".join([found["id"], *found.get("aliases", [])])
            advice = (
                f"fixed in {fixed}: pip install --upgrade {package['name']}" if fixed else "no version fixes it yet"
            )
            print(f"{package['name']} {package['version']} has a known vulnerability, {names}; {advice}")
            vulnerable += 1
    accepted = f", accepted: {len(ACCEPTED)}" if ACCEPTED else ""
    print(f"packages audited: {len(audited)}, known vulnerabilities: {vulnerable}{accepted}")
    return 1 if vulnerable else 0


def _without_report(output: str) -> int:
    lines = output.strip().splitlines()
    for line in lines[-2:]:
        if NO_CONNECTION.match(line):
            print(UNREACHABLE.format(line.rpartition("Caused by ")[2][:300]))
            return 0
    print(*lines, "pip-audit failed, and the packages are not audited", sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(audit([sys.executable, "-m", "pip_audit", *sys.argv[1:]]))
