"""Read, write, list and delete S3 objects on stores of any make, through one boto3 client.

Start reading with `requests`. boto3 retries requests that fail or receive a 5xx response. The modules here handle the
remaining cases: racing conditional puts, bodies that end early or stall, uploads whose last response was lost, and
stores that lack a part of S3. A store without conditional puts is refused before its first record, because an ignored
If-None-Match loses records in silence. What else is missing (the checksums of 2022, the deletion of many objects, list
type 2) is done in the older way. Every error leaves this package by its cause (cluster/stores/errors.py).
"""
