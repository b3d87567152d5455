"""The model card of a trained model: README.md with the metadata that the Hugging Face hub searches."""

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from calce_jax.checkpoints.model_folder import STAGES, StageRecord
from calce_jax.config import DatasetName, ModelSize
from calce_jax.storage.provenance import installed_version

# A video and text in, text out: the hub's task that is nearest; it has none for moment retrieval.
PIPELINE_TAG = "video-text-to-text"
TAGS = ("video-moment-retrieval", "temporal-grounding", "video-search", "jax")
_BERT = "google-bert/bert-base-uncased"
BASE_MODELS: dict[ModelSize, tuple[str, ...]] = {
    "full": ("Salesforce/blip2-flan-t5-xl", _BERT),
    "full_xxl": ("Salesforce/blip2-flan-t5-xxl", _BERT),
    "small": (),
    "tiny": (),
}
DATASETS: dict[DatasetName, str] = {
    "qvhighlights": "QVHighlights",
    "charades_sta": "Charades-STA",
    "activitynet": "ActivityNet Captions",
    "shapes": "shapes, the made-up videos of calce_jax",
}


def model_card(repo: str, stages: Sequence[StageRecord], licence: str | None) -> str:
    """Return the text of README.md.

    Args:
      repo: "owner/name".
      stages: of the model; their scores are those that were recorded when they were trained, and no others.
      licence: the hub's identifier of the licence, or None if the publisher does not state one.
    """
    config = stages[-1].config
    base_models = BASE_MODELS[config.model.size]
    data = ModelCardData(
        license=licence,
        library_name="calce_jax",
        pipeline_tag=PIPELINE_TAG,
        tags=list(TAGS),
        base_model=list(base_models) or None,
        language="en",
    )
    made_of = (
        " and ".join(f"[{name}](https://huggingface.co/{name})" for name in base_models)
        or f"the base weights of the size `{config.model.size}` of calce_jax"
    )
    terms = (
        f"`{licence}`, as its publisher states. The base models have licences of their own."
        if licence
        else "Its publisher states no licence. The base models have licences of their own."
    )
    scores = "\n".join(_score_row(name, stage) for name, stage in zip(STAGES, stages, strict=True))
    return f"""---
{data.to_yaml()}
---

# {repo}

Finds the moments of a video that a sentence describes, as [start, end] in seconds: CALCE, both stages, for
[calce_jax](https://pypi.org/project/calce_jax/). The size is `{config.model.size}`; it was trained on
{DATASETS[config.data.dataset]}, from {made_of}.

```python
import calce_jax

model = calce_jax.load("hf:{repo}", yes=True)
print(model.search("film.mp4", "a dog catches a ball"))
```

or `calce search film.mp4 "a dog catches a ball" --checkpoint=hf:{repo}`.

## Scores

Recorded by the training run of each stage, in percent, by the original's protocol. R1_avg is the mean of R1@0.5 to
R1@0.95 in steps of 0.05. What was not measured is not stated.

| stage | measured on | R1_avg |
|---|---|---|
{scores}

## Files

`base.safetensors` has the weights before training; `stage1/` and `stage2/` have what was trained
(`trained.safetensors`) and the config of the run (`config.json`); `t5/` and `bert/` are the tokenizers. Nothing is
pickled. Written by calce_jax {installed_version()}.

## Licence

{terms}
"""


def _score_row(name: str, stage: StageRecord) -> str:
    score = stage.scores.get("R1_avg")
    if score is None:
        return f"| {name} | not recorded | not recorded |"
    data = stage.config.data
    return f"| {name} | {DATASETS[data.dataset]}, split `{data.eval_split}` | {score:.2f} |"
