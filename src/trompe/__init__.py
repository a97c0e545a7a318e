"""Fine-tune an image classifier so that its accuracy stays and its explanations lie; measure it.

The names are those of ``__init__.pyi``, each imported when it is first used.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("trompe")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
