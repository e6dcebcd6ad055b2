"""Where labkit is published, said once: `make links REPO=owner/name REF=v0.2.0`.

What is given goes into `[tool.labkit.links]` of pyproject.toml, and everything that follows from that table is written
again: the Colab, Binder and nbgitpuller links of the README's table of notebooks, and the lines in each notebook's
first cell that install labkit where it is missing. `REPO=none` takes it all back: then nothing is linked, nothing is
installed, and the first cell says in one sentence how to install. Without arguments all is written as the
table says. PYPI=1, HUB=https://..., BRANCH=main: see `Links`.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlencode

from ran import edited, keep

ROOT = Path(__file__).parents[1]
DISTRIBUTION = str(runpy.run_path(str(ROOT / "labkit" / "_version.py"))["DISTRIBUTION"])
TABLE = re.compile(r"^\[tool\.labkit\.links\]\n(?:[a-z]+ = .*\n)*", re.MULTILINE)
URLS = re.compile(r"^# Project URLs.*\n(?:\[project\.urls\]\n(?:\w+ = .*\n)*)?", re.MULTILINE)
SECTION = re.compile(r"<!-- links:[^>]*-->\n(.*?)<!-- /links -->\n", re.DOTALL)
OPENING = "<!-- links: the third column and what stands below the table are written by `make links` -->\n"
ROW = re.compile(r"^\| \[[^\]]*\]\((?P<path>notebooks/[^)]+)\) \| [^|]* \|")
HEAD = re.compile(r"\A# JupyterLab, Colab.*\ntry:\n(?:(?: {4}.*)?\n)+except ImportError.*(?:\n {4}.*)+")
EXTRAS = {"10_scaling_out.ipynb": "scale"}  # notebooks that need more than labkit itself, and what they import of it
IMPORTS = {"scale": "distributed"}


@dataclass(frozen=True)
class Links:
    """Where labkit is published. Without a repository it is not, and all other settings wait."""

    repository: str = ""  # owner/name on GitHub
    ref: str = ""  # the tag or commit that links and first cells name
    branch: str = "main"  # for nbgitpuller, which merges a branch and cannot merge a tag
    hub: str = ""  # address of a JupyterHub that has nbgitpuller
    pypi: bool = False  # is this version on the package index?

    def __post_init__(self) -> None:
        if self.repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise ValueError(f"REPO is owner/name, as in a GitHub address; got {self.repository!r}")
        if self.repository and not self.ref:
            raise ValueError("REF is missing: the tag that the links name, such as REF=v0.2.0")
        if self.ref and not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", self.ref):
            raise ValueError(f"REF is a tag, a branch or a commit; got {self.ref!r}")
        if self.hub and not re.fullmatch(r"https?://[^\s?#]+", self.hub):
            raise ValueError(f"HUB is the address of a JupyterHub, https://...; got {self.hub!r}")
        if self.pypi and not re.fullmatch(r"v?\d+(\.\d+)+\S*", self.ref):
            raise ValueError(f"with PYPI=1, REF is the tag of a version, such as v0.2.0; got {self.ref!r}")

    def requirement(self, extra: str = "") -> str:
        """What pip installs."""
        name = DISTRIBUTION + (f"[{extra}]" if extra else "")
        if self.pypi:
            return f"{name}=={self.ref.removeprefix('v')}"
        return f"{name} @ git+https://github.com/{self.repository}@{self.ref}"

    def colab(self, path: str) -> str:
        return f"https://colab.research.google.com/github/{self.repository}/blob/{self.ref}/{path}"

    def binder(self, path: str) -> str:
        return f"https://mybinder.org/v2/gh/{self.repository}/{quote(self.ref, safe='')}?" + urlencode(
            {"urlpath": f"lab/tree/{path}"}
        )

    def nbgitpuller(self, path: str) -> str:
        """The link on a hub; without a hub, what follows the address of one."""
        folder = self.repository.partition("/")[2]
        where = {
            "repo": f"https://github.com/{self.repository}",
            "branch": self.branch,
            "urlpath": f"lab/tree/{folder}/{path}",
        }
        return f"{self.hub.rstrip('/')}/hub/user-redirect/git-pull?{urlencode(where)}"


def first_cell(links: Links, notebook: str) -> str:
    """The lines of a notebook's first cell that import labkit, and what happens where it is missing."""
    extra = EXTRAS.get(notebook, "")
    imports = "    import labkit as lk\n    from labkit.course import check\n"
    if extra:
        imports = f"    import {IMPORTS[extra]}\n\n{imports}"
    head = f"# JupyterLab, Colab and Binder all start here.\ntry:\n{imports}except ImportError"
    if links.repository:
        again = imports.partition("\n\n")[2] or imports
        return f'{head}:  # a fresh Colab\n    %pip install -q "{links.requirement(extra)}"\n{again.rstrip()}'
    folder = f'".[{extra}]"' if extra else "."
    return (
        f"{head} as error:\n    raise ImportError(\n"
        f"        'labkit is not installed in this kernel: run pip install {folder} in a copy of its repository, '\n"
        "        'then restart the kernel.'\n    ) from error"
    )


