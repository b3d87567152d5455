"""CALCE: frames and their times, captions and a query go in as one sequence; Flan-T5 writes the windows.

One model serves both stages. They differ in how key frames are chosen (`Selection.stage`), and in nothing else here:

    frames u8 (B T Y X 3)
      -> see      ViT, frozen                                   (B T P D)
      [  look     ln_vision, Q-Former, if these are frozen too  Looked    ]
      -> read     key frames (Plan) and captions (Choice)       no gradient
      -> embed    ln_vision, Q-Former, projections, packing     (B L E), L from a bucket
      -> t5       encode, then the loss of an answer or beam search for one

Dimensions: B batch, T frames, Y X pixels, S slots of the plan, P tokens a frame (CLS first), Q queries, J queries
and those of a compressed frame, C captions, U words, L prompt length, A answer length, D ViT width, W Q-Former width,
E T5 width.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from calce_jax.batch import Batch, Data
from calce_jax.config import Behaviour
from calce_jax.models import lora
from calce_jax.models import prompt_packing as packing
from calce_jax.models.attention import Implementation
from calce_jax.models.keyframes.coarse import select_coarse
from calce_jax.models.keyframes.fine import select_fine
from calce_jax.models.keyframes.plan import Plan
from calce_jax.models.keyframes.reference_noise import Chance
from calce_jax.models.layers import Key, Keys, LayerNorm, Linear, Remat
from calce_jax.models.lora import LoraConfig
from calce_jax.models.prompt_packing import Choice
from calce_jax.models.qformer import QFormer, QFormerConfig
from calce_jax.models.t5 import T5, T5Config
from calce_jax.models.vision_features import Looked, Seen
from calce_jax.models.vit import Vit, VitConfig, normalise

START = 0
LORA = LoraConfig()


@dataclass(frozen=True)
class CalceConfig:
    """Sizes of the parts, and the dtype activations are computed in."""

    vit: VitConfig
    qformer: QFormerConfig
    t5: T5Config
    lora: LoraConfig | None
    compressed: int = 8  # query tokens that a frame which is no key frame is compressed to
    ln_vision: Literal["trained", "frozen"] = "trained"  # frozen, what the Q-Former says of a frame never changes
    dtype: Literal["float32", "bfloat16"] = "float32"

    @staticmethod
    def full(lora: LoraConfig | None = LORA) -> "CalceConfig":
        """EVA-ViT-g, BLIP-2's Q-Former, Flan-T5-XL: 4.04 B parameters, as in the paper."""
        return CalceConfig(VitConfig.eva_g(), QFormerConfig.bert_base(), T5Config.flan_xl(), lora, dtype="bfloat16")

    @staticmethod
    def full_xxl(lora: LoraConfig | None = LORA) -> "CalceConfig":
        """The same with Flan-T5-XXL."""
        return replace(CalceConfig.full(lora), t5=T5Config.flan_xxl())

    @staticmethod
    def small(lora: LoraConfig | None = LORA) -> "CalceConfig":
        """A size that a laptop trains: ViT-S, a six-layer Q-Former, Flan-T5-small."""
        vit = VitConfig.small()
        qformer = QFormerConfig(
            width=384, depth=6, heads=6, ffn_width=1536, queries=16, image_width=vit.width, vocab=30522
        )
        return CalceConfig(vit, qformer, T5Config.flan_small(), lora, compressed=4)

    @staticmethod
    def tiny(t5_vocab: int, bert_vocab: int, lora: LoraConfig | None = LORA) -> "CalceConfig":
        """The size of the tests and the demo."""
        qformer = replace(QFormerConfig.tiny(vocab=bert_vocab), queries=4)
        return CalceConfig(VitConfig.tiny(), qformer, T5Config.tiny(t5_vocab), lora, compressed=1)

    @staticmethod
    def named(
        size: str, lora: LoraConfig | None, dtype: Literal["float32", "bfloat16"], *, t5_vocab: int, bert_vocab: int
    ) -> "CalceConfig":
        """Return one of the sizes above by its name; the vocabularies count for "tiny" alone."""
        if size == "tiny":
            return replace(CalceConfig.tiny(t5_vocab, bert_vocab, lora), dtype=dtype)
        makers = {"full": CalceConfig.full, "full_xxl": CalceConfig.full_xxl, "small": CalceConfig.small}
        return replace(makers[size](lora), dtype=dtype)

    def attending(self, implementation: Implementation) -> "CalceConfig":
        """Return the same sizes with another implementation of attention in every tower."""
        vit, qformer, t5 = (replace(part, attention=implementation) for part in (self.vit, self.qformer, self.t5))
        return replace(self, vit=vit, qformer=qformer, t5=t5)


