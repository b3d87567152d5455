"""Sizes of the model and of its towers, without the modules that have them.

A search whose programs are compiled reads these and does not import flax.
"""

from dataclasses import dataclass, replace
from typing import Literal

from calce_jax.config import AttentionImplementation, LoraConfig

DEFAULT_LORA = LoraConfig()


@dataclass(frozen=True)
class VitConfig:
    """Sizes: `image_size` and `patch_size` in pixels, `width` D, `mlp_width` of the hidden layer of the MLP."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    eps: float = 1e-6
    attention: AttentionImplementation = "xla"

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size: must be a multiple of patch_size={self.patch_size}, got {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"width: must be a multiple of heads={self.heads}, got {self.width}")

    @property
    def grid_size(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame: the class token and the patches."""
        return 1 + self.grid_size**2

    @staticmethod
    def eva_g() -> "VitConfig":
        """BLIP-2's vision tower, EVA-ViT-g/14 without its last block: 986 M parameters."""
        return VitConfig(image_size=224, patch_size=14, width=1408, depth=39, heads=16, mlp_width=6144)

    @staticmethod
    def small() -> "VitConfig":
        """About ViT-S/16: 22 M parameters."""
        return VitConfig(image_size=224, patch_size=16, width=384, depth=12, heads=6, mlp_width=1536)

    @staticmethod
    def tiny() -> "VitConfig":
        """A size for tests and the demo."""
        return VitConfig(image_size=56, patch_size=8, width=64, depth=4, heads=4, mlp_width=256)


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes. The first of every `cross_attention_frequency` layers has cross-attention to tokens of `image_width`."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    query_tokens: int
    image_width: int
    cross_attention_frequency: int = 2
    vocab: int = 30522
    max_positions: int = 512
    dropout_rate: float = 0.1
    eps: float = 1e-12
    attention: AttentionImplementation = "xla"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width: must be a multiple of heads={self.heads}, got {self.width}")

    @property
    def cross_depth(self) -> int:
        """Layers with cross-attention."""
        return -(-self.depth // self.cross_attention_frequency)

    @staticmethod
    def bert_base(image_width: int = 1408) -> "QFormerConfig":
        """BLIP-2's size: BERT-base with 32 query tokens."""
        return QFormerConfig(width=768, depth=12, heads=12, mlp_width=3072, query_tokens=32, image_width=image_width)

    @staticmethod
    def tiny(vocab: int, image_width: int = 64) -> "QFormerConfig":
        """A size for tests and the demo."""
        return QFormerConfig(
            width=64, depth=4, heads=4, mlp_width=128, query_tokens=8, image_width=image_width, vocab=vocab
        )


@dataclass(frozen=True)
class T5Config:
    """Sizes. `width` of the stream, `head_width` and `heads` of attention, `mlp_width` of the gated feed-forward."""

    width: int
    heads: int
    head_width: int
    mlp_width: int
    encoder_depth: int
    decoder_depth: int
    vocab: int = 32128
    dropout_rate: float = 0.1
    eps: float = 1e-6
    attention: AttentionImplementation = "xla"

    @staticmethod
    def flan_xl() -> "T5Config":
        """Flan-T5-XL: 2.85 B parameters."""
        return T5Config(width=2048, heads=32, head_width=64, mlp_width=5120, encoder_depth=24, decoder_depth=24)

    @staticmethod
    def flan_xxl() -> "T5Config":
        """Flan-T5-XXL: 11.1 B parameters."""
        return T5Config(width=4096, heads=64, head_width=64, mlp_width=10240, encoder_depth=24, decoder_depth=24)

    @staticmethod
    def flan_small() -> "T5Config":
        """Flan-T5-small: 77 M parameters."""
        return T5Config(width=512, heads=6, head_width=64, mlp_width=1024, encoder_depth=8, decoder_depth=8)

    @staticmethod
    def tiny(vocab: int) -> "T5Config":
        """A size for tests and the demo."""
        return T5Config(
            64, heads=4, head_width=16, mlp_width=128, encoder_depth=3, decoder_depth=2, vocab=vocab, dropout_rate=0.05
        )


@dataclass(frozen=True)
class CalceConfig:
    """Sizes of the sub-models, and the dtype of activations."""

    vit: VitConfig
    qformer: QFormerConfig
    t5: T5Config
    lora: LoraConfig | None
    compressed_query_tokens: int = 8  # query tokens of a frame that is not a key frame
    ln_vision: Literal["trained", "frozen"] = "trained"  # "frozen" makes the Q-Former's output constant
    dtype: Literal["float32", "bfloat16"] = "float32"

    @staticmethod
    def full(lora: LoraConfig | None = DEFAULT_LORA) -> "CalceConfig":
        """EVA-ViT-g, BLIP-2's Q-Former, Flan-T5-XL: 4.04 B parameters, as in the paper."""
        return CalceConfig(VitConfig.eva_g(), QFormerConfig.bert_base(), T5Config.flan_xl(), lora, dtype="bfloat16")

    @staticmethod
    def full_xxl(lora: LoraConfig | None = DEFAULT_LORA) -> "CalceConfig":
        """`full` with Flan-T5-XXL."""
        return replace(CalceConfig.full(lora), t5=T5Config.flan_xxl())

    @staticmethod
    def small(lora: LoraConfig | None = DEFAULT_LORA) -> "CalceConfig":
        """ViT-S, a six-layer Q-Former, Flan-T5-small: can be trained on a laptop."""
        vit = VitConfig.small()
        qformer = QFormerConfig(
            width=384, depth=6, heads=6, mlp_width=1536, query_tokens=16, image_width=vit.width, vocab=30522
        )
        return CalceConfig(vit, qformer, T5Config.flan_small(), lora, compressed_query_tokens=4)

    @staticmethod
    def tiny(t5_vocab: int, bert_vocab: int, lora: LoraConfig | None = DEFAULT_LORA) -> "CalceConfig":
        """The size of the tests and the demo."""
        qformer = replace(QFormerConfig.tiny(vocab=bert_vocab), query_tokens=4)
        return CalceConfig(VitConfig.tiny(), qformer, T5Config.tiny(t5_vocab), lora, compressed_query_tokens=1)

    @staticmethod
    def from_name(
        size: str, lora: LoraConfig | None, dtype: Literal["float32", "bfloat16"], *, t5_vocab: int, bert_vocab: int
    ) -> "CalceConfig":
        """Return one of the sizes above by its name; only "tiny" uses the vocabulary sizes."""
        if size == "tiny":
            return replace(CalceConfig.tiny(t5_vocab, bert_vocab, lora), dtype=dtype)
        constructors = {"full": CalceConfig.full, "full_xxl": CalceConfig.full_xxl, "small": CalceConfig.small}
        return replace(constructors[size](lora), dtype=dtype)

    def with_attention(self, implementation: AttentionImplementation) -> "CalceConfig":
        """Return the config with this implementation of attention in every tower."""
        vit, qformer, t5 = (replace(part, attention=implementation) for part in (self.vit, self.qformer, self.t5))
        return replace(self, vit=vit, qformer=qformer, t5=t5)
