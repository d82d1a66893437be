"""The report as one HTML file that needs nothing but itself: `page.py` fills `templates/`, `plots.py` places marks.

Plots are SVG from a template and not from a drawing library: their text stays text, their colours follow the page (dark
mode, print), and 28 methods take a few kilobytes each.
"""
