"""What `calce search` is given: videos and sentences, sorted and checked before jax is imported."""

import os
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import click

from calce_jax.commands.flags.model import find_checkpoint
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.flags.search import FORMATS, Options
from calce_jax.errors import UsageError
from calce_jax.search.paths import check_any_exists
from calce_jax.search.player import find_player
from calce_jax.speech.inputs import resolve_whisper_name
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.text.languages import check_language
from calce_jax.video.files import is_video_name

DEFAULT_OUT = "found"
MAX_SLUG_LENGTH = 40


class Inputs(NamedTuple):
    """What a search reads.

    Attributes:
      paths: files and folders, as given.
      queries: sentences.
      out: output folder, or None.
    """

    paths: list[str]
    queries: list[str]
    out: str | None


def read_inputs(arguments: Sequence[str], options: Options) -> Inputs:
    """Sort the arguments into videos and sentences.

    An argument is a video if there is such a file or folder, or its name ends like that of a video.

    Raises:
      click.UsageError: there is no video, so the usage is shown.
      UsageError: there is no sentence; or --library is given with a video.
    """
    paths = [text for text in arguments if os.path.exists(text) or is_video_name(Path(text))]
    if options.library and paths:
        raise UsageError(f"--library searches the videos of the library; leave {paths[0]} out, or --library")
    queries = [text for text in arguments if text not in paths] + list(options.query)
    if not paths and not options.library:
        missing = f" (there is no file {arguments[0]})" if arguments else ""
        raise click.UsageError(f"no video{missing}; give files, or folders of videos")
    if not queries:
        raise UsageError('no sentence; describe the moment in quotes: calce search film.mp4 "a dog catches a ball"')
    out = options.out
    if out is None and not options.json:
        slug = "-".join(re.findall(r"\w+", queries[0].lower()))[:MAX_SLUG_LENGTH].strip("-")
        out = f"{DEFAULT_OUT}/{slug or 'moments'}"
    return Inputs(paths, queries, out)


def check_inputs(inputs: Inputs, options: Options) -> None:
    """Check the command line before jax is imported.

    Raises:
      UserError: --out is a file; hotwords are empty; there is no such language or format; a Whisper model, a
        checkpoint, a player or every video is missing; or flags exclude each other.
    """
    if inputs.out is not None:
        check_folder("--out=", inputs.out)
    if unknown := [name for name in options.export if name not in FORMATS]:
        raise UsageError(f"--export={unknown[0]}: no such format; choose among {', '.join(FORMATS)}")
    if inputs.out is None and (options.export or options.clips or options.whisper):
        flag = "--export" if options.export else "--clips" if options.clips else "--whisper"
        raise UsageError(f"{flag} with --json writes files; say where with --out")
    if options.mode == "speech" and options.checkpoint is not None:
        raise UsageError("--mode=speech uses no model; leave --checkpoint out, or search with --mode=both")
    if options.mode != "picture" and options.srt == "none":
        raise UsageError(f"--mode={options.mode} searches captions, and --srt=none says that there are none")
    if options.searches_index and (options.srt != "auto" or options.whisper):
        raise UsageError("--library --mode=speech searches captions that are indexed; leave --srt and --whisper out")
    if options.language is not None:
        check_language(options.language)
    TranscriptionOptions(hotwords=options.hotwords)
    for flag, value in (("handles", options.handles), ("min_score", options.min_score)):
        if value is not None and not isfinite(value):
            raise UsageError(f"--{flag}={value}: must be a number")
    if options.play:
        find_player()
    if options.whisper:
        resolve_whisper_name(options.whisper)
    if not options.library:
        check_any_exists(inputs.paths)
    find_checkpoint(options.model)


def idle_options(options: Options) -> list[str]:
    """Return a line for each option that is given and does nothing beside the others."""
    lines = []
    if options.whisper and options.srt != "auto":
        lines.append(f"--whisper does nothing with --srt={options.srt}")
    if options.hotwords and not (options.whisper and options.srt == "auto"):
        lines.append("--hotwords does nothing without --whisper")
    if options.language and options.searches_index:
        lines.append("--language does nothing with --library --mode=speech, which searches captions that are indexed")
    elif options.language and options.srt != "auto" and not os.path.isdir(options.srt):
        lines.append(f"--language does nothing with --srt={options.srt}")
    if options.library_file and not options.library:
        lines.append("--library_file does nothing without --library")
    return lines
