"""The command line."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from labkit._version import install_command
from labkit.cli import main

ROOT = Path(__file__).parents[2]


def labkit(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labkit.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=300)


def test_doctor_says_what_there_is(lm4, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "default model SmolLM2-135M-Instruct, ready" in out
    assert "computes in" in out


def test_models_lists_licences_and_sizes(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "meta-llama/Llama-2-7b-hf" in out
    rows = {row.split()[0]: row for row in out.splitlines() if "/" in row.split(" ")[0]}
    assert "accept its conditions on the hub first" in rows["meta-llama/Llama-2-7b-hf"]
    assert "not known whether it has conditions to accept" in rows["Qwen/Qwen2.5-7B"]
    assert "hub" not in rows["EleutherAI/pythia-70m"]
    assert "MIT and Llama 3.1 Community" in rows["deepseek-ai/DeepSeek-R1-Distill-Llama-8B"]


def test_pull_says_that_the_default_model_is_ready(lm4, capsys):
    assert main(["pull"]) == 0
    assert capsys.readouterr().out == "SmolLM2-135M-Instruct is ready\n"


def test_pull_of_what_is_not_there_fails_with_a_message():
    done = labkit("pull", "./nothing.gguf")
    assert done.returncode == 1
    assert "there is no file" in done.stderr


@pytest.mark.parametrize("command", ["pull", "pull --bits 16", "lab --no-browser", "models", "serve"])
def test_a_torch_that_does_not_import_is_a_sentence_and_no_traceback(tmp_path, command):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object')")
    done = labkit(*command.split(), PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", LABKIT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert done.stderr.startswith("labkit cannot run here: libtorch_cpu.so: cannot open shared object"), done.stderr
    assert "labkit doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_pip_it_is_said_that_pip_is_missing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pip'] = None")
    done = labkit("pull", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", LABKIT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "has no pip to fetch it with" in done.stderr
    assert "Connect to the network" not in done.stderr


def test_help_waits_for_nothing_heavy_and_an_unknown_command_is_refused():
    script = "import sys, labkit.cli\ntry:\n    labkit.cli.main(['--help'])\nfinally:\n    print(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "lab" in said
    for heavy in ("torch", "transformers", "ipywidgets", "plotly", "pandas", "jupyterlab"):
        assert f"'{heavy}'" not in said.splitlines()[-1]
    assert labkit("dance").returncode == 2


@pytest.mark.skipif(find_spec("jupyterlab") is None, reason="JupyterLab is not installed, as in Colab")
def test_lab_hands_its_flags_to_jupyterlab():
    assert labkit("lab", "--version").stdout.strip().startswith("4.")


@pytest.mark.skipif(find_spec("jupyterlab") is not None, reason="JupyterLab is installed")
def test_lab_says_how_to_install_jupyterlab():
    done = labkit("lab")
    assert done.returncode == 1
    assert install_command("lab") in done.stderr
