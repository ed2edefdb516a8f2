"""What the sampler is told of a batch of requests, as arrays."""

import flax.struct
from jax import Array


@flax.struct.dataclass
class Settings:
    """Traced numbers, one a request, each (B,) float32: changing them does not compile again.

    Attributes:
      text_weight, image_weight: ω_t and ω_i of `paper` guidance; `direct` uses text_weight as its ω.
      rescale: φ of `direct` guidance.
      gamma_scope: share of the pixels where a subject may act.
      gamma_num: share of the visual tokens that act.
    """

    text_weight: Array
    image_weight: Array
    rescale: Array
    gamma_scope: Array
    gamma_num: Array


@flax.struct.dataclass
class Conditioning:
    """A batch of requests as the UNet's inputs; every leaf has the batch first. R may be 0, for text only.

    Attributes:
      text, negative_text: (B, n_t, C_t) text tokens of prompt and negative prompt.
      features, negative_features: image encoder outputs as the projector takes them, each (B, R, N, C), of
        the references and of a black image; (B, R, P, N, C) where slots have several photos.
      words: (B, R, n_t) 0/1 target tokens of each subject.
      flags: (B, R) 1 for a subject, 0 for an empty slot.
      strengths: (B, R) factor on what each subject adds, 0 or more; at 0 it counts as an empty slot.
      user_masks: (B, R, h', w') in [0, 1], where users want their subjects to act; 1 everywhere for any.
      replace_guided: (B, R) 1 where the user's mask replaces the guided one; elsewhere they are multiplied.
      settings: see `Settings`.
      pooled, negative_pooled: (B, C) and
      time_ids: (B, 6), for SDXL only.
      photos: (B, R, P) 1 for a photo of a slot, 0 for padding; None where features have no P.
    """

    text: Array
    negative_text: Array
    features: tuple[Array, ...]
    negative_features: tuple[Array, ...]
    words: Array
    flags: Array
    strengths: Array
    user_masks: Array
    replace_guided: Array
    settings: Settings
    pooled: Array | None = None
    negative_pooled: Array | None = None
    time_ids: Array | None = None
    photos: Array | None = None

    @property
    def present(self) -> Array:
        """(B, R) 1 for a subject that acts, 0 for an empty slot or one of strength 0."""
        return self.flags * (self.strengths > 0).astype(self.flags.dtype)