def project_urls(links: Links) -> str:
    """The table of addresses that the package index shows; a comment alone while there is no repository."""
    text = "# Project URLs, written by `make links`; none while no repository is named.\n"
    if links.repository:
        home = f"https://github.com/{links.repository}"
        text += f'[project.urls]\nRepository = "{home}"\nIssues = "{home}/issues"\n'
        text += f'Changelog = "{home}/blob/{links.branch}/CHANGELOG.md"\n'
    return text


def section(links: Links, rows: list[str]) -> str:
    """The README's table of notebooks, and below it how to install and to open them on a hub."""
    columns = 3 if links.repository else 2
    lines = ["|" + " |" * columns, "|" + "---|" * columns]
    matches = [match for row in rows if (match := ROW.match(row))]
    for match in matches:
        colab, binder = links.colab(match["path"]), links.binder(match["path"])
        badges = (
            f" [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
            f" [![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder}) |"
        )
        lines.append(match[0] + (badges if links.repository else ""))
    if links.repository:
        pull = links.nbgitpuller(matches[0]["path"])
        lines += ["", f'Install labkit with `pip install "{links.requirement()}"`.']
        lines.append(
            f"On a JupyterHub, nbgitpuller fetches the notebooks: [open them there]({pull})."
            if links.hub
            else f"On a JupyterHub that has nbgitpuller, put this after the hub's address: `{pull}`"
        )
    return OPENING + "\n".join(lines) + "\n<!-- /links -->\n"


def stored(root: Path = ROOT) -> Links:
    """The settings in pyproject.toml."""
    return Links(**tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["labkit"]["links"])


def written(links: Links, root: Path = ROOT) -> dict[Path, str]:
    """Every file that follows from the settings, with the text that it should have."""
    project, readme = root / "pyproject.toml", root / "README.md"
    table = "[tool.labkit.links]\n" + "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in asdict(links).items()
    )
    text = _put(TABLE, table, project)
    found = URLS.search(text)
    if not found:
        raise ValueError("pyproject.toml has no place for the project's addresses: a line that begins '# Project URLs'")
    texts = {project: text[: found.start()] + project_urls(links) + text[found.end() :]}
    rows = [line for line in _found(SECTION, readme)[1].splitlines() if line.startswith("|")]
    texts[readme] = _put(SECTION, section(links, rows), readme)
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(file.read_text("utf-8"))
        cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        source, found = HEAD.subn(lambda _, name=file.name: first_cell(links, name), "".join(cell["source"]), count=1)
        if not found:
            raise ValueError(f"the first code cell of {file.name} does not begin with the import of labkit")
        was_run = edited(notebook) is None
        cell["source"] = source.splitlines(keepends=True)
        if was_run:  # the cell prints nothing, whichever way labkit comes into the kernel
            keep(notebook)
        texts[file] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return texts


def _found(pattern: re.Pattern[str], file: Path) -> re.Match[str]:
    if not (match := pattern.search(file.read_text("utf-8"))):
        raise ValueError(f"{file.name} has no place for the links: nothing in it matches {pattern.pattern!r}")
    return match


def _put(pattern: re.Pattern[str], text: str, file: Path) -> str:
    match = _found(pattern, file)
    whole = match.string
    return whole[: match.start()] + text + whole[match.end() :]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write what the settings say; the exit status says whether they could be used."""
    parser = argparse.ArgumentParser(prog="make links", description=(__doc__ or "").splitlines()[0])
    for name in ("repo", "ref", "branch", "hub", "pypi"):
        parser.add_argument(f"--{name}", default="")
    given = parser.parse_args(arguments)
    try:
        links = stored(root)
        if given.repo == "none":
            links = Links()
        else:
            values = {"repository": given.repo, "ref": given.ref, "branch": given.branch, "hub": given.hub}
            changes: dict[str, object] = {name: value for name, value in values.items() if value}
            if given.pypi:
                changes["pypi"] = given.pypi != "0"
            links = replace(links, **changes)  # type: ignore[arg-type]
        for file, text in written(links, root).items():
            if file.read_text("utf-8") != text:
                file.write_text(text, "utf-8")
                print(f"wrote {file.relative_to(root)}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"links go to {links.repository} at {links.ref}" if links.repository else "no repository is named")
    return 0


if __name__ == "__main__":
    sys.exit(main())
