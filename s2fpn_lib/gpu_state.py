"""What a GPU's speed depends on besides its name: driver, clocks, power limit, as nvidia-smi states them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

# nvidia-smi's name of a property -> its column
QUERY = {
    "driver_version": "driver",
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.mem": "memory_mhz",
    "power.limit": "power_limit_w",
    "persistence_mode": "persistence",
}


def gpu_state(index: int = 0, run: Callable[[list[str]], str] | None = None) -> dict[str, Any]:
    """The columns of `QUERY` for GPU `index`, text as nvidia-smi prints it; empty where there is no nvidia-smi.

    Ask while the GPU is warm from the measurement: idle clocks say nothing. run: runs a command and gives its output.
    """
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        output = (run or _output)(command)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in output.strip().split(",")]
    return dict(zip(QUERY.values(), values, strict=True))


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
