"""The version of labkit and the name it is installed by; both stand here and nowhere else.

One imports `labkit` and installs `labkit-lm`: on the package index the shorter name is another project's.
"""

__version__ = "0.2.0"
DISTRIBUTION = "labkit-lm"


def install_command(extra: str = "") -> str:
    """What to type to install labkit, or what one of its extras (`lab`, `scale`) still lacks."""
    return f'pip install "{DISTRIBUTION}[{extra}]"' if extra else f"pip install {DISTRIBUTION}"
