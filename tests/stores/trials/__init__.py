"""Tests of the imitated stores themselves."""
