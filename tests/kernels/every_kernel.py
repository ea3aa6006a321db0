"""Which kernels run here, and how a test chooses one of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from gemlens.kernels import machine as machines
from gemlens.kernels.machine import Machine

NATIVE = machines._native()
KERNELS = (*(NATIVE.names() if NATIVE else ()), machines.REFERENCE)
every_kernel = pytest.mark.parametrize("kernels", KERNELS)


@contextmanager
def using(place: ModuleType, kernels: str, threads: int = 2) -> Iterator[None]:
    """The operations of a module by these kernels."""
    native = None if kernels == machines.REFERENCE else NATIVE
    if native:
        native.use(kernels, threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, "machine", lambda: Machine(kernels, threads, native))
        yield
