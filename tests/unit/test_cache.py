"""A cache that several people use: permissions, who may read and write what, and disks that are full."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import labkit
from labkit.models.cache import entry
from labkit.models.errors import CacheUnusable, LoadError

root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="another user can be tried by root alone"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def closed(part: Path) -> None:
    """What writes weights: files and folders for their owner alone."""
    for name in ("a.safetensors", "b/c.safetensors"):
        (part / name).parent.mkdir(exist_ok=True, mode=0o700)
        (part / name).write_text("numbers")
        (part / name).chmod(0o600)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_what_is_in_the_cache_has_the_permissions_of_the_umask(umask, cache):
    before = os.umask(umask)
    try:
        entry("models/thing", closed)
    finally:
        os.umask(before)
    for path in cache.rglob("*"):
        usual = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == usual, path


def test_a_whole_entry_is_read_without_its_lock(cache):
    place = entry("models/thing", closed)
    (cache / "models/thing.lock").unlink()
    assert entry("models/thing", lambda part: pytest.fail("it was made again")) == place
    assert not (cache / "models/thing.lock").exists()


def test_what_a_killed_process_left_is_removed(cache):
    left = cache / "models" / ".thing-0123"
    left.mkdir(parents=True)
    (left / "half").write_text("x" * 1000)
    entry("models/thing", closed)
    assert sorted(path.name for path in (cache / "models").iterdir()) == ["thing", "thing.lock"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("I/O error: (os error 28)")])
def test_a_full_disk_is_told_and_nothing_is_left(error, cache):
    def build(part):
        (part / "half").write_text("half")
        raise error

    with pytest.raises(CacheUnusable, match=r"the disk is full: .* set LABKIT_CACHE to a folder there"):
        entry("models/thing", build)
    assert [path.name for path in (cache / "models").iterdir()] == ["thing.lock"]
    assert issubclass(CacheUnusable, LoadError)


def test_a_file_in_the_place_of_the_cache_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheUnusable, match="is a file, not a folder"):
        entry("models/thing", closed)


ANOTHER = """
import os
from labkit.models.cache import entry
from labkit.models.errors import CacheUnusable
os.setgid(65534), os.setuid(65534)  # once all is imported that may lie where others cannot read
def build(part):
    (part / "a").write_text("theirs")
try:
    print(entry("models/thing", build).name)
except CacheUnusable as error:
    print("CacheUnusable", error)
"""


def as_another_user(cache):
    env = os.environ | {"LABKIT_CACHE": str(cache), "PYTHONPATH": str(Path(labkit.__file__).parents[1]), "HOME": "/"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", ANOTHER], env=env, capture_output=True, text=True, timeout=300, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@root
def test_another_user_reads_what_is_open_and_is_told_whose_the_rest_is(cache):
    for folder in (cache.parent, *cache.parents[1:4]):  # pytest's folders are closed
        if folder != Path("/tmp") and str(folder).startswith("/tmp"):
            folder.chmod(0o755)
    before = os.umask(0o022)
    try:
        entry("models/thing", closed)
        assert as_another_user(cache) == "thing"
        (cache / "models/thing/a.safetensors").chmod(0o600)
        said = as_another_user(cache)
        assert "you may not read it; it belongs to root" in said
        assert "set LABKIT_CACHE" in said
        (cache / "models/thing").chmod(0o700)
        assert "you may not read it; it belongs to root" in as_another_user(cache)
        os.rename(cache / "models/thing", cache / "models/other")
        said = as_another_user(cache)
        assert "thing is not in the cache yet and cannot be put there" in said
        assert "belongs to root" in said
        (cache / "models").chmod(0o777)
        (cache / "models/thing.lock").unlink()
        assert as_another_user(cache) == "thing"
    finally:
        os.umask(before)
