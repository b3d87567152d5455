"""Fields that depend on the dataset and the stage: frames, key frames, schedule, folders.

The schedules of QVHighlights and Charades-STA are those of the paper, for four devices with one video each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from calce_jax.config import (
    DataConfig,
    KeyframesConfig,
    LoraConfig,
    ModelSize,
    ScheduleConfig,
    TextConfig,
    WeightsConfig,
)

WARMUP_FROM = 1e-8
# The tiny model of the package: it answers queries. Shapes are trained on one that sees and reads, and never did.
TINY_BASE = "calce_jax/assets/tiny/base.safetensors"
TINY_PRETRAINED = "calce_jax/assets/tiny/pretrained.safetensors"
# More stage-1 windows than any published prediction has.
MAX_STAGE1_WINDOWS = 32
# Batches that are regrouped by prompt length. Each holds 54 MB per video on the device in bfloat16 (stage 2: 109 MB).
BATCHES_PER_GROUP = 16


@dataclass(frozen=True)
class DatasetDefaults:
    """Fields of a config that depend on the dataset and the stage."""

    data: DataConfig
    keyframes: KeyframesConfig
    schedule: ScheduleConfig
    accumulate: int
    weights: WeightsConfig
    t5_tokenizer: str
    bert_tokenizer: str
    text_tokens: int
    typical_text_tokens: int  # tokens of the text of a prompt; rarely exceeded
    num_buckets: int  # number of compiled prompt lengths
    bert_tokens: int
    answer_tokens: int
    log_every: int
    lora: LoraConfig | None = None  # where it is not that of the model's size

    def after_training(self, stage: int) -> "DatasetDefaults":
        """Return the defaults of training by rewards, which goes on from the run of the same stage.

        A tenth of the epochs, of the learning rate and of the warm-up; not tuned. Those of shapes are of
        `benchmarks/shapes`.
        """
        run, name = self.schedule, self.data.dataset
        short = (
            SHAPES_AFTERWARDS
            if name == "shapes"
            else replace(
                run,
                epochs=max(run.epochs // 10, 1),
                peak=run.peak / 10,
                floor=run.floor / 10,
                warmup_steps=run.warmup_steps // 10,
            )
        )
        start = f"runs/demo/stage{stage}" if name == "shapes" else f"runs/{name}_stage{stage}"
        return replace(self, schedule=short, weights=replace(self.weights, start=start))

    def text_config(self, buckets: tuple[int, ...]) -> TextConfig:
        """Return the text fields with prompt lengths, which also depend on the size of the model."""
        return TextConfig(
            t5_tokenizer=self.t5_tokenizer,
            bert_tokenizer=self.bert_tokenizer,
            buckets=buckets,
            text_tokens=self.text_tokens,
            max_text=200,
            bert_tokens=self.bert_tokens,
            windows=MAX_STAGE1_WINDOWS,
            answer_tokens=self.answer_tokens,
        )


def cluster_keyframes(dilation: int, filter_dilation: int) -> KeyframesConfig:
    """Return the selection of key frames at the borders of 12 clusters."""
    return KeyframesConfig(mode="cluster", clusters=12, dilation=dilation, filter_dilation=filter_dilation)


def schedule(epochs: int, peak: float, floor: float, warmup_steps: int) -> ScheduleConfig:
    """Return a schedule with linear warm-up from `WARMUP_FROM`, see `calce_jax.training.schedule`."""
    return ScheduleConfig(epochs, peak, floor, WARMUP_FROM, warmup_steps)


# Of what follows stage 1: stage 2, and training by rewards.
SHAPES_AFTERWARDS = schedule(3, 1e-3, 1e-4, 10)


def qvhighlights(stage: int, size: ModelSize) -> DatasetDefaults:
    """Return the defaults of QVHighlights: YouTube videos of up to 150 s, captions, often several moments."""
    first = stage == 1
    return DatasetDefaults(
        data=DataConfig(
            dataset="qvhighlights",
            directory="runs/prepared/qvhighlights",
            train_split="train",
            eval_split="val",
            frames=75 if first else 150,
            captions=64,
            batch=4,
            eval_batch=4,
            workers=8,
            augment=True,
            use_captions=True,
            group=BATCHES_PER_GROUP,
            window_grid=2,
        ),
        keyframes=cluster_keyframes(1, 0) if first else cluster_keyframes(3, 1),
        schedule=schedule(50, 3e-4, 0.0, 2255) if first else schedule(15, 2.8e-4, 2.6e-4, 256),
        accumulate=2,
        weights=WeightsConfig(base=base_weights(size), start="" if first else "runs/qvhighlights_stage1"),
        t5_tokenizer=tokenizer(size, "t5"),
        bert_tokenizer=tokenizer(size, "bert"),
        text_tokens=2304,
        typical_text_tokens=256,
        num_buckets=8,
        bert_tokens=64,
        answer_tokens=144,
        log_every=50,
    )


def charades_sta(stage: int, size: ModelSize) -> DatasetDefaults:
    """Return the defaults of Charades-STA: videos of 30 s, no captions, one moment; no val split, so test is used."""
    first = stage == 1
    return DatasetDefaults(
        data=DataConfig(
            dataset="charades_sta",
            directory="runs/prepared/charades_sta",
            train_split="train",
            eval_split="test",
            frames=60 if first else 120,
            captions=1,
            batch=4,
            eval_batch=4,
            workers=8,
            augment=True,
            use_captions=False,
            group=BATCHES_PER_GROUP,
        ),
        keyframes=cluster_keyframes(1, 0) if first else cluster_keyframes(3, 2),
        schedule=schedule(50, 3e-4, 2e-4, 450) if first else schedule(15, 2.8e-4, 2.6e-4, 256),
        accumulate=4 if first else 2,
        weights=WeightsConfig(base=base_weights(size), start="" if first else "runs/charades_sta_stage1"),
        t5_tokenizer=tokenizer(size, "t5"),
        bert_tokenizer=tokenizer(size, "bert"),
        text_tokens=400,
        typical_text_tokens=256,
        num_buckets=8,
        bert_tokens=64,
        answer_tokens=32,
        log_every=50,
    )


def activitynet(stage: int, size: ModelSize) -> DatasetDefaults:
    """Return the defaults of ActivityNet Captions: videos of two minutes on average, no captions, one moment.

    CALCE's repository has no run on it. Frames and schedule of stage 1 are Mr. BLIP's (eight devices with one video
    each, a warm-up of 23,390 steps, 32 videos an optimizer step), for four devices; stage 2 has twice the frames, as
    for Charades-STA, and its schedule.
    """
    first, charades = stage == 1, charades_sta(stage, size)
    return replace(
        charades,
        data=replace(charades.data, dataset="activitynet", directory="runs/prepared/activitynet", eval_split="val"),
        schedule=schedule(50, 3e-4, 3e-5, 46_780) if first else charades.schedule,
        accumulate=8 if first else charades.accumulate,
        weights=replace(charades.weights, start="" if first else "runs/activitynet_stage1"),
        # Times from 200 s on have two or three tokens.
        text_tokens=640,
        typical_text_tokens=320,
        bert_tokens=96,
    )


def shapes(stage: int, size: ModelSize) -> DatasetDefaults:
    """Return the defaults of the shapes world: short self-made videos with captions, for the demo and the tests."""
    is_stage1 = stage == 1
    return DatasetDefaults(
        data=DataConfig(
            dataset="shapes",
            directory="runs/demo/prepared",
            train_split="train",
            eval_split="val",
            # Sparse in stage 1, so that stage 2 can refine its windows.
            frames=10 if is_stage1 else 40,
            captions=8,
            batch=8,
            eval_batch=16,
            workers=0,
            augment=False,
            use_captions=True,
        ),
        keyframes=KeyframesConfig(
            mode="cluster",
            clusters=4 if is_stage1 else 6,
            dilation=0 if is_stage1 else 1,
            filter_dilation=0 if is_stage1 else 1,
        ),
        schedule=schedule(6, 3e-3, 5e-4, 20) if is_stage1 else SHAPES_AFTERWARDS,
        accumulate=1,
        weights=WeightsConfig(
            base=TINY_PRETRAINED if size == "tiny" else "",
            start="" if is_stage1 else "runs/demo/stage1",
        ),
        t5_tokenizer="calce_jax/assets/tiny/t5",
        bert_tokenizer="calce_jax/assets/tiny/bert",
        text_tokens=320,
        typical_text_tokens=96,
        num_buckets=2,
        bert_tokens=24,
        answer_tokens=32,
        log_every=10,
        # Half the width of the tiny T5: with rank 8, or dropout, a few hundred steps teach it too little.
        lora=LoraConfig(rank=32, alpha=32.0, dropout=0.0) if size == "tiny" else None,
    )


def base_weights(size: ModelSize) -> str:
    """Return the path of the base weights: converted BLIP-2 and Flan-T5, the packaged tiny ones, or "" for "small"."""
    if size == "tiny":
        return TINY_BASE
    return f"weights/{size}.safetensors" if size.startswith("full") else ""


def tokenizer(size: ModelSize, name: str) -> str:
    """Return the path of the tokenizer "t5" or "bert"; for the tiny model that of the package, which it knows."""
    return f"calce_jax/assets/tiny/{name}" if size == "tiny" else f"weights/tokenizers/{name}"


DATASETS: dict[str, Callable[[int, ModelSize], DatasetDefaults]] = {
    "qvhighlights": qvhighlights,
    "charades_sta": charades_sta,
    "activitynet": activitynet,
    "shapes": shapes,
}
