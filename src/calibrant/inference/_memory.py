"""How much memory there is, and how much a process has taken."""

import os
import sys

import jax


def available_memory() -> int:
    """Bytes that are free on the device; on a CPU, of the machine and of the control group that this process is in."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return min(_machine(), _control_group())


def device_memory() -> int:
    """Bytes that are free for each device of the mesh in use: those of a CPU share what there is."""
    sharing = jax.sharding.get_abstract_mesh().size // jax.process_count()
    return available_memory() // (max(sharing, 1) if jax.default_backend() == "cpu" else 1)


def memory_in_use() -> int | None:
    """Bytes that are taken where `available_memory` are left: on the device; on a CPU, by this process."""
    stats = jax.local_devices()[0].memory_stats()
    return int(stats["bytes_in_use"]) if stats and "bytes_in_use" in stats else resident_memory()


def resident_memory() -> int | None:
    """Bytes of this process that are in memory now, where the system says so."""
    try:
        return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _machine() -> int:
    try:
        fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_group() -> int:
    """What a container or a batch job has left (version 2, then 1, of the kernel's interface)."""
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            allowed, taken = int(_read(f"{folder}/{limit}")), int(_read(f"{folder}/{used}"))
            fields = dict(line.split() for line in _read(f"{folder}/memory.stat").splitlines())
        except (OSError, ValueError):  # no such file; "max"
            continue
        return max(allowed - taken + int(fields.get("inactive_file", 0)), 0)  # files' pages are given back
    return sys.maxsize


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
