"""CALCE: Flan-T5 reads frames, their times, captions and a query as one sequence and writes the windows.

Both stages are the same model. They differ only in the selection of key frames (`SelectionConfig.stage`):

    frames uint8 (B T Y X 3)
      -> encode_frames    ViT, frozen                                    (B T P D)
      [  encode_queries   ln_vision, Q-Former, if these are frozen too   QFormerFeatures ]
      -> select           key frames and captions                        PromptSelection, no gradient
      -> embed_prompt     ln_vision, Q-Former, projections, packing      (B L E), L from a bucket
      -> t5               encode, then the loss of an answer or beam search

Dimensions: B batch, T frames, Y X pixels, S slots of the plan, P tokens a frame (CLS first), Q query tokens, J = Q +
query tokens of a compressed frame, C captions, U BERT tokens, L prompt length, A answer length, V vocabulary, D ViT
width, W Q-Former width, E T5 width, F width of the selection's features.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from calce_jax.batch import Batch
from calce_jax.config import Behaviour, RematPolicy
from calce_jax.models import lora
from calce_jax.models import prompt_packing as packing
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.keyframes.coarse import select_coarse
from calce_jax.models.keyframes.fine import select_fine
from calce_jax.models.keyframes.reference_noise import ReferenceNoise
from calce_jax.models.layers import Key, KeyStream, LayerNorm, Linear
from calce_jax.models.qformer import QFormer
from calce_jax.models.selection import CaptionSelection, PromptSelection, SelectionConfig
from calce_jax.models.t5 import DECODER_START_ID, T5
from calce_jax.models.vision_features import QFormerFeatures, VisionFeatures
from calce_jax.models.vit import Vit, normalise_frames


class Calce(nnx.Module):
    """The whole model; `param_label` says which of its parameters are trained."""

    def __init__(self, config: CalceConfig, *, rngs: nnx.Rngs):
        width = config.qformer.width
        self.vit = Vit(config.vit, rngs=rngs)
        self.ln_vision = LayerNorm(config.vit.width, eps=1e-5)
        self.qformer = QFormer(config.qformer, rngs=rngs)
        self.query_proj = Linear(config.qformer.query_tokens, config.compressed_query_tokens, rngs=rngs)
        self.t5_proj = Linear(width, config.t5.width, rngs=rngs)
        self.t5 = T5(config.t5, rngs=rngs)
        if config.lora is not None:
            lora.add_adapters(self.t5, config.lora, rngs=rngs)
        self.config = config

    @jax.named_scope("vit")
    def encode_frames(
        self, frames: UInt8[Array, "B T Y X 3"], *, remat: RematPolicy = "none"
    ) -> Float[Array, "B T P D"]:
        """Run the frozen vision tower on every frame; no gradient."""
        flat = normalise_frames(frames.reshape(-1, *frames.shape[2:]), jnp.dtype(self.config.dtype))
        tokens = self.vit(flat, remat=remat)
        return jax.lax.stop_gradient(tokens.reshape(*frames.shape[:2], *tokens.shape[1:]))

    def encode_queries(self, tokens: Float[Array, "B T P D"]) -> QFormerFeatures:
        """Run `ln_vision` and the Q-Former on every frame; no gradient."""
        return jax.lax.stop_gradient(
            QFormerFeatures(means=self.frame_means(tokens), queries=self.frame_queries(tokens))
        )

    def select(
        self,
        vision_features: VisionFeatures,
        batch: Batch,
        selection: SelectionConfig,
        *,
        key: Key = None,
        reference_noise: ReferenceNoise | None = None,
    ) -> PromptSelection:
        """Select key frames and captions; no gradient.

        Args:
          vision_features: of the batch's frames.
          batch: texts, masks, times and stage-1 windows; its frames are not used.
          selection: how to select.
          key: enables dropout in the frozen Q-Former, as the original has it in training; "reference" only.
          reference_noise: the original's random draws, in evaluation too; "reference" only.
        """
        keys = KeyStream(key if selection.behaviour == "reference" else None)
        if isinstance(vision_features, QFormerFeatures):
            features = vision_features.means if selection.stage == 1 else normalise_queries(vision_features.queries)
        else:
            features = (
                self.frame_means(vision_features)
                if selection.stage == 1
                else normalise_queries(self.frame_queries(vision_features, keys()))
            )
        return self.select_from_features(features, batch, selection, key=keys(), reference_noise=reference_noise)

    @jax.named_scope("selection")
    def frame_means(self, tokens: Float[Array, "B T P D"]) -> Float[Array, "B T D"]:
        """Return the features of stage 1's selection: the float32 mean of a frame's tokens after `ln_vision`."""
        return self.ln_vision(tokens).astype(jnp.float32).mean(axis=2)

    @jax.named_scope("selection")
    def select_from_features(
        self,
        features: Float[Array, "B T F"],
        batch: Batch,
        selection: SelectionConfig,
        *,
        key: Key = None,
        reference_noise: ReferenceNoise | None = None,
    ) -> PromptSelection:
        """Select key frames by features (stage 1: F = D, stage 2: F = Q W), and captions; see `select`."""
        noise = reference_noise if selection.behaviour == "reference" else None
        if selection.stage == 1:
            frame_plan = select_coarse(
                features,
                batch.frame_mask,
                mode=selection.mode,
                clusters=selection.clusters,
                dilation=selection.dilation,
                is_speech_query=batch.is_speech_query,
                has_speech=batch.has_speech,
                behaviour=selection.behaviour,
                noise=noise and noise.density_noise[:, 0],
            )
        else:
            frame_plan = select_fine(
                features,
                batch.times,
                batch.frame_mask,
                batch.stage1_windows,
                batch.window_mask,
                clusters=selection.clusters,
                dilation=selection.dilation,
                filter_dilation=selection.filter_dilation,
                is_speech_query=batch.is_speech_query,
                has_speech=batch.has_speech,
                behaviour=selection.behaviour,
                noise=noise and noise.density_noise,
                draws=noise and noise.removal_draws,
            )
        caption_selection = self.select_captions(batch, selection, key=key)
        frame_plan, caption_selection = jax.lax.stop_gradient((frame_plan, caption_selection))
        prompt_lengths = packing.count_prompt_tokens(
            frame_plan,
            batch.spans,
            caption_selection,
            full_tokens=self.config.qformer.query_tokens,
            compressed_tokens=self.config.compressed_query_tokens,
        )
        return PromptSelection(
            frame_plan=frame_plan, caption_selection=caption_selection, prompt_lengths=prompt_lengths
        )

    @jax.named_scope("captions")
    def select_captions(self, batch: Batch, selection: SelectionConfig, *, key: Key = None) -> CaptionSelection:
        """Select captions by their similarity with the query, which grouped batches have already."""
        return packing.select_captions(
            self.caption_similarity(batch, selection, key=key)
            if batch.caption_similarity is None
            else batch.caption_similarity,
            (batch.caption_bert_tokens != 0).any(axis=-1),
            min_similarity=selection.min_similarity,
            max_captions=selection.max_captions,
        )

    def caption_similarity(self, batch: Batch, selection: SelectionConfig, *, key: Key = None) -> Float[Array, "B C"]:
        """Return the cosine of each caption's [CLS] state with the query's, float32; of frozen weights alone."""
        keys = KeyStream(key)
        query = self.qformer.embed_sentences(batch.query_bert_tokens, key=keys()).astype(jnp.float32)

        def similarity(caption_bert_tokens: Int[Array, "B C U"], key: Key) -> Float[Array, "B C"]:
            b, c, u = caption_bert_tokens.shape
            captions = self.qformer.embed_sentences(caption_bert_tokens.reshape(b * c, u), key=key)
            return packing.caption_similarity(query, captions.reshape(b, c, -1).astype(jnp.float32))

        return packing.map_caption_blocks(similarity, batch.caption_bert_tokens, selection.caption_block, keys())

    def embed_prompt(
        self,
        vision_features: VisionFeatures,
        batch: Batch,
        prompt_selection: PromptSelection,
        length: int,
        *,
        key: Key = None,
        remat: RematPolicy = "none",
    ) -> tuple[Float[Array, "B L E"], Bool[Array, "B L"]]:
        """Return the embeddings of the prompts, and the mask of positions that are not padding."""
        has_queries = isinstance(vision_features, QFormerFeatures)
        slot_features = jnp.take_along_axis(
            vision_features.queries if has_queries else vision_features,
            prompt_selection.frame_plan.frame_index[:, :, None, None],
            axis=1,
        )
        queries = slot_features if has_queries else self.frame_queries(slot_features, key, remat=remat)
        return self.assemble_prompt(self.project_queries(queries), batch, prompt_selection, length)

    @jax.named_scope("qformer")
    def project_queries(self, queries: Float[Array, "B S Q W"]) -> Float[Array, "B S J E"]:
        """Project query tokens to T5's width: the Q of a key frame, then the J - Q of a compressed frame."""
        compressed_queries = jnp.swapaxes(self.query_proj(jnp.swapaxes(queries, -1, -2)), -1, -2)
        return self.t5_proj(jnp.concatenate([queries, compressed_queries], axis=2))

    @jax.named_scope("prompt")
    def assemble_prompt(
        self, frame_embeddings: Float[Array, "B S J E"], batch: Batch, prompt_selection: PromptSelection, length: int
    ) -> tuple[Float[Array, "B L E"], Bool[Array, "B L"]]:
        """Gather frame embeddings, times and text into the order of the prompt; see `embed_prompt`."""
        layout = self.prompt_layout(batch, prompt_selection, length)
        source_index = (
            layout.slot * frame_embeddings.shape[2]
            + layout.query_token
            + jnp.where(layout.is_keyframe, 0, self.config.qformer.query_tokens)
        )
        visual_embeddings = jnp.take_along_axis(
            frame_embeddings.reshape(frame_embeddings.shape[0], -1, frame_embeddings.shape[-1]),
            jnp.where(layout.is_text, 0, source_index)[:, :, None],
            axis=1,
        )
        text_embeddings = self.t5.shared(layout.token_id).astype(visual_embeddings.dtype)
        x = jnp.where(layout.is_text[:, :, None], text_embeddings, visual_embeddings)
        return jnp.where(layout.mask[:, :, None], x, jnp.zeros_like(x)), layout.mask

    def prompt_layout(self, batch: Batch, prompt_selection: PromptSelection, length: int) -> packing.PromptLayout:
        """Return the layout of the prompts, padded or cut to `length` positions."""
        return packing.build_prompt_layout(
            prompt_selection.frame_plan,
            batch.tokens,
            batch.spans,
            prompt_selection.caption_selection,
            length=length,
            full_tokens=self.config.qformer.query_tokens,
            compressed_tokens=self.config.compressed_query_tokens,
        )

    def loss(
        self,
        vision_features: VisionFeatures,
        batch: Batch,
        prompt_selection: PromptSelection,
        length: int,
        *,
        key: Key = None,
        remat: RematPolicy = "none",
        behaviour: Behaviour = "default",
    ) -> Float[Array, " B"]:
        """Return each sample's mean cross-entropy over the tokens of its answer; 0 for rows without labels."""
        keys = KeyStream(key)
        qformer_key = keys()
        x, mask = self.embed_prompt(
            vision_features,
            batch,
            prompt_selection,
            length,
            key=qformer_key if behaviour == "reference" else None,
            remat=remat,
        )
        memory = self.t5.encode(x, mask, key=keys(), remat=remat)
        logits = self.t5.decode(shift_right(batch.labels), memory, mask, key=keys(), remat=remat)
        return answer_loss(logits, batch.labels)

    @jax.named_scope("qformer")
    def frame_queries(
        self, vit_tokens: Float[Array, "B T P D"], key: Key = None, *, remat: RematPolicy = "none"
    ) -> Float[Array, "B T Q W"]:
        """Return the Q-Former's query tokens of every frame."""
        tokens = self.ln_vision(vit_tokens.reshape(-1, *vit_tokens.shape[2:]))
        queries = self.qformer.encode_images(tokens, key=key, remat=remat)
        return queries.reshape(*vit_tokens.shape[:2], *queries.shape[1:])


