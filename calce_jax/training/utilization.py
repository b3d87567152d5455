"""The share of the devices' peak that training reaches (MFU): operations that the model needs, over those possible."""

from dataclasses import dataclass
from typing import Any

from calce_jax.config import RunConfig
from calce_jax.distributed.chips import peak_flop_per_s
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.flops import StepShape, train_row


@dataclass(frozen=True)
class Utilization:
    """Relates what a run does to the peak of its devices.

    Fields:
      config: of the run.
      model_config: sizes of its model.
      peak: of all devices together, FLOP/s.
    """

    config: RunConfig
    model_config: CalceConfig
    peak: float

    def mfu(self, *, frames: float, tokens: float, step_seconds: float) -> float:
        """Return the model FLOP utilization, 0 to 1.

        Args:
          frames: real frames of a step, over all hosts.
          tokens: real tokens of the prompts of a step, over all hosts.
          step_seconds: of a step, data and logging included.
        """
        return self.step_flop(frames=frames, tokens=tokens) / step_seconds / self.peak

    def step_flop(self, *, frames: float, tokens: float) -> float:
        """Return the floating-point operations of a step; attention counts prompts of the mean length."""
        config, rows = self.config, self.config.data.batch
        shape = StepShape(
            frames=frames / rows,
            slots=frames / rows if config.stage == 1 else frames / rows / 2,
            prompt=tokens / rows,
            answer=config.text.answer_tokens,
            sentences=1 + config.data.captions,
            sentence=config.text.bert_tokens,
        )
        has_features = bool(config.data.features)
        row = train_row(
            self.model_config,
            shape,
            stage=config.stage,
            run_vit=not has_features,
            # Where `ln_vision` is frozen, what is stored is the Q-Former's output.
            run_qformer=not has_features,
        )
        return float(rows * row)


def measure_utilization(config: RunConfig, model_config: CalceConfig, devices: Any) -> Utilization | None:
    """Return the utilization to log, or None if the peak of a device is not known, as of a CPU.

    Also None in training by rewards, whose sampled answers and second encoding `train_row` does not count.

    Args:
      config: of the run.
      model_config: sizes of its model.
      devices: all of the mesh, an iterable of `jax.Device`.
    """
    if config.objective == "reward":
        return None
    peaks = [peak_flop_per_s(device.device_kind, config.model.compute_dtype) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return Utilization(config, model_config, sum(known)) if peaks and len(known) == len(peaks) else None
