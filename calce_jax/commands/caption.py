"""Transcribe videos: `calce caption --videos=FILE_OR_DIR --out=DIR --model=HUB_ID_OR_DIR [--language=en]`.

Writes DIR/<stem of the video>.srt for every video that has none there yet, the captions that `calce prepare --srts=DIR`
reads. Run the same command again to continue. Failures are listed at the end and in DIR/failures.jsonl; the exit code
is 1 only if every video failed. --model is also a size: tiny.en, base, small, medium, large-v3, turbo.
--runner=DirectRunner runs an Apache Beam pipeline instead, or another of Beam's runners; its flags follow after --.
"""

from collections.abc import Callable
from typing import Any, cast

import click
from click.core import ParameterSource

from calce_jax.commands.command import FILE, FOLDER, Command, switch
from calce_jax.commands.flags.beam import beam_module, pipeline_options, runner_option
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.runner import warn_deprecated
from calce_jax.speech.inputs import CaptioningError, find_videos, resolve_whisper_name
from calce_jax.speech.options import TranscriptionOptions


def renamed(old: str, new: str) -> Callable[[Any], Any]:
    """Return a decorator that adds the hidden switch --OLD, which sets --NEW and says so."""

    def set_new(ctx: click.Context, param: click.Parameter, value: bool | None) -> None:
        if value is not None:
            warn_deprecated(f"--{old}", f"--{new}")
            ctx.params[new] = value
            ctx.set_parameter_source(new, ParameterSource.COMMANDLINE)  # a later --NEW replaces it

    return click.option(f"--{old}/--no{old}", default=None, hidden=True, expose_value=False, callback=set_new)


@click.command("caption", cls=Command, help=__doc__)
@click.option("--videos", type=FILE, required=True, help="a video or audio file, or a folder of them")
@click.option("--out", type=FOLDER, required=True, help="output folder of the .srt files")
@click.option(
    "--model", type=FOLDER, required=True, help="Whisper model: a folder, a name on the Hugging Face hub, or a size"
)
@click.option("--language", help="language, such as de or German; detected for each video unless given")
@switch(
    "word_timestamps",
    help="also write DIR/<stem>.json with the time of every word, by which captions then begin and end",
)
@click.option("--hotwords", help='words that are likely to be said, such as names: "Jezero, Ingenuity"')
@click.option("--max_line_width", type=click.IntRange(min=1), help="break captions into lines of so many columns")
@click.option(
    "--max_line_count",
    type=click.IntRange(min=1),
    help="lines of a caption, with --max_line_width; longer ones become several captions  [default: 2]",
)
@click.option(
    "--batch_size", type=click.IntRange(min=1), default=16, help="batch size of this host, in windows of 30 s"
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="of weights and activations; bfloat16 is faster on accelerators",
)
@switch("condition_on_previous_text", help="give the decoder the text of the previous window as a prompt")
@switch("vad_filter", default=True, help="skip audio in which voice activity detection finds no speech")
@renamed("quote", "condition_on_previous_text")  # names in version 0.1
@renamed("only_voices", "vad_filter")
@click.option("--host", type=int, help="index of this host, from 0; that of JAX unless given")
@click.option("--hosts", type=int, help="number of hosts that share the videos; that of JAX unless given")
@runner_option
def command(
    *,
    videos: str,
    out: str,
    model: str,
    language: str | None,
    word_timestamps: bool,
    hotwords: str | None,
    max_line_width: int | None,
    max_line_count: int | None,
    batch_size: int,
    dtype: str,
    condition_on_previous_text: bool,
    vad_filter: bool,
    host: int | None,
    hosts: int | None,
    runner: str | None,
    beam_flags: tuple[str, ...],
) -> None:
    """Transcribe the videos; print the failures and the videos without speech."""
    pipeline = pipeline_options(runner, beam_flags)
    check_folder("--out=", out)
    resolve_whisper_name(model)
    options = TranscriptionOptions(
        language=language,
        batch_size=batch_size,
        condition_on_previous_text=condition_on_previous_text,
        vad_filter=vad_filter,
        word_timestamps=word_timestamps,
        hotwords=hotwords,
        max_line_width=max_line_width,
        max_line_count=max_line_count,
    )
    files = find_videos(videos)

    from calce_jax.speech.captioning import caption_videos, lazy_transcriber
    from calce_jax.speech.whisper_model import Dtype

    model_dtype = cast(Dtype, dtype)
    if pipeline is None:
        transcriber = lazy_transcriber(model, options, model_dtype)
        result = caption_videos(
            files, out, transcriber, word_timestamps=word_timestamps, process_index=host, process_count=hosts
        )
    else:
        result = beam_module(runner).caption_videos(
            files, out, model, pipeline, transcribe_options=options, dtype=model_dtype
        )
    for failure in result.failures:
        print(f"{failure.reason}; {failure.remedy}")
    for line in result.silent_lines():
        print(line)
    for path in result.without_words:
        print(f"{path}: existed already, so --word_timestamps does nothing; remove it to get a .json")
    print(
        f"{len(result.written)} files of captions written to {out}, {len(result.existing)} existed already; "
        f"{result.seconds / 3600:.2f} hours of audio; {len(result.failures)} videos failed"
    )
    if result.failures and not result.written and not result.existing:
        raise CaptioningError("no video could be transcribed", "see the errors above")