@dataclass(frozen=True)
class Selection:
    """How key frames and captions are chosen."""

    stage: Literal[1, 2]
    mode: Literal["cluster", "information", "interval", "none"] = "cluster"
    clusters: int = 12
    dilation: int = 1  # frames on either side of a cluster border that are key frames too
    filter_dilation: int = 1  # stage 2: frames added on either side of the elected clusters
    captions: int = 5
    similarity: float = 0.9  # a caption is used if its cosine with the query is greater
    behaviour: Behaviour = "default"


@struct.dataclass
class Reading:
    """What of a batch goes into its prompts."""

    plan: Plan
    choice: Choice
    needed: Int[Data, " B"]  # tokens of each prompt


class Calce(nnx.Module):
    """The whole model. Parameters that are trained are those `label` calls trainable."""

    def __init__(self, config: CalceConfig, *, rngs: nnx.Rngs):
        width = config.qformer.width
        self.vit = Vit(config.vit, rngs=rngs)
        self.ln_vision = LayerNorm(config.vit.width, eps=1e-5)
        self.qformer = QFormer(config.qformer, rngs=rngs)
        self.query_proj = Linear(config.qformer.queries, config.compressed, rngs=rngs)
        self.t5_proj = Linear(width, config.t5.width, rngs=rngs)
        self.t5 = T5(config.t5, rngs=rngs)
        if config.lora is not None:
            lora.attach(self.t5, config.lora, rngs=rngs)
        self.config = config

    def see(self, frames: UInt8[Array, "B T Y X 3"], *, remat: Remat = "none") -> Float[Array, "B T P D"]:
        """Run the frozen vision tower over every frame."""
        flat = normalise(frames.reshape(-1, *frames.shape[2:]), jnp.dtype(self.config.dtype))
        seen = self.vit(flat, remat=remat)
        return jax.lax.stop_gradient(seen.reshape(*frames.shape[:2], *seen.shape[1:]))

    def look(self, seen: Float[Array, "B T P D"]) -> Looked:
        """Let the Q-Former say of every frame what it can. Nothing here is differentiated."""
        return jax.lax.stop_gradient(Looked(means=self.means(seen), queries=self.queries(seen)))

    def read(
        self,
        seen: Seen,
        batch: Batch,
        selection: Selection,
        *,
        key: Key = None,
        chance: Chance | None = None,
    ) -> Reading:
        """Choose key frames and captions. Nothing here is differentiated.

        `key` makes the frozen Q-Former drop, which the original does while training; `chance` is what it draws while
        it selects, in evaluation too. Only "reference" heeds them.
        """
        keys = Keys(key if selection.behaviour == "reference" else None)
        if isinstance(seen, Looked):
            features = seen.means if selection.stage == 1 else unit_rows(seen.queries)
        else:
            features = self.means(seen) if selection.stage == 1 else unit_rows(self.queries(seen, keys()))
        return self.choose(features, batch, selection, key=keys(), chance=chance)

    def means(self, seen: Float[Array, "B T P D"]) -> Float[Array, "B T D"]:
        """Return what stage 1 tells frames apart by."""
        return self.ln_vision(seen).astype(jnp.float32).mean(axis=2)

    def choose(
        self,
        features: Float[Array, "B T F"],
        batch: Batch,
        selection: Selection,
        *,
        key: Key = None,
        chance: Chance | None = None,
    ) -> Reading:
        """Choose key frames by their features, and captions by their words."""
        drawn = chance if selection.behaviour == "reference" else None
        if selection.stage == 1:
            plan = select_coarse(
                features,
                batch.present,
                mode=selection.mode,
                clusters=selection.clusters,
                dilation=selection.dilation,
                talk=batch.talk,
                spoken=batch.spoken,
                behaviour=selection.behaviour,
                noise=drawn and drawn.noise[:, 0],
            )
        else:
            plan = select_fine(
                features,
                batch.times,
                batch.present,
                batch.windows,
                batch.window_valid,
                clusters=selection.clusters,
                dilation=selection.dilation,
                filter_dilation=selection.filter_dilation,
                talk=batch.talk,
                spoken=batch.spoken,
                behaviour=selection.behaviour,
                noise=drawn and drawn.noise,
                draws=drawn and drawn.draws,
            )
        choice = self.choose_captions(batch, selection, key=key)
        plan, choice = jax.lax.stop_gradient((plan, choice))
        needed = packing.lengths(
            plan, batch.spans, choice, full=self.config.qformer.queries, compressed=self.config.compressed
        )
        return Reading(plan=plan, choice=choice, needed=needed)

    def choose_captions(self, batch: Batch, selection: Selection, *, key: Key = None) -> Choice:
        """Compare every caption with the query by the Q-Former's text branch."""
        keys, (b, c, u) = Keys(key), batch.caption_words.shape
        query = self.qformer.text_cls(batch.query_words, key=keys())
        captions = self.qformer.text_cls(batch.caption_words.reshape(b * c, u), key=keys())
        return packing.choose_captions(
            query.astype(jnp.float32),
            captions.reshape(b, c, -1).astype(jnp.float32),
            (batch.caption_words != 0).any(axis=-1),
            threshold=selection.similarity,
            limit=selection.captions,
        )

    def embed(
        self,
        seen: Seen,
        batch: Batch,
        reading: Reading,
        length: int,
        *,
        key: Key = None,
        remat: Remat = "none",
    ) -> tuple[Float[Array, "B L E"], Bool[Array, "B L"]]:
        """Lay out the prompts: embeddings, and which positions hold any."""
        looked = isinstance(seen, Looked)
        slots = jnp.take_along_axis(seen.queries if looked else seen, reading.plan.index[:, :, None, None], axis=1)
        queries = slots if looked else self.queries(slots, key, remat=remat)
        return self.lay_out(self.described(queries), batch, reading, length)

    def described(self, queries: Float[Array, "B S Q W"]) -> Float[Array, "B S J E"]:
        """Project what the Q-Former says of frames: all its query tokens, then those that a compressed frame keeps."""
        few = jnp.swapaxes(self.query_proj(jnp.swapaxes(queries, -1, -2)), -1, -2)
        return self.t5_proj(jnp.concatenate([queries, few], axis=2))

    def lay_out(
        self, frames: Float[Array, "B S J E"], batch: Batch, reading: Reading, length: int
    ) -> tuple[Float[Array, "B L E"], Bool[Array, "B L"]]:
        """Put described frames, times and text in the order of the prompt."""
        packed = self.packed(batch, reading, length)
        at = packed.slot * frames.shape[2] + packed.query + jnp.where(packed.key, 0, self.config.qformer.queries)
        visual = jnp.take_along_axis(
            frames.reshape(frames.shape[0], -1, frames.shape[-1]), jnp.where(packed.text, 0, at)[:, :, None], axis=1
        )
        text = self.t5.shared(packed.token).astype(visual.dtype)
        x = jnp.where(packed.text[:, :, None], text, visual)
        return jnp.where(packed.mask[:, :, None], x, jnp.zeros_like(x)), packed.mask

    def packed(self, batch: Batch, reading: Reading, length: int) -> packing.Packed:
        """Return what stands at each position of the prompts."""
        return packing.pack(
            reading.plan,
            batch.tokens,
            batch.spans,
            reading.choice,
            length=length,
            full=self.config.qformer.queries,
            compressed=self.config.compressed,
        )

    def loss(
        self,
        seen: Seen,
        batch: Batch,
        reading: Reading,
        length: int,
        *,
        key: Key = None,
        remat: Remat = "none",
        behaviour: Behaviour = "default",
    ) -> Float[Array, " B"]:
        """Return each sample's mean cross-entropy over the tokens of its answer (padding and filler rows: 0)."""
        keys = Keys(key)
        drop_queries = keys()
        x, mask = self.embed(
            seen, batch, reading, length, key=drop_queries if behaviour == "reference" else None, remat=remat
        )
        memory = self.t5.encode(x, mask, key=keys(), remat=remat)
        logits = self.t5.decode(shifted(batch.labels), memory, mask, key=keys(), remat=remat)
        return answer_loss(logits, batch.labels)

    def queries(
        self, seen: Float[Array, "B T P D"], key: Key = None, *, remat: Remat = "none"
    ) -> Float[Array, "B T Q W"]:
        """Return the Q-Former's query tokens of every frame."""
        tokens = self.ln_vision(seen.reshape(-1, *seen.shape[2:]))
        queries = self.qformer.visual(tokens, key=key, remat=remat)
        return queries.reshape(*seen.shape[:2], *queries.shape[1:])


