"""The sampler's inputs for a batch of requests, as arrays."""

import flax.struct
from jax import Array


@flax.struct.dataclass
class Settings:
    """Traced numbers, one per request, each (B,) float32. Changing them does not recompile.

    Attributes:
      text_weight, image_weight: ω_t and ω_i of `paper` guidance (eq. 13); `direct` uses text_weight as ω.
      rescale: φ of `direct` guidance.
      gamma_scope: γ_scope, the share of the pixels where a subject may act.
      gamma_num: γ_num, the share of the visual tokens that act.
    """

    text_weight: Array
    image_weight: Array
    rescale: Array
    gamma_scope: Array
    gamma_num: Array


@flax.struct.dataclass
class Conditioning:
    """A batch of requests as the UNet's inputs. The first axis of every leaf is the batch.

    R is the number of subject slots. It is 0 when no request has a subject.

    Attributes:
      text, negative_text: (B, n_t, C_t) text tokens of the prompt and the negative prompt.
      features, negative_features: image encoder outputs of the references and of a black image, as the
        projector takes them: each (B, R, N, C), or (B, R, P, N, C) if a subject has several photos.
      words: (B, R, n_t) 0/1 target tokens of each subject.
      flags: (B, R) 1 for a subject, 0 for an empty slot.
      strengths: (B, R) factor on what each subject adds, 0 or more. A slot with 0 counts as empty.
      user_masks: (B, R, h', w') in [0, 1], where the user lets a subject act; 1 everywhere without a mask.
      replace_guided: (B, R) 1 if the user's mask replaces the guided mask, 0 if the two are multiplied.
      settings: see `Settings`.
      pooled, negative_pooled: (B, C) pooled text; SDXL only.
      time_ids: (B, 6) image sizes and crop; SDXL only.
      photos: (B, R, P) 1 for a photo, 0 for padding; None if the features have no axis P.
      token_weights: (B, R, N), or (B, R, P·N), factor on each visual token's share of the visual attention;
        None for 1.
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
    token_weights: Array | None = None

    @property
    def present(self) -> Array:
        """(B, R) 1 for a subject that acts, 0 for an empty slot or a subject of strength 0."""
        return self.flags * (self.strengths > 0).astype(self.flags.dtype)
