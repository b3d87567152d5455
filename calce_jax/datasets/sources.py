"""Published weights and annotations: where they are, their licences, and what to do with them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hugging Face hub.

    Attributes:
      repo: "owner/name".
      required: patterns of file names; each must match a file.
      optional: further patterns of files to fetch.
      folder: below the output folder; "" is that folder itself.
    """

    repo: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    folder: str = ""


@dataclass(frozen=True)
class DriveFile:
    """A file on Google Drive, saved as `name`, or under its own name if None."""

    id: str
    name: str | None = None


@dataclass(frozen=True)
class DriveFolder:
    """A folder on Google Drive, saved with all its files as `name`."""

    id: str
    name: str


@dataclass(frozen=True)
class Publication:
    """Files that are fetched together.

    Attributes:
      description: what they are.
      licence: the known licences, and where they are stated.
      parts: their sources.
      next_steps: how to use them; `{out}` stands for the output folder.
    """

    description: str
    licence: str
    parts: tuple[HubRepo | DriveFile | DriveFolder, ...]
    next_steps: str


_T5_TOKENIZER = HubRepo("google/flan-t5-xl", ("tokenizer.json", "tokenizer_config.json"), ("spiece.model",), "t5")
_BERT = HubRepo(
    "google-bert/bert-base-uncased",
    ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"),
    ("tokenizer_config.json",),
)
_QVH_STAGES = (
    DriveFile("1HDNOF2ea_saqWvsB0mAPR4okThiR63Z0", "stage1.pth"),
    DriveFile("1yDxOy1XpV3XpS86sP4awE7zhuwvFSVYB", "stage2.pth"),
)
_CHARADES_STAGES = (
    DriveFile("1q5QzKQfFyYEa33P1sRNWLCRyxj5YP8bj", "stage1.pth"),
    DriveFile("1J3J3qCZ0bKdYjQIQZ61k-xnYsCA2JuI_", "stage2.pth"),
)
_CALCE_TERMS = (
    "The weights and files belong to the authors of CALCE; their repository states the terms. Check there whether they "
    "allow your use."
)


def _blip2(repo: str, size: str) -> Publication:
    return Publication(
        description=f"BLIP-2 ({repo}), and the tokenizer of Flan-T5",
        licence=(
            f"See the model cards, https://huggingface.co/{repo} and https://huggingface.co/google/flan-t5-xl. To our "
            "knowledge they say MIT and Apache-2.0; LAVIS, the code that BLIP-2 comes from, is under BSD-3-Clause."
        ),
        parts=(HubRepo(repo, ("config.json", "*.safetensors"), ("*.safetensors.index.json",)), _T5_TOKENIZER),
        next_steps=(
            "Convert with `calce convert --source=hf:{out},bert:DIR "
            f"--target=base:weights/{size}.safetensors --size={size}`, where DIR is the output folder of "
            "`calce fetch --what=bert`; set --config.text.t5_tokenizer={out}/t5."
        ),
    )


