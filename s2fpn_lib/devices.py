"""Which device a computation runs on, and in which precision it is fast there."""

import torch

# What autocast is told for the precisions that configurations and notebooks name
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1"); "auto" is CUDA where there is one, else the CPU.

    local_rank: which of this node's processes asks; each gets the GPU of that number.

    Raises ValueError for a device that torch does not see, or that several processes cannot share.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'device is {name!r}; use "auto", "cpu", "cuda" or "cuda:1"') from error
    if local_rank and device.type == "cuda":
        if device.index is not None:
            raise ValueError(f'device is {name!r}, one GPU for several processes; use "cuda", which gives each its own')
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{local_rank + 1} processes on this node need as many GPUs, but torch sees "
                f'{torch.cuda.device_count()}: lower devices, or use device="cpu"'
            )
        return torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; use "auto"')
    return device


def choose_amp(amp: str, device: torch.device) -> str | None:
    """The precision of autocast, "bf16", "fp16" or None (float32), for a training run's `amp`.

    "auto" is bf16 where the device multiplies bf16 matrices in hardware (Ampere and later; CPUs with AMX or
    AVX512-BF16), else fp16 on CUDA and float32 on a CPU, which would only emulate it, slowly.
    """
    if amp != "auto":
        return None if amp == "off" else amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bf16"
    return None
