import struct

import pytest

from pipeline.train.telemetry.curves import draw_curves, smoothed
from pipeline.train.telemetry.metrics import Metrics, ValidationRow


def row(step: int, *, contrastive: bool = True) -> Metrics:
    return Metrics(
        step=step,
        epoch=step / 10,
        loss=3 / step,
        accuracy_image_to_text=1 - 1 / step if contrastive else None,
        accuracy_text_to_image=1 - 1 / step if contrastive else None,
        logit_scale=14.0 + step if contrastive else None,
        learning_rate=1e-3 / step,
        gradient_norm=1.0,
        samples_per_second=100.0,
        data_wait_share=0.1,
        images_seen=8 * step,
        peak_memory_gib=1.0,
        seconds=float(step),
    )


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_only_quantities_with_values_get_a_panel() -> None:
    scores = [ValidationRow(step=step, images_seen=8 * step, scores={"pairs/r@1": 0.1 * step}) for step in (2, 4)]
    rows = [row(step) for step in range(1, 200)]
    assert size(draw_curves(rows, scores)) == (1456, 1365), "six panels: loss, accuracy, rate, scale, norm, scores"
    assert size(draw_curves(rows)) == (1456, 1365), "five panels"
    assert size(draw_curves([row(1, contrastive=False)])) == (1456, 910), "three panels: loss, rate, norm"


def test_smoothing_has_no_lag_and_keeps_straight_lines() -> None:
    assert smoothed([2.0] * 200) == pytest.approx([2.0] * 200)
    line = smoothed([float(value) for value in range(200)])
    assert line[50:150] == pytest.approx(list(range(50, 150)), abs=0.01)
    noise = [(-1.0) ** value for value in range(200)]
    assert max(map(abs, smoothed(noise)[5:-5])) < 0.3
