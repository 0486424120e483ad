"""How a layer is built where nobody has its code: data in, a module of ours out.

``format`` holds the messages, ``catalogue`` the torch layers that may be named, ``describe`` writes a live module
down, ``build`` makes it again. A worker needs ``decode`` and ``build`` alone.
"""

from manyhands.pipeline.recipes.build import BuiltLayer, build
from manyhands.pipeline.recipes.format import Recipe, decode, encode

__all__ = ["BuiltLayer", "Recipe", "build", "decode", "encode"]
