"""The site of the guides: `make docs`. All it shows is in it: no page asks a network for fonts or scripts."""

project = "leaplm"
author = "the leaplm authors"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Language models that leap",
    "page_width": "62rem",
    "font_family": "system-ui, sans-serif",
}
html_show_sourcelink = False
myst_heading_anchors = 3
