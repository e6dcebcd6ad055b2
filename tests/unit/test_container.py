"""Limits of containers: of memory and processors, by control groups of both versions, as files say them."""

import builtins
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import labkit as lk
from labkit.engine.batching import free_memory, tokens_at_once
from labkit.models.container import memory_left, memory_limit, processor_quota
from labkit.models.errors import NotEnoughMemory
from labkit.models.memory import available, installed

CPU = torch.device("cpu")
V1 = """\
31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/memory ro,nosuid master:11 - cgroup cgroup rw,memory
33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:12 - cgroup cgroup rw,cpu,cpuacct
"""
V2 = "29 22 0:25 {root} /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
UNLIMITED = "9223372036854771712"


@pytest.fixture
def files(tmp_path, monkeypatch) -> Callable[[dict[str, str]], None]:
    """Linux's own files about groups are these and no others."""
    really = builtins.open

    def shown(path, *rest, **named):
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        ours = str(name).startswith(("/sys/fs/cgroup", "/proc/self/cgroup", "/proc/self/mountinfo"))
        return really(f"{tmp_path}{name}" if ours else path, *rest, **named)

    def write(texts: dict[str, str]) -> None:
        for name, text in texts.items():
            place = Path(f"{tmp_path}{name}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n")

    monkeypatch.setattr(builtins, "open", shown)
    return write


def v2(folder: str = "", **values: str | int) -> dict[str, str]:
    """Files of a group of version 2."""
    return {f"/sys/fs/cgroup{folder}/{name.replace('_', '.', 1)}": str(value) for name, value in values.items()}


def test_without_control_groups_nothing_is_limited(files):
    assert (memory_left(), memory_limit(), processor_quota()) == (None, None, None)
    assert available(CPU) > 0
    assert installed() > 1e8


def test_no_limit_is_no_limit(files):
    files({"/proc/self/cgroup": "0::/a", "/proc/self/mountinfo": V2.format(root="/")})
    files(v2("/a", memory_max="max", memory_high="max", memory_current=5_000_000, cpu_max="max 100000"))
    assert (memory_left(), memory_limit(), processor_quota()) == (None, None, None)
    files({"/proc/self/cgroup": "4:memory:/\n1:cpu,cpuacct:/", "/proc/self/mountinfo": V1.format(root="/")})
    files(
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED, "/sys/fs/cgroup/memory/memory.usage_in_bytes": "9"}
    )
    files(
        {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"}
    )
    assert (memory_left(), memory_limit(), processor_quota()) == (None, None, None)


def test_what_is_in_use_is_taken_off_and_files_that_can_be_dropped_are_not(files):
    files({"/proc/self/cgroup": "0::/", "/proc/self/mountinfo": V2.format(root="/")})
    files(v2(memory_max=900_000_000, memory_current=300_000_000, memory_stat="anon 7\ninactive_file 50000000\nfile 9"))
    assert memory_limit() == installed() == 900_000_000
    assert memory_left() == 650_000_000
    assert available(CPU) <= 650_000_000


def test_the_limit_at_which_a_container_is_slowed_down_counts_as_well(files):
    files({"/proc/self/cgroup": "0::/", "/proc/self/mountinfo": V2.format(root="/")})
    files(v2(memory_max=900_000_000, memory_high=700_000_000, memory_current=300_000_000))
    assert (memory_limit(), memory_left()) == (700_000_000, 400_000_000)


def test_the_tightest_of_nested_groups_decides_with_what_all_in_it_use(files):
    files({"/proc/self/cgroup": "0::/user/course/kernel", "/proc/self/mountinfo": V2.format(root="/")})
    files(v2("/user/course/kernel", memory_max=800_000_000, memory_current=100_000_000, cpu_max="300000 100000"))
    files(v2("/user/course", memory_max=1_000_000_000, memory_current=950_000_000, cpu_max="200000 100000"))
    files(v2("/user", memory_max="max", memory_current=960_000_000, cpu_max="max 100000"))
    assert (memory_limit(), memory_left(), processor_quota()) == (800_000_000, 50_000_000, 2.0)


def test_a_container_that_uses_more_than_its_limit_has_nothing_left(files):
    files({"/proc/self/cgroup": "0::/", "/proc/self/mountinfo": V2.format(root="/")})
    files(v2(memory_max=400_000_000, memory_current=410_000_000))
    assert memory_left() == available(CPU) == 0


@pytest.mark.parametrize("root", ["/", "/docker/4f5e"])
def test_version_1_with_and_without_the_machines_paths(files, root):
    """Docker mounts a container's group as the root, and leaves the path in /proc as the machine has it."""
    files({"/proc/self/cgroup": "11:cpu,cpuacct:/docker/4f5e\n4:memory:/docker/4f5e\n0::/docker/4f5e"})
    files({"/proc/self/mountinfo": V1.format(root=root)})
    inside = "" if root != "/" else "/docker/4f5e"
    memory, cpu = f"/sys/fs/cgroup/memory{inside}", f"/sys/fs/cgroup/cpu,cpuacct{inside}"
    files({f"{memory}/memory.limit_in_bytes": "700000000", f"{memory}/memory.usage_in_bytes": "200000000"})
    files(
        {f"{memory}/memory.stat": "inactive_file 1\ntotal_inactive_file 40000000\nhierarchical_memory_limit 700000000"}
    )
    files({f"{cpu}/cpu.cfs_quota_us": "150000", f"{cpu}/cpu.cfs_period_us": "100000"})
    assert (memory_limit(), memory_left(), processor_quota()) == (700_000_000, 540_000_000, 1.5)


def test_version_1_knows_of_a_limit_above_that_cannot_be_seen(files):
    files({"/proc/self/cgroup": "4:memory:/", "/proc/self/mountinfo": V1.format(root="/")})
    files({"/sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED})
    files({"/sys/fs/cgroup/memory/memory.usage_in_bytes": "100000000"})
    files({"/sys/fs/cgroup/memory/memory.stat": "hierarchical_memory_limit 600000000"})
    assert memory_left() == 500_000_000


@pytest.mark.parametrize("version", [1, 2])
def test_the_usual_places_are_read_where_mounts_are_not_told(files, version):
    if version == 1:
        files({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "500000000"})
        files({"/sys/fs/cgroup/memory/memory.usage_in_bytes": "100000000"})
        files({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"})
    else:
        files(v2(memory_max=500_000_000, memory_current=100_000_000, cpu_max="50000 100000"))
    assert (memory_left(), processor_quota()) == (400_000_000, 0.5)


def test_a_model_that_a_container_cannot_hold_is_refused_before_it_is_read(files, tmp_path):
    files({"/proc/self/cgroup": "4:memory:/", "/proc/self/mountinfo": V1.format(root="/")})
    files({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "300000000"})
    files({"/sys/fs/cgroup/memory/memory.usage_in_bytes": "120000000"})
    LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=12).save_pretrained(tmp_path / "model")
    with pytest.raises(NotEnoughMemory, match=r"cpu has 180\.0 MB free"):
        lk.load(tmp_path / "model", progress=False)


def test_a_pass_is_as_large_as_the_container_has_room_for(files, lm32):
    files({"/proc/self/cgroup": "0::/", "/proc/self/mountinfo": V2.format(root="/")})
    files(v2(memory_max=2_000_000_000, memory_current=100_000_000))
    roomy = tokens_at_once(lm32)
    files(v2(memory_current=1_960_000_000))
    assert free_memory(CPU) <= 40_000_000
    assert tokens_at_once(lm32) < roomy
