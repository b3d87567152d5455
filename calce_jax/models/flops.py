"""Floating-point operations of the model, counted from its sizes: matrix products, two operations per multiply-add.

What the model needs, not what a program does: no padding, and nothing that a backward pass computes again (`remat`).
A backward pass costs a product of the output's gradient for the input, and another for the weights if they are trained;
the two products of attention cost two each.

Dimensions: T frames, S slots of the plan, Q query tokens, L prompt length, A answer length, U tokens of a sentence.
"""

from dataclasses import dataclass

from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig

# Means of rows are not whole.
Count = int | float


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass by kind, as their backward passes differ.

    Fields:
      linear: of products with weights.
      attention: of products of queries, keys and values with each other.
    """

    linear: Count = 0
    attention: Count = 0

    @property
    def forward(self) -> Count:
        """All."""
        return self.linear + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        """Return the sum by kind."""
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, count: Count) -> "Flops":
        """Return the operations of `count` such passes."""
        return Flops(count * self.linear, count * self.attention)

    def with_gradients(self, *, trained_weights: bool) -> Count:
        """Return forward and backward together."""
        return (3 if trained_weights else 2) * self.linear + 3 * self.attention


def vit_frame(config: VitConfig) -> Flops:
    """Return the operations of the vision tower on one frame."""
    tokens, width = config.num_tokens, config.width
    patches = 2 * (tokens - 1) * 3 * config.patch_size**2 * width
    block = 2 * tokens * (4 * width**2 + 2 * width * config.mlp_width)
    return Flops(patches + config.depth * block, config.depth * 4 * tokens**2 * width)


def qformer_frame(config: QFormerConfig, image_tokens: int) -> Flops:
    """Return the operations of the Q-Former's visual path on one frame of `image_tokens` tokens."""
    queries, width = config.query_tokens, config.width
    layer = 2 * queries * (4 * width**2 + 2 * width * config.mlp_width)
    cross = 4 * queries * width**2 + 4 * image_tokens * config.image_width * width
    attention = config.depth * 4 * queries**2 * width + config.cross_depth * 4 * queries * image_tokens * width
    return Flops(config.depth * layer + config.cross_depth * cross, attention)


def qformer_sentence(config: QFormerConfig, tokens: int) -> Flops:
    """Return the operations of the Q-Former's BERT on one sentence."""
    layer = 2 * tokens * (4 * config.width**2 + 2 * config.width * config.mlp_width)
    return Flops(config.depth * layer, config.depth * 4 * tokens**2 * config.width)


def t5_encoder(config: T5Config, length: Count) -> Flops:
    """Return the operations of T5's encoder on one prompt."""
    inner = config.heads * config.head_width
    block = 2 * length * (4 * config.width * inner + 3 * config.width * config.mlp_width)
    return Flops(config.encoder_depth * block, config.encoder_depth * 4 * length**2 * inner)


def t5_decoder(config: T5Config, answer: int, length: Count) -> Flops:
    """Return the operations of T5's decoder and head on a whole answer, with the encoder's output of a prompt."""
    inner = config.heads * config.head_width
    # Queries and outputs of both attentions, and keys and values of the answer; keys and values of the prompt.
    block = 2 * answer * (6 * config.width * inner + 3 * config.width * config.mlp_width)
    block += 4 * length * config.width * inner
    head = 2 * answer * config.width * config.vocab
    attention = 4 * answer * (answer + length) * inner
    return Flops(config.decoder_depth * block + head, config.decoder_depth * attention)


def t5_adapters(config: T5Config, rank: int, answer: int, length: Count) -> Flops:
    """Return the operations of LoRA adapters on every linear layer of T5."""
    inner, width = config.heads * config.head_width, config.width
    attention_layer, mlp = 4 * (width + inner), 3 * (width + config.mlp_width)
    encoder = config.encoder_depth * length * (attention_layer + mlp)
    decoder = config.decoder_depth * (answer * (1.5 * attention_layer + mlp) + length * 0.5 * attention_layer)
    return Flops(2 * rank * (encoder + decoder + answer * (width + config.vocab)))


def projections_slot(config: CalceConfig) -> Flops:
    """Return the operations of both projections on the query tokens of one slot."""
    queries, compressed = config.qformer.query_tokens, config.compressed_query_tokens
    to_t5 = (queries + compressed) * config.qformer.width * config.t5.width
    return Flops(2 * (queries * compressed * config.qformer.width + to_t5))


@dataclass(frozen=True)
class StepShape:
    """What a row of a training step holds on average.

    Fields:
      frames: T, real frames.
      slots: S, those of which the prompt has query tokens.
      prompt: L, real tokens.
      answer: A, positions of the decoder.
      sentences: captions and the query.
      sentence: U.
    """

    frames: Count
    slots: Count
    prompt: Count
    answer: int
    sentences: int
    sentence: int


def train_row(
    config: CalceConfig, shape: StepShape, *, stage: int, run_vit: bool = True, run_qformer: bool = True
) -> Count:
    """Return the operations of a training step for one row.

    Args:
      config: sizes, with adapters.
      shape: of the row.
      stage: 2 also runs the Q-Former on all frames, to select by its features.
      run_vit, run_qformer: False where stored features replace them.
    """
    frame = qformer_frame(config.qformer, config.vit.num_tokens)
    total = vit_frame(config.vit).forward * shape.frames if run_vit else 0
    total += qformer_sentence(config.qformer, shape.sentence).forward * shape.sentences
    if config.ln_vision == "frozen":
        total += frame.forward * shape.frames if run_qformer else 0
    else:
        total += frame.forward * shape.frames if stage == 2 else 0
        total += (frame * shape.slots).with_gradients(trained_weights=False)
    total += (projections_slot(config) * shape.slots).with_gradients(trained_weights=True)
    t5 = t5_encoder(config.t5, shape.prompt) + t5_decoder(config.t5, shape.answer, shape.prompt)
    total += t5.with_gradients(trained_weights=False)
    if config.lora is not None:
        adapters = t5_adapters(config.t5, config.lora.rank, shape.answer, shape.prompt)
        total += adapters.with_gradients(trained_weights=True)
    return total
