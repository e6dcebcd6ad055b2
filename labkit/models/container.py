"""What a container leaves to this process: memory, and processor time, by the control groups it is in.

A container sees the memory and processors of the whole machine; how much of them it may use is in the files of its
control groups. Groups are nested, each with a limit and a usage of its own, so what is left is the least that any of
them leaves. Both versions of control groups are read, also together. Without such files (another system, no limit) the
answer is None.
"""

from __future__ import annotations

from collections.abc import Iterator

_V1_PLACES = {"memory": ("memory",), "cpu": ("cpu", "cpu,cpuacct", "cpuacct,cpu")}


def memory_left() -> int | None:
    """Bytes that the container's limits leave to this process; None where there is no limit.

    Files that were read and can be dropped (`inactive_file`) count as left.
    """
    left = [limit - max(0, used) for limit, used in _memory()]
    return max(0, min(left)) if left else None


def memory_limit() -> int | None:
    """Bytes that the whole container may use; None if there is no limit."""
    return min((limit for limit, _ in _memory()), default=None)


def processor_quota() -> float | None:
    """How many processors' time the container may use, such as 1.5; None where there is no limit."""
    quotas: list[tuple[int | None, int | None]] = []
    for folder in _groups("cpu", version=2):
        quota, _, period = _text(f"{folder}/cpu.max").partition(" ")
        quotas.append((_number(quota), _number(period) or 100_000))
    for folder in _groups("cpu", version=1):
        quotas.append((_number(_text(f"{folder}/cpu.cfs_quota_us")), _number(_text(f"{folder}/cpu.cfs_period_us"))))
    return min((quota / period for quota, period in quotas if quota and quota > 0 and period), default=None)


def _memory() -> list[tuple[int, int]]:
    """Limit and use, in bytes, of every group with a limit on memory."""
    found = []
    for folder in _groups("memory", version=2):
        limits = [_number(_text(f"{folder}/{name}")) for name in ("memory.max", "memory.high")]
        found.append((limits, _number(_text(f"{folder}/memory.current")), _counts(folder).get("inactive_file")))
    for folder in _groups("memory", version=1):
        counts = _counts(folder)
        limits = [_number(_text(f"{folder}/memory.limit_in_bytes")), counts.get("hierarchical_memory_limit")]
        idle = counts.get("total_inactive_file", counts.get("inactive_file"))
        found.append((limits, _number(_text(f"{folder}/memory.usage_in_bytes")), idle))
    # without a limit version 2 says "max", and version 1 the largest number of whole pages in 63 bits
    set_limits = [([n for n in limits if n is not None and n < 1 << 60], used, idle) for limits, used, idle in found]
    return [(min(limits), (used or 0) - (idle or 0)) for limits, used, idle in set_limits if limits]


def _counts(folder: str) -> dict[str, int]:
    """`memory.stat`: bytes by what they are used for."""
    pairs = (line.split() for line in _text(f"{folder}/memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _groups(controller: str, *, version: int) -> Iterator[str]:
    """The folders of this process's groups of one hierarchy, from its own up to the outermost that is to be seen."""
    mounts = list(_mounts(controller, version=version))
    usual = "/sys/fs/cgroup"
    if not mounts and version == 2:
        mounts = [("/", usual), ("/", f"{usual}/unified")]
    elif not mounts:
        mounts = [("/", f"{usual}/{name}") for name in _V1_PLACES[controller]]
    path = _own_path(controller, version=version)
    seen: set[str] = set()
    for root, place in mounts:
        # a container may see its group as the root of what is mounted, and its path as the machine calls it
        root = root.rstrip("/")
        inside = path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else ""
        parts = [part for part in inside.split("/") if part]
        if ".." in parts:
            parts = []
        for length in range(len(parts), -1, -1):
            folder = "/".join([place.rstrip("/"), *parts[:length]])
            if folder not in seen:
                seen.add(folder)
                yield folder


def _own_path(controller: str, *, version: int) -> str:
    """The path of this process's group in a hierarchy, as `/proc/self/cgroup` has it; "/" where it has none."""
    for line in _text("/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if (version == 2 and number == "0" and not names) or (version == 1 and controller in names.split(",")):
            return path
    return "/"


def _mounts(controller: str, *, version: int) -> Iterator[tuple[str, str]]:
    """Where a hierarchy is mounted: the group that is its root, and the folder."""
    for line in _text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        about, kind = left.split(), right.split()
        if len(about) < 5 or not kind:
            continue
        mine = controller in (kind[-1].split(",") if version == 1 else [controller])
        if kind[0] == ("cgroup" if version == 1 else "cgroup2") and mine:
            yield about[3], about[4]


def _number(text: str) -> int | None:
    """A number in a file; None for "max" and for what is not there."""
    text = text.strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: str) -> str:
    """The text of a file; empty if it is missing or cannot be read."""
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
