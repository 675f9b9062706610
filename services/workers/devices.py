"""What a worker's machine has, as the machine itself says it.

Source: NVML API reference, `nvmlDeviceGetMemoryInfo` and `nvmlDeviceGetName`; cgroup v2,
`memory.max`; proc(5), `MemTotal`.
"""

import ctypes
import os
from pathlib import Path

from events.models import Device, Machine


_NAME_BYTES = 96
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")


_Memory = ctypes.c_ulonglong * 3
"""Total, free and used bytes."""


def machine() -> Machine:
    """Return what this process may use; measured anew each time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(cores=cores or 1, memory_bytes=memory_bytes(), devices=gpus())


def memory_bytes() -> int:
    """Return the memory that this process may take: the machine's, or less in a container."""
    total = 0
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                total = int(line.split()[1]) * 1024
        limit = _CGROUP.read_text(encoding="ascii").strip()
    except OSError:  # no Linux, or no container
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def gpus(library: str = "libnvidia-ml.so.1") -> tuple[Device, ...]:
    """Return the NVIDIA GPUs that this process sees; none where their library is not there."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        found = (_gpu(nvml, index) for index in range(count.value))
        return tuple(device for device in found if device is not None)
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: ctypes.CDLL, index: int) -> Device | None:
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES), _Memory()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return None
    nvml.nvmlDeviceGetName(handle, name, _NAME_BYTES)
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return Device(
        name=f"cuda:{index}",
        model=name.value.decode(errors="replace"),
        memory_bytes=memory[0],
        free_bytes=memory[1],
    )
