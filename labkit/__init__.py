"""labkit: look inside open language models from a notebook.

The public names, and nothing else; `__init__.pyi` lists them. They load when first used, so `import labkit` stays
light: torch, transformers and ipywidgets are imported only by the names that need them.
"""

import lazy_loader

from labkit import _moved
from labkit._version import __version__ as __version__

_moved.install()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
