"""What stands in a workshop's folder beside the packages: the page for participants and the scripts that install."""

from __future__ import annotations

from html import escape

INSTALL_SH = """#!/bin/sh
# Installs labkit from this folder, without a network, into ~/labkit-workshop (or LABKIT_VENV).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
to=${LABKIT_VENV:-$HOME/labkit-workshop}
python=${PYTHON:-python3}
"$python" "$here/check.py" "$to"
"$python" -m venv "$to"
to=$(cd "$to" && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$to/bin/python" -m pip install --quiet --no-index --find-links "$here/wheels" "labkit-lm[lab]"
mkdir -p "$to/notebooks/grids"
for notebook in "$here"/notebooks/*.ipynb; do
  [ -e "$to/notebooks/$(basename "$notebook")" ] || cp "$notebook" "$to/notebooks/"
done
cp -f "$here"/grids/*.npz "$to/notebooks/grids/"
chmod -R u+w "$to/notebooks"
cat > "$to/start.sh" <<END
#!/bin/sh
[ -d "$here/cache" ] || { echo "$here is not there: put it back, or run install.sh where it is now" >&2; exit 1; }
LABKIT_CACHE="$here/cache" exec "$to/bin/labkit" lab --ServerApp.root_dir="$to/notebooks" "\\$@"
END
chmod +x "$to/start.sh"
LABKIT_CACHE="$here/cache" "$to/bin/labkit" workshop check "$here"
echo "Start with: $to/start.sh"
"""

INSTALL_PS1 = """# Installs labkit from this folder, without a network, into ~/labkit-workshop (or LABKIT_VENV).
$ErrorActionPreference = "Stop"
$here = Split-Path -Parent $MyInvocation.MyCommand.Path
$to = if ($env:LABKIT_VENV) { $env:LABKIT_VENV } else { Join-Path $HOME "labkit-workshop" }
$python = if ($env:PYTHON) { $env:PYTHON } else { "python" }
function Run { & $args[0] @($args | Select-Object -Skip 1); if ($LASTEXITCODE) { exit $LASTEXITCODE } }
Run $python "$here\\check.py" $to
Run $python -m venv $to
$to = (Resolve-Path $to).Path
$env:PIP_DISABLE_PIP_VERSION_CHECK = "1"
Run "$to\\Scripts\\python.exe" -m pip install --quiet --no-index --find-links "$here\\wheels" "labkit-lm[lab]"
New-Item -ItemType Directory -Force "$to\\notebooks\\grids" | Out-Null
Get-ChildItem "$here\\notebooks\\*.ipynb" | ForEach-Object {
  if (-not (Test-Path "$to\\notebooks\\$($_.Name)")) { Copy-Item $_.FullName "$to\\notebooks" }
}
Copy-Item -Force "$here\\grids\\*.npz" "$to\\notebooks\\grids"
Get-ChildItem -Recurse -File "$to\\notebooks" | ForEach-Object { $_.IsReadOnly = $false }
@"
if (-not (Test-Path "$here\\cache")) { throw "$here is not there: put it back, or run install.ps1 where it is now" }
`$env:LABKIT_CACHE = "$here\\cache"
& "$to\\Scripts\\labkit.exe" lab --ServerApp.root_dir="$to\\notebooks" `$args
"@ | Set-Content "$to\\start.ps1"
$env:LABKIT_CACHE = "$here\\cache"
Run "$to\\Scripts\\labkit.exe" workshop check $here
Write-Host "Start with: $to\\start.ps1"
"""

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5b6169; --paper: #fdfdfc; --line: #d9dce0; --code: #f1f2f4 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7e9; --soft: #a2a8b0; --paper: #17191c; --line: #363a40; --code: #23262b }
}
body { font: 17px/1.55 system-ui, sans-serif; color: var(--text); background: var(--paper); margin: 0 auto;
  max-width: 44rem; padding: 2rem 1.2rem 4rem }
h1 { font-size: 1.7rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
p.soft, footer { color: var(--soft) } li { margin: .35rem 0 } section { border-top: 1px solid var(--line) }
code { background: var(--code); padding: .1em .35em; border-radius: 4px; font-size: .9em; overflow-wrap: anywhere }
"""

_STEPS = {
    "linux": (
        "Linux",
        ("Open a terminal in this folder.", "<code>sh install.sh</code>", "<code>~/labkit-workshop/start.sh</code>"),
    ),
    "macos": (
        "macOS",
        (
            "Open Terminal, type <code>cd</code> and a space, drag this folder onto the window and press Return.",
            "<code>sh install.sh</code>",
            "<code>~/labkit-workshop/start.sh</code>",
        ),
    ),
    "windows": (
        "Windows",
        (
            "In this folder, hold Shift, click the right button and open PowerShell.",
            "<code>powershell -ExecutionPolicy Bypass -File install.ps1</code>",
            "<code>powershell -ExecutionPolicy Bypass -File ~\\labkit-workshop\\start.ps1</code>",
        ),
    ),
}


def page(wheels: dict[str, list[str]], *, notebooks: list[str], size: str) -> str:
    """The page for participants, HTML that needs nothing else.

    Args:
        wheels: the versions of Python that there are packages for, by platform.
        notebooks: file names.
        size: of the folder, for people.
    """
    parts = []
    for name, versions in wheels.items():
        title, steps = _STEPS[name]
        python = escape(" or ".join(versions))
        items = "".join(f"<li>{step}</li>" for step in steps)
        parts.append(f"<section><h2>{title}</h2><p class=soft>Needs Python {python}.</p><ol>{items}</ol></section>")
    files = "".join(f"<li>{escape(name)}</li>" for name in notebooks)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>labkit workshop</title><style>{_STYLE}</style>\n<h1>labkit workshop</h1>"
        "<p>Everything is in this folder; no network is needed. Three steps: open a terminal here, install, start.</p>"
        f"<p class=soft>Copy the folder to your disk first ({escape(size)}). It stays where the model is read "
        "from, so do not move it afterwards.</p>\n"
        + "\n".join(parts)
        + f"\n<section><h2>Notebooks</h2><ul>{files}</ul></section>"
        "<section><h2>If it does not work</h2><p><code>python3 check.py</code> (Windows: <code>python check.py</code>) "
        "says in one line what is wrong. Show that line to your teacher.</p></section></html>\n"
    )
