"""How the documentation is built: `make docs`. The sources are this folder and the pages that stand beside the code."""

import torchassay

project = "torchassay"
release = version = torchassay.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/results/*.md", "benchmarks/papers/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
default_role = "py:obj"  # `name` in a docstring links to it, where there is such a page
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
html_theme = "furo"
html_title = "torchassay"
