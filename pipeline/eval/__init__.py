"""The evaluation protocols and the report."""
