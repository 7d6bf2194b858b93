"""Seven kills, one at each point where a run could lose something; scripts/kill_runs.py makes more at each."""

from pathlib import Path

import pytest

from tests.loading import load_file

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "kill_runs.py"
NUMBERS = {"start": 2, "epoch": 3, "write": 2, "renames": 1, "edge": 1, "validation": 2, "evaluation": 1}


@pytest.fixture(scope="module")
def script():
    module = load_file(SCRIPT)
    yield module
    module.server().communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)  # nine processes; half a minute on an idle machine
def test_a_run_killed_at_every_point_ends_with_the_same_bits(script, tmp_path):
    """The eighth point, between two notebooks of a study, is in test_snakefile.py."""
    assert script.start(tmp_path / "whole", "0 workers")[0] == 0
    steps = []
    assert [*NUMBERS] == [*script.POINTS]
    for place, (point, number) in enumerate(NUMBERS.items()):
        setting = "2 workers" if place % 2 else "0 workers"  # a resumed run may use others
        line, faults = script.killed(tmp_path / "killed", setting, point, number)
        assert not faults, line
        steps.append(script.steps(tmp_path / "killed"))
    # a state after every step but the fifth: validation comes first. In the third step, in the write of the fourth
    # state, between its renames, after the fifth step, and in its validation
    assert steps == [0, 2, 3, 3, 4, 4, 15]
    status, said = script.start(tmp_path / "killed", "0 workers")
    assert status == 0, said
    assert script.differences(tmp_path / "killed", tmp_path / "whole") == []


def test_differences_are_found(script, tmp_path, monkeypatch):
    states = [{"step": 3, "model": {"w": 0.5}, "seconds": 1.0, "this_epoch": [0.1, 0.2]} for _ in range(2)]
    states[1] |= {"model": {"w": 0.25}, "seconds": 2.0}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("last.safetensors", "best.safetensors"):
            (tmp_path / name / file).write_text(name if file == "best.safetensors" else "equal")
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"loss": 1.5, "seconds": {len(name)}.{ord(name)}}}\n')
        (tmp_path / name / "result.json").write_text('{"steps": 3}')
        (tmp_path / name / "evaluation.json").write_text(f'{{"matrix": [["{name}"]]}}')
    (tmp_path / "a" / ".last.pt.1.tmp").touch()
    monkeypatch.setattr(script, "load_state", lambda path: states[path.parent.name == "b"])
    found = script.differences(tmp_path / "a", tmp_path / "b")
    assert [each.split(":")[0] for each in found[:3]] == [
        "best.safetensors has other bytes",
        "the states differ in .model.w",
        "evaluation.json",
    ]
    assert "left over" in found[3]
    assert len(found) == 4
