"""Sphinx configuration: ``sphinx-build -W docs docs/_build``."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from pgeverything import __version__  # noqa: E402 - found through the path above

project = "pgeverything"
copyright = "the pgeverything authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "_ext.operations",
    "_ext.commands",
]
exclude_patterns = ["_build"]
default_role = "literal"  # docstrings write `names` as people do in Markdown

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False


html_theme = "furo"
html_title = f"pgeverything {release}"
