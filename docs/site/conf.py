"""Sphinx's settings: `sphinx-build -c docs/site SOURCES build/docs`."""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from refsd.version import __version__  # noqa: E402

project, author, release = "refsd", "the refsd authors", __version__
html_title = f"refsd {release}"
copyright = "the refsd authors, MIT licence"
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the outputs that are stored in the notebooks are shown
smartquotes = False  # quotes and dashes belong to commands and values
html_theme = "furo"
html_static_path = ["static"]
html_extra_path = [str(ROOT / "build" / "docs-source" / "extra")]
html_css_files = ["refsd.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
suppress_warnings = ["mystnb.unknown_mime_type"]
logger = logging.getLogger(__name__)


def mathml(node, display):
    """TeX as MathML, which browsers draw themselves: no script, and nothing to fetch."""
    found = convert(node.astext(), display=display)
    if "\\" in found:  # what it does not know it leaves as it is
        logger.warning("formula %r: a command that is not known", node.astext(), location=node)
    return found


def inline(self, node):
    """A formula within a line."""
    self.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def displayed(self, node):
    """A formula by itself."""
    self.body.append(f'<div class="math">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Take formulas into our own hands."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