def unit_rows(queries: Float[Array, "B T Q W"]) -> Float[Array, "B T Q*W"]:
    """Return what stage 2 tells frames apart by: query tokens of length 1, side by side."""
    queries = queries.astype(jnp.float32)
    unit = queries / jnp.maximum(jnp.linalg.norm(queries, axis=-1, keepdims=True), 1e-12)
    return unit.reshape(*unit.shape[:2], -1)


def shifted(labels: Int[Array, "B A"]) -> Int[Array, "B A"]:
    """Return what the decoder is fed: the start token, then the answer without its last token."""
    return jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=START)


def answer_loss(logits: Float[Array, "B A V"], labels: Int[Array, "B A"]) -> Float[Array, " B"]:
    """Mean cross-entropy of each answer, so that a batch is worth the mean of its samples alone."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    each = -jnp.take_along_axis(log_probability, labels[:, :, None], axis=-1)[..., 0]
    counted = labels != 0
    return jnp.where(counted, each, 0.0).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1).astype(jnp.float32)


TRAINED_PARTS = ("ln_vision", "query_proj", "t5_proj")


def label(path: tuple[str, ...]) -> Literal["trainable", "frozen"]:
    """Say whether the parameter at `path` is trained: adapters, both projections and `ln_vision`.

    `CalceConfig.ln_vision` "frozen" changes nothing here: `ln_vision` keeps its place among what is trained, and gets
    no gradient there. It has no weight decay either, so it stays as it is.
    """
    return "trainable" if path[0] in TRAINED_PARTS or path[-1] in ("a", "b") else "frozen"


def split(model: Calce, frozen_dtype: str = "bfloat16") -> tuple[Any, nnx.State, nnx.State]:
    """Split a model into its structure, what is trained (float32) and what is frozen (stored in `frozen_dtype`)."""

    def trained(path: tuple[Any, ...], _: object) -> bool:
        return label(tuple(map(str, path))) == "trainable"

    graph, trainable, frozen = nnx.split(model, trained, ...)
    return graph, trainable, jax.tree.map(lambda a: a.astype(jnp.dtype(frozen_dtype)), frozen)


def count(state: nnx.State) -> int:
    """Return the number of parameters in a state, abstract or not."""
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(state))
