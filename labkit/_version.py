"""The version of labkit and the name it is installed by, defined only here.

It is installed as `labkit-lm` and imported as `labkit`, a name that another project has on the package index.
"""

__version__ = "0.2.0"
DISTRIBUTION = "labkit-lm"


def install_command(extra: str = "") -> str:
    """What to type to install labkit, or what one of its extras (`lab`, `scale`, `probe`, `serve`) still lacks."""
    return f'pip install "{DISTRIBUTION}[{extra}]"' if extra else f"pip install {DISTRIBUTION}"
