"""Energy, where a machine counts it: the processor's own counters, those of an NVIDIA GPU, or codecarbon's estimate.

Processors of Intel and AMD count their energy (RAPL); Linux shows the counters under /sys/class/powercap, often to root
alone, and hardly ever inside a virtual machine. An NVIDIA GPU since Volta counts its own (NVML, read through `pynvml`).
Where there is no counter and codecarbon is installed, its number is taken, which is an estimate from the processor's
rated power unless it finds a meter of its own. Otherwise the answer is why there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
PER_KWH = 3.6e6  # joules


@dataclass(frozen=True)
class Counter:
    """A counter of energy: `joules()` only rises, until it begins again at `wraps`."""

    name: str
    joules: Callable[[], float]
    wraps: float = float("inf")

    def since(self, before: float) -> float:
        """The joules used since it stood at `before`."""
        used = self.joules() - before
        return used + self.wraps if used < 0 and self.wraps < float("inf") else used


class Meter:
    """What is used between `start` and `stop`, in joules: the sum of some counters.

    Attributes:
        names: of the counters; empty where nothing can be measured.
        missing: why some device has none, in words.
    """

    def __init__(self, counters: Sequence[Counter], missing: Sequence[str] = ()) -> None:
        self.counters, self.missing = tuple(counters), tuple(missing)
        self._before: list[float] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(counter.name for counter in self.counters)

    def start(self) -> None:
        self._before = [counter.joules() for counter in self.counters]

    def stop(self) -> float:
        """The joules since `start`; NaN where nothing can be measured."""
        used = [counter.since(before) for counter, before in zip(self.counters, self._before, strict=True)]
        return sum(used) if used else float("nan")


class CarbonMeter(Meter):
    """The same from codecarbon: one of its tasks for each stretch."""

    def __init__(self, tracker: Any, missing: Sequence[str] = ()) -> None:
        super().__init__((), missing)
        self._tracker, self._count = tracker, 0

    @property
    def names(self) -> tuple[str, ...]:
        return ("codecarbon (an estimate where it finds no meter, which may not tell work from rest)",)

    def start(self) -> None:
        self._count += 1
        self._tracker.start_task(f"labkit {self._count}")

    def stop(self) -> float:
        return float(self._tracker.stop_task().energy_consumed) * PER_KWH


def meter_for(devices: Sequence[torch.device], *, root: Path = POWERCAP) -> Meter:
    """What measures the energy of these devices here, with the reasons for what it cannot."""
    counters, why = of_processor(root)
    missing = [why] if why else []
    if cuda := [device for device in devices if device.type == "cuda"]:
        own, why = of_gpus(cuda)
        counters += own
        missing += [why] if why else []
    if not counters and (tracker := _codecarbon()) is not None:
        return CarbonMeter(tracker, missing)
    return Meter(counters, missing)


def of_processor(root: Path = POWERCAP) -> tuple[list[Counter], str]:
    """A counter per processor and per memory of it that is counted separately; or none, and why."""
    zones = [(path, _text(path / "name")) for path in sorted(root.glob("intel-rapl:*"))]  # AMD's too are called so
    wanted = [
        path
        for path, name in zones
        if (re.fullmatch(r"intel-rapl:\d+", path.name) and name.startswith("package"))  # psys contains the packages
        or (re.fullmatch(r"intel-rapl:\d+:\d+", path.name) and name == "dram")
    ]
    if not wanted:
        return [], (
            f"the system shows no energy counters of its processor ({root}/intel-rapl:*): they exist on Linux on "
            "hardware of Intel and AMD, and virtual machines and containers hide them"
        )
    try:
        return [_zone(path) for path in wanted], ""
    except PermissionError:
        return [], (
            f"the processor's energy counters can be read by root alone ({wanted[0]}/energy_uj), as they reveal what "
            "other programs do (CVE-2020-8694)"
        )
    except (OSError, ValueError) as error:
        return [], f"the processor's energy counters cannot be read: {error}"


def _zone(path: Path) -> Counter:
    def joules() -> float:
        return int((path / "energy_uj").read_text()) / 1e6

    joules()
    return Counter(f"{_text(path / 'name')} (RAPL)", joules, int((path / "max_energy_range_uj").read_text()) / 1e6)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def of_gpus(devices: Sequence[torch.device]) -> tuple[list[Counter], str]:
    """A counter per GPU; or none, and why."""
    try:
        import pynvml
    except ImportError:
        return [], "the GPU's counter is read through pynvml, which is not installed: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        return [_gpu(pynvml, device) for device in devices], ""
    except pynvml.NVMLError as error:
        return [], f"the GPU does not count its energy ({error}); those since Volta do, whole and not in parts (MIG)"


def _gpu(pynvml: Any, device: torch.device) -> Counter:
    known = torch.cuda.get_device_properties(device)
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{known.uuid}".encode())  # numbers may differ from PyTorch's
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    return Counter(f"{known.name} (NVML)", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)


def _codecarbon() -> Any:
    """A tracker of codecarbon that writes no file and asks no server; None where it is not installed."""
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        return None
    return OfflineEmissionsTracker(
        country_iso_code="USA", save_to_file=False, log_level="error", allow_multiple_runs=True, measure_power_secs=1
    )  # only energy is taken, which no country changes
