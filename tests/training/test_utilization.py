from dataclasses import dataclass, replace

import pytest

from calce_jax.distributed.chips import PEAK_TFLOP_PER_S
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.flops import StepShape, train_row
from calce_jax.presets.runs import get_preset
from calce_jax.training.utilization import measure_utilization


@dataclass
class Chip:
    device_kind: str


RUN, SIZES = get_preset("qvhighlights,stage=1"), CalceConfig.full()


def test_mfu_is_the_share_of_the_peak_of_all_devices():
    utilization = measure_utilization(RUN, SIZES, [Chip("NVIDIA H200")] * 2)
    assert utilization is not None
    assert utilization.peak == 2 * 989e12
    # Four videos of 75 frames, of 70 after padding; prompts of 2,000 tokens.
    row = train_row(SIZES, StepShape(70, 70, 2000, RUN.text.answer_tokens, 65, RUN.text.bert_tokens), stage=1)
    flop = utilization.step_flop(frames=280.0, tokens=8000.0)
    assert flop == pytest.approx(4 * row)
    assert utilization.mfu(frames=280.0, tokens=8000.0, step_seconds=0.5) == pytest.approx(flop / 0.5 / (2 * 989e12))


def test_stage_2_has_half_of_the_slots_and_features_replace_the_vit():
    run = get_preset("qvhighlights,stage=2")
    stage2 = measure_utilization(run, SIZES, [Chip("TPU v4")])
    stored = measure_utilization(replace(run, data=replace(run.data, features="features")), SIZES, [Chip("TPU v4")])
    assert stage2 is not None
    assert stored is not None
    shape = StepShape(150, 75, 1500, run.text.answer_tokens, 65, run.text.bert_tokens)
    assert stage2.step_flop(frames=600.0, tokens=6000.0) == pytest.approx(4 * train_row(SIZES, shape, stage=2))
    without_vit = 4 * train_row(SIZES, shape, stage=2, run_vit=False)
    assert stored.step_flop(frames=600.0, tokens=6000.0) == pytest.approx(without_vit)


def test_unknown_chips_and_dtypes_have_no_mfu():
    assert measure_utilization(RUN, SIZES, [Chip("cpu")]) is None
    assert measure_utilization(RUN, SIZES, [Chip("NVIDIA H200"), Chip("cpu")]) is None
    float32 = replace(RUN, model=replace(RUN.model, compute_dtype="float32"))
    assert measure_utilization(float32, SIZES, [Chip("NVIDIA H200")]) is None
    assert measure_utilization(replace(RUN, objective="reward"), SIZES, [Chip("NVIDIA H200")]) is None
    assert all(20 < peak < 3000 for peak in PEAK_TFLOP_PER_S.values())
