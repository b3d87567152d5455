"""Convert answers of the model to the views of the page."""

from collections.abc import Mapping, Sequence

from calce_jax.inference.answers import Answer
from calce_jax.input_pipeline.example import Example
from calce_jax.moments.saliency import clip_saliency
from calce_jax.report.page import CaptionView, FrameView, MomentView, QueryView, StageView
from calce_jax.text.caption import Caption
from calce_jax.text.captions import clean_captions


def query_view(
    example: Example,
    answers: Mapping[str, Answer],
    pictures: Sequence[tuple[float, bytes]],
    *,
    has_truth: bool = True,
    video_src: str | None = None,
) -> QueryView:
    """Return the view of one query.

    Args:
      example: the query and its video.
      answers: the answer of each stage by name, in the order they ran.
      pictures: (second, JPEG) of the last stage's key frames, in order of time; an earlier stage with fewer key frames
        is shown with every n-th of them.
      has_truth: False if the true windows are unknown; those of an example without windows are, unless it is absent.
      video_src: see `QueryView`.
    """
    stages = {}
    for name, answer in answers.items():
        step = max(len(pictures) // max(len(answer.treatments), 1), 1)
        stage_pictures = zip(pictures[::step], answer.treatments, strict=False)
        stages[name] = StageView(
            frames=[FrameView(second, jpeg, treatment) for (second, jpeg), treatment in stage_pictures],
            moments=[MomentView(*window) for window in answer.moments.windows],
            raw_text=answer.moments.text,
            is_absent=answer.moments.is_absent,
            # Other beams may have windows; the answer says that there are none.
            saliency=() if answer.moments.is_absent else clip_saliency(answer.moments.hypotheses, example.duration),
        )
    last_answer = list(answers.values())[-1]
    captions = clean_captions([Caption(*caption) for caption in example.captions])
    return QueryView(
        qid=example.qid,
        video=example.video,
        query=example.query,
        kind=example.kind or "",
        duration=example.duration,
        truth=(
            [MomentView(*window) for window in example.windows.tolist()]
            if has_truth and (len(example.windows) or example.is_absent)
            else None
        ),
        stages=stages,
        captions=[
            CaptionView(
                float(caption.start),
                float(caption.end),
                caption.text,
                round(last_answer.caption_similarity[n], 3),
                n in last_answer.used_captions,
            )
            for n, caption in enumerate(captions)
            if n in last_answer.caption_similarity
        ],
        video_src=video_src,
    )
