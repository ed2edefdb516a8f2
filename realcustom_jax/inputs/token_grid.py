"""`TokenGrid`: which patch of which photo a visual token belongs to."""

import dataclasses

import numpy as np

from realcustom_jax.models.family import Models


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """Order of the N visual tokens of a subject: photos, layers, rows, columns.

    Each token belongs to a patch of the whole view of a photo, the first of `reference_views`. RealCustom++'s
    four parts at twice the size have no tokens of their own: their features are mixed into these.

    Attributes:
      photos: number of photos P.
      layers: ("global",), or ("global", "shallow") for the projector that has both kinds of token.
      side: patches along each side of a view.
    """

    photos: int
    layers: tuple[str, ...]
    side: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(photos, layers, rows, columns); N is their product."""
        return self.photos, len(self.layers), self.side, self.side

    def patches(self, tokens: np.ndarray) -> np.ndarray:
        """Values of tokens (…, N) as mean values of patches (…, photos, rows, columns) float32."""
        return tokens.reshape(*tokens.shape[:-1], *self.shape).mean(axis=-3, dtype=np.float32)


def token_grid(models: Models, photos: int = 1) -> TokenGrid:
    """The grid of a model that takes subjects.

    Args:
      models: configs.
      photos: the largest number of photos of a subject of the batch.
    """
    assert models.realcustom is not None
    tower = models.image_configs[0]
    # The tokens of the "shallow" projector are two grids of patches, one after the other.
    layers = ("global", "shallow") if models.realcustom.projector == "shallow" else ("global",)
    return TokenGrid(photos, layers, tower.image_size // tower.patch_size)
