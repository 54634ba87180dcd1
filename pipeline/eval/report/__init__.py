"""Write the report of a run: one self-contained HTML page with charts.

May import `protocols`, `model.config` and `pipeline.paper`. Start with `report` and report.html.j2. `charts` draws SVG;
`overlap`, `objectives`, `queries` and `link_rot` each prepare one section.
"""
