"""Sphinx builds the site from the Markdown pages and the docstrings (``make docs``). It needs no network."""

from importlib import metadata

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "rmsnorm"
version = release = metadata.version("rmsnorm")
copyright = "the rmsnorm authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"rmsnorm {version}"
html_copy_source = False
html_math_renderer = "mathml"

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
myst_heading_anchors = 3


def block(writer, node):
    """Write a formula of its own line."""
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def inline(writer, node):
    """Write a formula within a line."""
    writer.body.append(convert(node.astext()))
    raise SkipNode


def setup(app):
    """Formulas become MathML, which browsers show without a script or a font from elsewhere."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
