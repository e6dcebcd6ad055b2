"""Moved to `labkit.text`; here for notebooks of version 0.1, which import `align` from this place."""

import warnings

from labkit.text.pair import align as align

warnings.warn("labkit.tokens has moved: from labkit.text.pair import align", DeprecationWarning, stacklevel=2)
