"""Fuzzing of everything that reads input from outside: `python -m tests.fuzz TARGET --seconds 600`.

`targets` lists the targets. Coverage guides the fuzzer (atheris, libFuzzer); `make faults` runs each target for a
minute. An input that raises, takes longer than MAX_SECONDS or more than MAX_MIB is a finding: it is written to a file,
and becomes a seed of its target once it is mended.
"""
