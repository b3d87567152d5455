"""The options of `calce search`, and their values."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from calce_jax.commands.command import FILE, FOLDER, CommaSeparated, switch
from calce_jax.commands.flags.cache import cache_options
from calce_jax.commands.flags.library import library_option
from calce_jax.commands.flags.model import ModelOptions, batch_option, model_options
from calce_jax.commands.flags.verify import verify_option

if TYPE_CHECKING:
    from calce_jax.search.modes import Mode

FORMATS = ("csv", "edl", "fcpxml", "otio", "vtt", "chapters")


@dataclass(frozen=True)
class Options:
    """The values of the options, by their names."""

    query: tuple[str, ...]
    out: str | None
    checkpoint: str | None
    yes: bool
    models_dir: str | None
    keep_downloads: bool
    batch: int | None
    library: bool
    library_file: str | None
    candidates: int
    mode: "Mode"
    srt: str
    language: str | None
    whisper: str | None
    hotwords: str | None
    top: int
    min_score: float | None
    annotations: str | None
    clips: bool
    export: tuple[str, ...]
    handles: float
    seconds: bool
    json: bool
    quiet: bool
    play: bool
    piece_seconds: float | None
    cache: str | None
    cache_gb: float
    verify: str

    @property
    def model(self) -> ModelOptions:
        """Return those that name the model."""
        return ModelOptions(self.checkpoint, self.yes, self.models_dir, self.keep_downloads)

    @property
    def searches_index(self) -> bool:
        """Whether the file of the library is searched, and no video."""
        return self.library and self.mode == "speech"


OPTIONS = (
    click.option("--query", multiple=True, help="a sentence that describes a moment"),
    click.option(
        "--out",
        type=FOLDER,
        help="output folder: index.html, moments.json, videos; found/<first sentence> unless given",
    ),
    model_options,
    batch_option,
    switch("library", help="search the videos of `calce index` instead of files"),
    library_option,
    click.option(
        "--candidates",
        type=click.IntRange(min=1),
        default=100,
        help="of a library that `calce index --picture` has looked at: segments that a sentence asks the model about",
    ),
    click.option(
        "--mode",
        type=click.Choice(["picture", "speech", "both"]),
        default="picture",
        help="picture: by the model, which also reads captions; speech: words that are said, without a model; both: "
        "one after the other",
    ),
    click.option(
        "--srt",
        type=FILE,
        default="auto",
        help="captions: auto (an .srt or .vtt beside a video, else inside it), none, a file, or a folder of them",
    ),
    click.option("--language", help="of several captions of a video those in this language: de, pt-BR, German"),
    click.option(
        "--whisper",
        type=FOLDER,
        help="folder, hub name or size of a Whisper model: transcribes videos without captions, to OUT/captions",
    ),
    click.option("--hotwords", help='for --whisper: words that are likely to be said, such as "Jezero, Ingenuity"'),
    click.option(
        "--top",
        type=click.IntRange(min=1),
        default=5,
        help="maximum number of moments of a sentence, for each video and in the printed table",
    ),
    click.option("--min_score", type=click.FloatRange(0, 1), help="leave out moments with a lower score"),
    click.option("--annotations", type=FILE, help="annotation file: the page also shows the true moments"),
    switch("clips", help="also write every moment as OUT/clips/*.mp4"),
    click.option(
        "--export",
        type=CommaSeparated(FORMATS),
        default="",
        help=f"also write the moments to OUT in these formats: {', '.join(FORMATS)}; a comma between two",
    ),
    click.option(
        "--handles", type=click.FloatRange(min=0), default=0.0, help="seconds more on either side, in clips and exports"
    ),
    switch("seconds", help="print times as numbers of seconds"),
    switch("json", help="print the moments as JSON and nothing else; without --out nothing is written"),
    switch("quiet", help="print the moments alone: no progress, no notices, no names of files"),
    switch("play", help="play the first moment in mpv or VLC"),
    click.option(
        "--piece_seconds",
        type=click.FloatRange(min=1),
        help="length of the segments that longer videos are split into; that of the training videos unless given",
    ),
    cache_options,
    verify_option,
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to the command, as its parameters, see `Options`."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)
