"""The table of shapes and the paths in docs/architecture.md, against the presets, the model and the tree."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from calce_jax.checkpoints.restore import calce_config
from calce_jax.config import RunConfig
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.keyframes.coarse import select_coarse
from calce_jax.models.keyframes.fine import select_fine
from calce_jax.presets.runs import get_preset
from calce_jax.text.tokenizers import open_tokenizers

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# The first word of each row.
DIMENSIONS = ["B", "T", "pixels", "S", "P", "Q,", "D,", "C", "L", "L"]


def table_rows() -> list[list[str]]:
    """Return the cells of the table of shapes."""
    (table,) = re.findall(r"<!-- shapes: .*?-->\n(.*?)\n<!-- end of shapes -->", TEXT, re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def model_config(run: RunConfig) -> CalceConfig:
    """Return the sizes of a run's model; those of the full size are the same for any vocabulary."""
    t5_vocab = bert_vocab = 1
    if run.model.size == "tiny":
        tokenizers = open_tokenizers(run)
        t5_vocab, bert_vocab = len(tokenizers.t5), len(tokenizers.bert)
    return calce_config(run, t5_vocab=t5_vocab, bert_vocab=bert_vocab)


def num_slots(run: RunConfig) -> int:
    """Return S of the plan that the run's selection gives for one video."""
    frames, keyframes = run.data.frames, run.keyframes
    features = jnp.zeros((1, frames, 4))
    frame_mask, is_speech_query = jnp.ones((1, frames), bool), jnp.zeros(1, bool)
    options = {
        "clusters": keyframes.clusters,
        "dilation": keyframes.dilation,
        "is_speech_query": is_speech_query,
        "has_speech": ~frame_mask,
    }
    if run.stage == 1:
        select = partial(select_coarse, features, frame_mask, mode=keyframes.mode, **options)
    else:
        times, windows = jnp.zeros((1, frames)), jnp.zeros((1, run.text.windows, 2))
        window_mask = jnp.ones((1, run.text.windows), bool)
        inputs = (features, times, frame_mask, windows, window_mask)
        select = partial(select_fine, *inputs, filter_dilation=keyframes.filter_dilation, **options)
    return jax.eval_shape(select).frame_index.shape[1]


def expected_column(name: str) -> list[str]:
    """Return the cells of a preset, in the order of `DIMENSIONS`."""
    first, second = (get_preset(f"{name},stage={stage}") for stage in (1, 2))
    sizes = model_config(first)
    assert sizes == model_config(second)
    return [
        f"{first.data.batch}, {second.data.batch}",
        f"{first.data.frames}, {second.data.frames}",
        str(sizes.vit.image_size),
        f"{num_slots(first)}, {num_slots(second)}",
        str(sizes.vit.num_tokens),
        f"{sizes.qformer.query_tokens}, {sizes.compressed_query_tokens}",
        f"{sizes.vit.width}, {sizes.qformer.width}, {sizes.t5.width}",
        ", ".join(str(run.data.captions * run.data.caption_blocks) for run in (first, second)),
        *(", ".join(map(str, run.text.buckets)) for run in (first, second)),
    ]


def test_shapes_are_those_of_the_presets():
    columns = zip(expected_column("qvhighlights"), expected_column("shapes"), strict=True)
    expected = [[name, *cells] for name, cells in zip(DIMENSIONS, columns, strict=True)]
    assert [[name.split()[0], *cells] for name, *cells in table_rows()] == expected


def test_shapes_of_charades_sta():
    first, second = (get_preset(f"charades_sta,stage={stage}") for stage in (1, 2))
    slots = num_slots(first)
    assert slots == num_slots(second)
    frames = f"{first.data.frames} and {second.data.frames} frames"
    assert f"Charades-STA has {frames}, so {slots} slots in both stages" in TEXT
    assert first.text.buckets == second.text.buckets
    assert f"prompts of up to {first.text.buckets[-1]} tokens" in TEXT


def test_paths_on_the_page_exist():
    library = ROOT / "calce_jax"
    folders = [ROOT, library, *(path for path in library.rglob("*") if path.is_dir())]
    paths = set(re.findall(r"`([\w/]+(?:\.py|/))`", TEXT)) - {"runs/", "weights/"}
    assert [path for path in sorted(paths) if not any((folder / path).exists() for folder in folders)] == []


def test_every_module_is_on_the_page():
    """Commands have a page of their own."""
    library = ROOT / "calce_jax"
    modules = [path for path in library.rglob("*.py") if not path.stem.startswith("__")]
    named = [path for path in modules if path.parent != library / "commands" or path.stem in ("command", "runner")]
    assert [str(path) for path in named if not re.search(rf"\b{path.stem}\b", TEXT)] == []


def test_functions_of_the_first_table_exist():
    table = TEXT[TEXT.index("## Where is") : TEXT.index("## Two rules")]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "calce_jax").rglob("*.py"))
    names = set(re.findall(r"`(?:Calce\.)?(\w+)`", table))
    assert len(names) > 10
    assert [name for name in sorted(names) if not re.search(rf"(def|class) {name}\b|^{name}\b", source, re.M)] == []
