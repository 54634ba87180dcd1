"""Report the progress of a run: metrics.jsonl, validation.jsonl, TensorBoard events, log lines, curves.

May import `checkpoints`, `step` and `train.config`. Start with `metrics`; `curves` draws curves.png,
`tensorboard_events` writes the event file, `progress` reads how far a run is.
"""
