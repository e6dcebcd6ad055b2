"""The real default model, once a test session: in NF4, as people use it, and in fp32, where promises are exact."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import labkit as lk

if os.environ.get("LABKIT_TEST_WITHOUT_AVX512") == "1":
    folder = str(Path(__file__).with_name("without_avx512"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, folder)
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # noqa: F401

# One thread always, here and in the processes that tests start: several test processes share the cores, and what is
# computed twice is then the same to the last bit, whatever else the machine does meanwhile.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# The same examples every time, and no clock: a failure is there again when it is looked for.
settings.register_profile("labkit", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("labkit")


FIRST = ("test_200_pairs_on_dask_survive_a_killed_kernel_and_a_killed_worker",)
"""Tests of more than a minute: first, so that no process is left alone with one at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name not in FIRST)


@pytest.fixture(scope="session", autouse=True)
def progress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests keeps their own progress in the course."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_PROGRESS", str(tmp_path_factory.mktemp("course") / "progress.json"))
        yield


@pytest.fixture(scope="session")
def lm4() -> lk.LanguageModel:
    return lk.load(progress=False)


@pytest.fixture(scope="session")
def lm32() -> lk.LanguageModel:
    return lk.load(bits=32, progress=False)


@pytest.fixture(scope="session", params=[32, 4])
def lm(request: pytest.FixtureRequest) -> lk.LanguageModel:
    """Each promise on both."""
    return request.getfixturevalue(f"lm{request.param}")


@pytest.fixture(autouse=True)
def no_hook_is_left(request: pytest.FixtureRequest):
    """Whatever a test does, the models it used hold no hook of ours afterwards and have their own attention back."""
    yield
    for name in ("lm4", "lm32"):
        if name in request.fixturenames:
            lm = request.getfixturevalue(name)
            model = lm.hf
            with lm.lock:  # a pass of a widget's own thread may be under way
                modules = list(model.modules())
                hooks = [h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
            assert not [
                h for h in hooks if getattr(h, "__module__", "").startswith("labkit")
            ]  # transformers has its own
            assert model.config._attn_implementation == "sdpa"
