"""Signals are handled after OpenVINO's models have come and gone, in whatever order."""

import subprocess
import sys
import textwrap

import pytest

MODELS_COME_AND_GO = """
    import faulthandler, gc, signal, subprocess
    import torch
    from s2fpn_lib.inference import optimize_for_inference
    from s2fpn_lib.model import build_model

    faulthandler.enable()  # gives the thread a signal stack, as pytest and many notebooks do
    signal.signal(signal.SIGCHLD, lambda *_: print("handled", flush=True))
    network, example = build_model("s2fpn_lite", num_classes=3), torch.rand(1, 3, 32, 32)
    models = []
    for precision in 2 * ("float32", "bf16", "int8"):
        try:
            models.append(optimize_for_inference(network, example, "openvino", precision=precision))
        except ValueError as error:  # a processor without bfloat16
            print(error)
    while models:
        models.pop(0)(example)
        gc.collect()
    subprocess.run(["true"], check=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the plugin does so on Linux")
def test_a_signal_after_models_were_dropped_in_the_order_of_their_making():
    script = textwrap.dedent(MODELS_COME_AND_GO)
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "handled" in told.stdout
