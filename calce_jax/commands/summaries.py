"""The commands by name, each with a summary and an example: what help and completion show without importing them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """A one-line summary of a command, and an example of its use."""

    summary: str
    example: str


COMMANDS = {
    "search": Summary(
        "find moments in videos, and write a page that plays them",
        'calce search holiday.mp4 "a dog catches a ball"',
    ),
    "index": Summary("keep a library of videos, to search them all at once", "calce index ~/Videos"),
    "ls": Summary("list the videos of the library", "calce ls"),
    "cut": Summary("cut a part out of a video", "calce cut holiday.mp4 1:06 1:17 --copy"),
    "web": Summary("search videos in a browser", "calce web --checkpoint runs/demo"),
    "models": Summary("list published models, and what is here of them", "calce models"),
    "push": Summary("publish a trained model on the Hugging Face hub", "calce push runs/demo owner/name --private"),
    "fetch": Summary("fetch published weights and annotations", "calce fetch --what=bert --out=downloads/bert"),
    "prepare": Summary(
        "decode the videos of a dataset once, and write the tables that training reads",
        "calce prepare --dataset=shapes --videos=videos --srts=srts --annotations=train.jsonl --out=prepared",
    ),
    "caption": Summary(
        "transcribe the speech of videos to .srt files", "calce caption --videos=videos --out=srts --model=tiny.en"
    ),
    "cache_features": Summary(
        "store the features of the frozen vision encoder, so that training need not compute them again",
        "calce cache_features --config=qvhighlights,stage=2 --out=runs/features/qvhighlights",
    ),
    "train": Summary("train one stage", "calce train --config=qvhighlights,stage=1 --workdir=runs/qvhighlights_stage1"),
    "fit_ranker": Summary(
        "fit the ranker that chooses the segments of a library", "calce fit_ranker --checkpoint=runs/demo"
    ),
    "calibrate": Summary(
        "measure from which score on a query happens in a video", "calce calibrate --checkpoint=runs/demo"
    ),
    "infer": Summary(
        "predict the moments of every query of a split",
        "calce infer --workdir=runs/qvhighlights_stage1 --split=val --out=runs/qvhighlights_stage1/val.jsonl",
    ),
    "merge": Summary(
        "add the windows that stage 1 predicted to the annotations of stage 2",
        "calce merge --predictions=val.jsonl --annotations=val.json --out=merged_val.jsonl",
    ),
    "evaluate": Summary(
        "score predictions", "calce evaluate --predictions=val.jsonl --annotations=val.json --out=scores.json"
    ),
    "config": Summary("show every field of a run's config", "calce config qvhighlights,stage=2"),
    "convert": Summary(
        "convert weights between published formats and ours",
        "calce convert --source=hf:blip2,bert:bert --target=base:full.safetensors",
    ),
    "completion": Summary("print the completion script of a shell", "calce completion bash"),
}
