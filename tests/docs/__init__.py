"""Tests of the documentation.

`shell_blocks` finds the commands that it shows, and `test_commands` checks them. tests/faults/test_commands.py runs
those for a cluster.
"""
