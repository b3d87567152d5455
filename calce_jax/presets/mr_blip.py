"""Fields of Mr. BLIP's runs: one stage, every frame in full, and the query alone.

Frames, epochs and rates are those of its published configs. A micro-step has four videos here, an optimizer step 32.
"""

from dataclasses import dataclass, replace

from calce_jax.config import KeyframesConfig
from calce_jax.presets.datasets import DatasetDefaults, schedule

VIDEOS_PER_STEP = 32  # of the optimizer
MAX_TEXT_TOKENS = 640  # times and query; there are no captions


@dataclass(frozen=True)
class MrBlipRun:
    """What a dataset's run differs in."""

    frames: int
    epochs: int
    floor: float
    warmup_steps: int  # of four videos


RUNS = {
    "qvhighlights": MrBlipRun(frames=60, epochs=50, floor=0.0, warmup_steps=9025),
    # 698 steps of 32 videos.
    "charades_sta": MrBlipRun(frames=20, epochs=20, floor=0.0, warmup_steps=5584),
    # 23,390 steps of eight videos.
    "activitynet": MrBlipRun(frames=60, epochs=50, floor=3e-5, warmup_steps=46_780),
}


def as_mr_blip(dataset: str, defaults: DatasetDefaults) -> DatasetDefaults:
    """Return the defaults of a dataset's stage 1 for Mr. BLIP; datasets that it has no run on keep their schedule."""
    data = replace(defaults.data, captions=1, use_captions=False)
    if dataset in RUNS:
        run = RUNS[dataset]
        # 60 frames are not among the 150 that CALCE's stages have of a video of QVHighlights.
        directory = f"{data.directory}_{run.frames}" if dataset == "qvhighlights" else data.directory
        defaults = replace(
            defaults,
            data=replace(data, frames=run.frames, directory=directory),
            schedule=schedule(run.epochs, 3e-4, run.floor, run.warmup_steps),
            accumulate=VIDEOS_PER_STEP // data.batch,
        )
    else:
        defaults = replace(defaults, data=data)
    return replace(
        defaults,
        keyframes=KeyframesConfig(mode="all", clusters=1, dilation=0, filter_dilation=0),
        text_tokens=min(defaults.text_tokens, MAX_TEXT_TOKENS),
        num_buckets=1,  # all prompts are of nearly the same length
    )
