"""What a worker's machine has, as the machine itself says it.

Source: NVML API reference, `nvmlDeviceGetMemoryInfo`, `nvmlDeviceGetName` and
`nvmlDeviceGetComputeRunningProcesses_v3`; CUDA driver API, `cuDevicePrimaryCtxRetain`; cgroup v2,
`memory.max`; proc(5), `MemTotal`.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from events.models import Device, Machine


NVML = "libnvidia-ml.so.1"
_CUDA = "libcuda.so.1"
_NAME_BYTES = 96
_PROCESSES_MAX = 1024
_UNKNOWN = 2**64 - 1
"""NVML_VALUE_NOT_AVAILABLE."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")


_Memory = ctypes.c_ulonglong * 3
"""Total, free and used bytes."""


_PROCESS = struct.Struct("@IQII")
"""`nvmlProcessInfo_t`: a process, its bytes, and parts of a GPU that is divided."""


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


def gpus(library: str = NVML) -> tuple[Device, ...]:
    """Return the NVIDIA GPUs of this machine; none where their library is not there."""
    with _nvml(library) as nvml:
        return () if nvml is None else tuple(_gpu(nvml, item) for item in _handles(nvml))


def level() -> int:
    """Return a level of GPU memory whose difference says what this process took meanwhile, bytes.

    It is what this process holds; in a container, where the driver knows processes by other
    numbers, what everybody holds.
    """
    held = held_bytes(os.getpid())
    return used_bytes() if held is None else held


def held_bytes(pid: int, library: str = NVML) -> int | None:
    """Return the memory that a process holds on all NVIDIA GPUs.

    Returns:
        Bytes, 0 without a GPU; None where the driver does not say, or by other numbers than ours.
    """
    with _nvml(library) as nvml:
        if nvml is None:
            return 0
        processes = [item for _, handle in _handles(nvml) for item in _processes(nvml, handle)]
    ours = [used for number, used in processes if number == pid]
    if _UNKNOWN in ours:
        return None
    are_known = ours or all(Path(f"/proc/{number}").exists() for number, _ in processes)
    return sum(ours) if are_known else None


def used_bytes(library: str = NVML) -> int:
    """Return the memory of all NVIDIA GPUs that is in use, by whomever; 0 without one."""
    with _nvml(library) as nvml:
        if nvml is None:
            return 0
        return sum(_memory(nvml, handle)[2] for _, handle in _handles(nvml))


def wake(index: int) -> None:
    """Have this process open a GPU, and keep it open: what that takes is no model's memory.

    Does nothing without a driver; whoever wants the GPU then says what is amiss.
    """
    try:
        cuda = ctypes.CDLL(_CUDA)
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), index) == 0:
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


@contextmanager
def _nvml(library: str) -> Iterator[ctypes.CDLL | None]:
    """Open NVML; None where it is not there, or the driver is not."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        yield None
        return
    if nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _handles(nvml: ctypes.CDLL) -> Iterator[tuple[int, ctypes.c_void_p]]:
    """Yield each GPU's number and handle."""
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            yield index, handle


def _gpu(nvml: ctypes.CDLL, item: tuple[int, ctypes.c_void_p]) -> Device:
    index, handle = item
    name = ctypes.create_string_buffer(_NAME_BYTES)
    nvml.nvmlDeviceGetName(handle, name, _NAME_BYTES)
    total, free, _ = _memory(nvml, handle)
    return Device(
        name=f"cuda:{index}",
        model=name.value.decode(errors="replace"),
        memory_bytes=total,
        free_bytes=free,
    )


def _memory(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> tuple[int, int, int]:
    """Return total, free and used bytes of a GPU."""
    memory = _Memory()
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return memory[0], memory[1], memory[2]


def _processes(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> list[tuple[int, int]]:
    """Return who computes on a GPU, with how many bytes; nobody where the driver does not say."""
    count = ctypes.c_uint(_PROCESSES_MAX)
    found = ctypes.create_string_buffer(_PROCESSES_MAX * _PROCESS.size)
    if nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), found) != 0:
        return []
    told = _PROCESS.iter_unpack(found.raw[: count.value * _PROCESS.size])
    return [(pid, used) for pid, used, *_ in told]
