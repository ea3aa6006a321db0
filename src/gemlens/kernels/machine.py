"""Which kernels run on this machine, and on how many threads.

GEMLENS_KERNELS=reference|portable|avx2|avx512    forces a path; else the fastest that the processor has
GEMLENS_THREADS=n                                 else as many as the cores that this process may use; never more, as
                                                  threads that share a core only wait for each other
"""

import math
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gemlens.errors import InputError

REFERENCE = "reference"
NAMES = (REFERENCE, "portable", "avx2", "avx512")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Machine:
    """What runs.

    Args:
        kernels: one of NAMES.
        threads: of the kernels' own pool.
        native: the compiled module; None for the reference.
    """

    kernels: str
    threads: int
    native: ModuleType | None


@lru_cache
def machine() -> Machine:
    """What runs here, decided once.

    Raises:
        InputError: the environment asks for kernels that are unknown or do not run here, or for no number of threads.
    """
    wanted, threads = os.environ.get("GEMLENS_KERNELS", ""), _threads()
    if wanted and wanted not in NAMES:
        raise InputError(f"GEMLENS_KERNELS is {wanted!r}, but it must be one of {', '.join(NAMES)}.")
    if wanted == REFERENCE:
        return Machine(REFERENCE, threads, None)
    native = _native()
    if native is None and not wanted:
        warnings.warn(
            "gemlens was installed without a C++ compiler, so plain torch does the work of its kernels, slowly.",
            stacklevel=2,
        )
        return Machine(REFERENCE, threads, None)
    usable = list(native.names()) if native is not None else []
    if wanted and wanted not in usable:
        raise InputError(
            f"GEMLENS_KERNELS is {wanted!r}, but here run only {', '.join([*usable, REFERENCE])}; leave it unset for "
            "the fastest of them."
        )
    assert native is not None
    native.use(wanted or usable[0], threads)
    return Machine(wanted or usable[0], threads, native)


def cores() -> int:
    """How many cores this process may use: those it is bound to, or fewer where a cgroup gives it less time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return bound


def _threads() -> int:
    said = os.environ.get("GEMLENS_THREADS", "")
    if not said:
        return cores()
    if not said.isdecimal() or not 1 <= int(said) <= 1024:
        raise InputError(f"GEMLENS_THREADS is {said!r}, but it must be a number of threads from 1 to 1024.")
    return min(int(said), cores())


def _native() -> ModuleType | None:
    try:
        return import_module("gemlens.kernels._cpu")
    except ModuleNotFoundError:
        return None
