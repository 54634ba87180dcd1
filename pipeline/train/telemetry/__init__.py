"""What a run reports: metrics.jsonl, validation.jsonl, TensorBoard, log lines, curves.

May import `checkpoints`, `step` and `train.config`. Start with `metrics`; `curves` draws the picture,
`tensorboard_events` writes the event file.
"""
