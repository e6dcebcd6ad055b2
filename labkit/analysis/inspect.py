"""Moved to `labkit.patching.cell_report`; here for notebooks of version 0.1."""

import warnings

from labkit.patching.cell_report import together as together
from labkit.patching.cell_report import transplant as transplant

warnings.warn(
    "labkit.analysis.inspect has moved: from labkit.patching.cell_report import together, transplant",
    DeprecationWarning,
    stacklevel=2,
)
