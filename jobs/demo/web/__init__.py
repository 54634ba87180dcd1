"""The demo's small web: pictures, captions and pages with known faults, as WARC archives and a local server.

Start reading with `site`, which generates everything. `scenes` describes what a picture shows, `render` draws it,
`dirt` chooses its faults, and `server` serves it. The package imports no other package of this project.
"""
