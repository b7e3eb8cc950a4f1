"""Where bfloat16 is worth it.

A CPU with instructions for it multiplies bfloat16 faster than fp32, in half the memory. One without computes it all the
same, with others: a 5³ convolution and its gradient took 54 times as long as in fp32 with AVX2, 2.5 times with AVX-512,
and 0.75 times with AVX512_BF16 (one core, PyTorch 2.13, oneDNN held to those instructions by ONEDNN_MAX_CPU_ISA).
"""

import warnings
from collections.abc import Set
from pathlib import Path

import torch

# As Linux names them in /proc/cpuinfo: on x86 AVX512_BF16 and AMX, on Arm BF16.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_flags(cpuinfo: str | Path = "/proc/cpuinfo") -> set[str]:
    """Return what instructions the first core has, in Linux's words; nothing where the system does not say."""
    path = Path(cpuinfo)
    for line in path.read_text().splitlines() if path.is_file() else []:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, Arm
            return set(words.split())
    return set()


def bfloat16_is_fast(device: torch.device | str, flags: Set[str] | None = None) -> bool:
    """Return whether a CPU's instructions are known to include those for bfloat16; GPUs are taken as they are.

    Parameters
    ----------
    device : device
    flags : set of str
        Instructions of the CPU; `cpu_flags` where left out.
    """
    return torch.device(device).type != "cpu" or bool(BFLOAT16_FLAGS & (cpu_flags() if flags is None else flags))


def bfloat16_where_fast(wanted: bool, device: torch.device | str, flags: Set[str] | None = None) -> bool:
    """Return whether bfloat16 is wanted and fast; warn where it is wanted and slow. See `bfloat16_is_fast`."""
    if wanted and not bfloat16_is_fast(device, flags):
        warnings.warn(
            "amp: this CPU has no instructions for bfloat16 (AVX512_BF16, AMX, Arm's BF16) and would take far "
            "longer, so it computes in fp32",
            stacklevel=2,
        )
        return False
    return wanted