PUBLICATIONS: dict[str, Publication] = {
    "blip2": _blip2("Salesforce/blip2-flan-t5-xl", "full"),
    "blip2-xxl": _blip2("Salesforce/blip2-flan-t5-xxl", "full_xxl"),
    "bert": Publication(
        description="BERT (bert-base-uncased): weights of the text branch, and its tokenizer",
        licence="Apache-2.0; see the model card, https://huggingface.co/google-bert/bert-base-uncased",
        parts=(_BERT,),
        next_steps="Pass it to `calce convert` as bert:{out}, and to a run as --config.text.bert_tokenizer={out}.",
    ),
    "whisper": Publication(
        description="Whisper (openai/whisper-base), which transcribes speech",
        licence=(
            "Apache-2.0 by the model card, https://huggingface.co/openai/whisper-base; OpenAI's own repository, "
            "https://github.com/openai/whisper, is under MIT"
        ),
        parts=(
            HubRepo(
                "openai/whisper-base",
                ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
                ("tokenizer_config.json", "preprocessor_config.json", "vocab.json", "merges.txt"),
            ),
        ),
        next_steps="Pass it as `calce caption --model={out}` or `calce prepare --whisper={out}`.",
    ),
    "calce-qvh": Publication(
        description="original CALCE checkpoints of both stages for QVHighlights, with annotations and captions",
        licence=(
            f"{_CALCE_TERMS} The annotations are those of QVHighlights, whose terms are in "
            "https://github.com/jayleicn/moment_detr (for its annotations, to our knowledge, CC BY-NC-SA 4.0)."
        ),
        parts=(
            *_QVH_STAGES,
            DriveFile("1PibKAkATuZmtR8kl3bRsp7Fy2TuS6MY0"),
            DriveFolder("1ih6C2onYEMNZa2x8DbpmkmBriGkO-vRi", "annotations"),
        ),
        next_steps=(
            "Convert a stage with `calce convert --source=hf:DIR,bert:DIR,calce:{out}/stage1.pth --target=orbax:DIR`. "
            "If the captions are an archive, unpack it: `calce prepare` reads a folder of .srt files. "
            "The videos are on YouTube and are not fetched."
        ),
    ),
    "calce-charades": Publication(
        description="original CALCE checkpoints of both stages for Charades-STA, with annotations",
        licence=(
            f"{_CALCE_TERMS} The annotations are those of Charades-STA, https://github.com/jiyanggao/TALL; the videos' "
            "terms are at https://prior.allenai.org/projects/charades (non-commercial use)."
        ),
        parts=(
            *_CHARADES_STAGES,
            DriveFolder("1O0Wo-aXzw0yT-Gjsou0J9O96iw-OyuJ8", "annotations"),
        ),
        next_steps=(
            "Convert a stage with `calce convert --source=hf:DIR,bert:DIR,calce:{out}/stage1.pth --target=orbax:DIR`. "
            "Download the videos by hand from https://prior.allenai.org/projects/charades."
        ),
    ),
}


@dataclass(frozen=True)
class PublishedModel:
    """CALCE's checkpoints of both stages with all that they need, to be fetched and converted into one model.

    Attributes:
      description: what it was trained on.
      licence: the known licences, and where they are stated.
      run: preset of its runs, without stage and size.
      downloads: by the name of their folder, in the order in which they are fetched: first what is most often refused.
      download_bytes: of all files, about.
      disk_bytes: of the converted model, about.
    """

    description: str
    licence: str
    run: str
    downloads: dict[str, Publication]
    download_bytes: int
    disk_bytes: int

    def sources(self) -> tuple[str, ...]:
        """Return where its files are: names of repositories on the Hugging Face hub, and "Google Drive"."""
        parts = [part for publication in self.downloads.values() for part in publication.parts]
        return tuple(dict.fromkeys(part.repo if isinstance(part, HubRepo) else "Google Drive" for part in parts))


def _calce(dataset: str, run: str, stages: tuple[DriveFile, ...]) -> PublishedModel:
    licence = (
        f"{_CALCE_TERMS} BLIP-2: MIT, Flan-T5 and BERT: Apache-2.0, to our knowledge; see their model cards, "
        "https://huggingface.co/Salesforce/blip2-flan-t5-xl, https://huggingface.co/google/flan-t5-xl and "
        "https://huggingface.co/google-bert/bert-base-uncased."
    )
    return PublishedModel(
        description=f"CALCE by its authors, both stages, trained on {dataset}",
        licence=licence,
        run=run,
        downloads={
            "calce": Publication(f"checkpoints of both stages, trained on {dataset}", _CALCE_TERMS, stages, ""),
            "bert": PUBLICATIONS["bert"],
            "blip2": PUBLICATIONS["blip2"],
        },
        # 3.94 billion parameters of BLIP-2 in float32, BERT 0.4 GB, and two checkpoints of which Google Drive states no
        # size: what `calce convert --target=calce:FILE` writes has 0.7 GB.
        download_bytes=17_700_000_000,
        # 4.04 billion parameters in bfloat16, and twice 19.5 million in float32.
        disk_bytes=8_300_000_000,
    )


MODELS: dict[str, PublishedModel] = {
    "calce-qvh": _calce("QVHighlights", "qvhighlights", _QVH_STAGES),
    "calce-charades": _calce("Charades-STA", "charades_sta", _CHARADES_STAGES),
}
