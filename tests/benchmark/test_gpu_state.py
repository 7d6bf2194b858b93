import subprocess

from s2fpn_lib.benchmark.timing import QUERY, gpu_state


def test_columns_as_nvidia_smi_prints_them():
    asked = []

    def run(command):
        asked.extend(command)
        return "550.54.15, 1980, 1980, 2619, 700.00, Enabled\n"

    assert gpu_state(1, run) == {
        "driver": "550.54.15",
        "sm_mhz": "1980",
        "sm_max_mhz": "1980",
        "memory_mhz": "2619",
        "power_limit_w": "700.00",
        "persistence": "Enabled",
    }
    assert "--id=1" in asked
    assert any(all(name in word for name in QUERY) for word in asked)


def test_without_nvidia_smi_there_are_no_columns():
    def missing(command):
        raise FileNotFoundError(command[0])

    def failing(command):
        raise subprocess.CalledProcessError(9, command)

    assert gpu_state(run=missing) == gpu_state(run=failing) == {}
