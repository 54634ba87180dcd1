"""The demo's small web: pictures, captions and pages with known faults, as WARC archives and a server on loopback.

`site` makes all of it and is the place to start. `scenes` says what a picture shows, `render` draws it, `dirt` decides
what is wrong with it, `server` serves it. Imports nothing of ours.
"""