def normalise_queries(queries: Float[Array, "B T Q W"]) -> Float[Array, "B T Q*W"]:
    """Return the features of stage 2's selection: each query token scaled to norm 1, concatenated; float32."""
    queries = queries.astype(jnp.float32)
    normalised = queries / jnp.maximum(jnp.linalg.norm(queries, axis=-1, keepdims=True), 1e-12)
    return normalised.reshape(*normalised.shape[:2], -1)


def shift_right(labels: Int[Array, "B A"]) -> Int[Array, "B A"]:
    """Return the decoder's input: the start token, then the labels without the last one."""
    return jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=DECODER_START_ID)


@jax.named_scope("loss")
def answer_loss(logits: Float[Array, "B A V"], labels: Int[Array, "B A"]) -> Float[Array, " B"]:
    """Return the cross-entropy of each answer, averaged over its own tokens (label 0 is padding)."""
    token_loss = -token_log_probabilities(logits, labels)
    token_mask = labels != 0
    return jnp.where(token_mask, token_loss, 0.0).sum(axis=1) / jnp.maximum(token_mask.sum(axis=1), 1).astype(
        jnp.float32
    )


def token_log_probabilities(logits: Float[Array, "*B A V"], tokens: Int[Array, "*B A"]) -> Float[Array, "*B A"]:
    """Return the log-probability of each token of answers, in float32."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probability, tokens[..., None], axis=-1)[..., 0]
