"""The most memory that a notebook's kernel took, looked at when its last cell has run: `-p tests.kernel_memory`.

A plugin for `make test-notebooks`, where each of them runs in a kernel of its own anyway.
"""

from pathlib import Path

import pytest

BINDER = 1.6e9  # bytes of a kernel, of the 2 GB that Binder gives
WORKSHOP = ("00_", "01_", "02_", "03_", "04_")


def peak(status: str) -> int:
    """Bytes that a process had in memory at most, by its `/proc/PID/status`, Linux's."""
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    notebook = item.parent
    kernel = getattr(notebook, "kernel", None)
    if kernel is None or not item.path.name.startswith(WORKSHOP) or (nextitem and nextitem.parent is notebook):
        return
    status = Path(f"/proc/{kernel.km.provisioner.pid}/status")
    if status.exists():
        took = peak(status.read_text())
        print(f"{item.path.name}: {took / 1e9:.2f} GB")
        assert took < BINDER, f"the kernel took {took / 1e9:.2f} GB, more than {BINDER / 1e9:.1f}"
