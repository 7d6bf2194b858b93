"""scripts/audit.py with stand-ins for pip-audit, and with pip-audit itself against a service of this test."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from s2fpn_lib.runs import PROJECT
from tests.loading import load_file

CLEAN = {"name": "numpy", "version": "2.0.0", "vulns": []}
VULNERABLE = {
    "name": "pillow",
    "version": "10.0.0",
    "vulns": [{"id": "PYSEC-2023-175", "aliases": ["CVE-2023-4863"], "fix_versions": ["10.0.1"], "description": "x"}],
}
OWN = {"name": "s2fpn-workbench", "skip_reason": "distribution marked as editable"}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.9+cpu)"}
TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1\n"
NO_ADDRESS = (
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='pypi.org', port=443): Max retries exceeded "
)
NO_ADDRESS += "(Caused by NameResolutionError('Failed to resolve pypi.org'))"
TIMEOUT = "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\n"
TIMEOUT += "ERROR:pip_audit._cli:Tip: your network may be blocking this service. Try another service with `-s SERVICE`"


@pytest.fixture
def script():
    return load_file(PROJECT / "scripts" / "audit.py")


@pytest.fixture
def audit(script, tmp_path, capsys):
    """Runs the script with a program that writes a report, or prints text and writes none; status and output."""

    def run(packages=None, text="", status=1):
        report, program = tmp_path / "found.json", tmp_path / "pip-audit"
        report.write_text(json.dumps({"dependencies": packages, "fixes": []}))
        (tmp_path / "text").write_text(text)
        write = f"cp '{report}' \"${{last#--output=}}\"" if packages else ""
        program.write_text(
            f"#!/bin/sh\necho \"$@\" > '{tmp_path}/arguments'\nfor last; do :; done\n{write}\n"
            f"cat '{tmp_path}/text' >&2\nexit {status}\n"
        )
        program.chmod(0o755)
        return script.audit([program]), capsys.readouterr().out

    return run


def test_a_vulnerability_fails_and_names_package_version_advisory_and_remedy(audit):
    status, output = audit([CLEAN, VULNERABLE, OWN])
    assert status == 1
    assert output.splitlines() == [
        "pillow 10.0.0 has a known vulnerability, PYSEC-2023-175, CVE-2023-4863; fixed in 10.0.1: "
        "pip install --upgrade pillow",
        "packages audited: 2, known vulnerabilities: 1",
    ]


def test_a_vulnerability_without_a_fixed_version(audit):
    without = {**VULNERABLE, "vulns": [{**VULNERABLE["vulns"][0], "fix_versions": []}]}
    assert "CVE-2023-4863; no version fixes it yet" in audit([without])[1]


def test_clean_packages_pass_and_what_was_not_audited_is_named(audit):
    assert audit([CLEAN, OWN], status=0) == (0, "packages audited: 1, known vulnerabilities: 0\n")
    status, output = audit([CLEAN, UNKNOWN], status=0)
    assert status == 0
    assert output.startswith("not audited: Dependency not found on PyPI and could not be audited: torch (2.9+cpu)\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TRACEBACK + NO_ADDRESS, "NameResolutionError('Failed to resolve pypi.org'))"),
        (TRACEBACK + "requests.exceptions.ReadTimeout: read timed out", "ReadTimeout: read timed out"),
        (TIMEOUT, "Could not connect to PyPI's vulnerability feed"),
        (TRACEBACK + "pip_audit._service.interface.ServiceError", "ServiceError"),  # an HTTP status such as 503
    ],
)
def test_an_unreachable_service_passes_with_one_line(audit, text, reason):
    status, output = audit(text=text)
    assert status == 0
    assert output.startswith("not audited: the vulnerability service cannot be reached (")
    assert output.endswith(f"{reason})\n")
    assert output.count("\n") == 1


def test_a_mirror_without_the_service_is_no_audit(audit):
    """It answers every request with 404, which pip-audit calls "No known vulnerabilities found"."""
    status, output = audit([UNKNOWN, OWN], text="No known vulnerabilities found", status=0)
    assert (status, output.count("\n")) == (0, 1)
    assert "not audited: the vulnerability service cannot be reached (it knows none of the 1 installed" in output


def test_another_failure_fails(audit):
    status, output = audit(text=TRACEBACK + "KeyError: 'requests.exceptions'")
    assert status == 1
    assert "KeyError" in output
    assert audit(text="", status=3)[0] == 1


def test_a_service_that_never_answers(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "WHOLE_SECONDS", 0.1)
    program = tmp_path / "pip-audit"
    program.write_text("#!/bin/sh\nexec sleep 20\n")
    program.chmod(0o755)
    assert script.audit([program]) == 0
    assert "had not ended after 0.1 seconds" in capsys.readouterr().out


def test_accepted_advisories(script, audit, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "ACCEPTED", {"PYSEC-1": "the function is not called here"})
    assert audit([CLEAN], status=0) == (0, "packages audited: 1, known vulnerabilities: 0, accepted: 1\n")
    arguments = (tmp_path / "arguments").read_text().split()
    assert {"--ignore-vuln=PYSEC-1", "--skip-editable", "--timeout=5"} <= set(arguments)


def test_pip_audit_itself(script, tmp_path, capsys):
    """A package folder with one package, and a service that knows an advisory about it."""
    advisory = {"id": "GHSA-1", "aliases": ["CVE-1"], "summary": "x", "modified": "2024-01-01T00:00:00Z"}
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.5"}]}]
    advisory["affected"] = [{"package": {"name": "thing", "ecosystem": "PyPI"}, "ranges": ranges}]
    asked = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"vulns": [advisory]}).encode())

        def log_message(self, *_):
            pass

    package = tmp_path / "installed" / "thing-2.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 2.0\n")
    (package / "RECORD").write_text("")
    (package / "INSTALLER").write_text("pip\n")
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/query"
        options = ["--path", str(package.parent), "--vulnerability-service", "osv", "--cache-dir", str(tmp_path / "c")]
        command = [sys.executable, "-m", "pip_audit", *options, "--osv-url", url]
        status = script.audit(command)
        server.shutdown()
    assert [query["package"]["name"] for query in asked] == ["thing"]
    expected = "thing 2.0 has a known vulnerability, CVE-1, GHSA-1; fixed in 2.5: pip install --upgrade thing"
    assert (status, capsys.readouterr().out.splitlines()[0]) == (1, expected)
    assert script.audit(command) == 0  # the service has gone
    assert "not audited: the vulnerability service cannot be reached (" in capsys.readouterr().out
