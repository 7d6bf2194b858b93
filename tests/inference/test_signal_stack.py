"""Signals are handled after OpenVINO's models were created and deleted, in any order."""

import subprocess
import sys
import textwrap

import pytest

CREATE_AND_DELETE_MODELS = """
    import faulthandler, gc, signal, subprocess
    import torch
    from s2fpn_lib.inference.runtimes import RuntimeRunner

    faulthandler.enable()  # gives the thread a signal stack, as pytest does
    signal.signal(signal.SIGCHLD, lambda *_: print("handled", flush=True))
    network, example = torch.nn.Conv2d(3, 3, 3), torch.rand(1, 3, 32, 32)
    network.mean = network.std = torch.zeros(3)
    models = []
    for precision in ("float32", "bf16", "float32"):
        try:
            models.append(RuntimeRunner(network, example, "openvino", precision, 1.0))
        except ValueError as error:  # a processor without bfloat16
            print(error)
    while models:
        models.pop(0)(example)
        gc.collect()
    subprocess.run(["true"], check=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the plugin installs signal stacks on Linux")
def test_signal_after_models_were_deleted_in_order_of_creation():
    script = textwrap.dedent(CREATE_AND_DELETE_MODELS)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "handled" in result.stdout
