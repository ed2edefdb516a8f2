"""Influence scopes against the published values and a numpy transcription of eq. 11."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.diffusion.masks import NORMALISATIONS, aggregate, influence_scope, with_user_masks


def test_masks_equal_published_values():
    """All strategies from the published word maps; 1e-5 relative, resizing in float32."""
    file = golden_files.read(golden_files.HERE / "reference_b.npz")
    maps = [jnp.asarray(file[f"map_{i:02d}"])[:, None] for i in range(int(file["n_maps"]))]
    gamma = jnp.full((2,), 0.25)
    scopes = {n: influence_scope(aggregate(maps, 8, 8, n), gamma, "soft") for n in NORMALISATIONS}
    for kind in ("binary", "threshold"):
        scopes[kind] = influence_scope(aggregate(maps, 8, 8, "max_norm"), gamma, kind)
    for strategy, scope in scopes.items():
        expected = file[f"mask_{strategy}"]
        assert np.linalg.norm(scope - expected) <= 1e-5 * np.linalg.norm(expected), strategy


def test_soft_scope_keeps_the_top_share():
    """γ_scope 0.25 of 6·8 pixels is 12: the 12 largest as they are, 0 elsewhere."""
    maps = np.random.default_rng(0).random((2, 2, 6, 8)).astype(np.float32)
    scope = np.asarray(influence_scope(jnp.asarray(maps), jnp.full((2,), 0.25), "soft"))
    for index in np.ndindex(2, 2):
        limit = np.sort(maps[index].ravel())[-12]
        np.testing.assert_array_equal(scope[index], np.where(maps[index] >= limit, maps[index], 0.0))


@pytest.mark.parametrize(("gamma", "count"), [(0.0, 0), (1.0, 10), (0.3, 3), (0.7, 7), (0.09, 0)])
def test_influence_scope_keeps_floor_of_gamma_pixels(gamma, count):
    """⌊γ·10⌋ pixels, also where γ·10 is not exact in float32, and also when all pixels are equal."""
    scope = influence_scope(jnp.ones((1, 1, 2, 5)), jnp.array([gamma]), "binary")
    assert int(scope.sum()) == count


def test_gamma_is_traced_per_request():
    """One compiled function serves every γ, and each image of a batch has its own."""
    traces = []

    @jax.jit
    def scope(maps, gamma):
        traces.append(1)
        return influence_scope(maps, gamma, "binary")

    maps = jnp.asarray(np.random.default_rng(1).random((2, 1, 4, 4)), jnp.float32)
    assert scope(maps, jnp.array([0.25, 0.5])).sum(axis=(1, 2, 3)).tolist() == [4, 8]
    assert scope(maps, jnp.array([1.0, 0.0])).sum(axis=(1, 2, 3)).tolist() == [16, 0]
    assert len(traces) == 1


def test_overlap_goes_to_strongest_map():
    """Two hand-made maps that share one pixel: it goes to the larger value, or to both when shared."""
    maps = np.zeros((1, 2, 2, 2), np.float32)
    maps[0, 0] = [[0.9, 0.6], [0.0, 0.1]]
    maps[0, 1] = [[0.2, 0.8], [0.7, 0.0]]
    half = jnp.array([0.5])
    apart = np.asarray(influence_scope(jnp.asarray(maps), half, "soft", "strongest"))
    np.testing.assert_array_equal(apart[0, 0], np.float32([[0.9, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(apart[0, 1], np.float32([[0.0, 0.8], [0.7, 0.0]]))
    both = np.asarray(influence_scope(jnp.asarray(maps), half, "soft", "shared"))
    np.testing.assert_array_equal(both[0, 0], np.float32([[0.9, 0.6], [0.0, 0.0]]))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_empty_word_map_gives_empty_mask(normalisation):
    """A slot without target words has maps of 0: its scope is 0, not NaN."""
    assert np.array_equal(aggregate([jnp.zeros((1, 1, 4, 4))], 4, 4, normalisation), np.zeros((1, 1, 4, 4)))


def overlapping_maps() -> np.ndarray:
    """Two word maps over a 2×4 grid that both claim the middle."""
    maps = np.zeros((1, 2, 2, 4), np.float32)
    maps[0, 0] = [[0.9, 0.8, 0.3, 0.0], [0.9, 0.2, 0.7, 0.0]]
    maps[0, 1] = [[0.0, 0.5, 0.6, 0.9], [0.0, 0.5, 0.1, 0.9]]
    return maps


@pytest.mark.parametrize("kind", ["soft", "binary", "threshold"])
@pytest.mark.parametrize("absent", [0, 1])
def test_absent_subject_does_not_change_other_masks(kind, absent):
    """The other subject's mask is bit-identical to its mask alone, also for γ_scope = 1 and pixels of 0."""
    maps = jnp.asarray(overlapping_maps())
    present = jnp.asarray([[1.0, 1.0]]).at[0, absent].set(0.0)
    for gamma in (0.0, 0.5, 1.0):
        pair = influence_scope(maps, jnp.array([gamma]), kind, "strongest", present)
        alone = influence_scope(maps[:, 1 - absent, None], jnp.array([gamma]), kind, "strongest")
        np.testing.assert_array_equal(pair[:, 1 - absent], alone[:, 0])
        assert not np.asarray(pair[:, absent]).any()


def test_user_mask_intersects_or_replaces_guided_mask():
    """By hand: "intersect" multiplies; "instead" replaces and, with "strongest", keeps its pixels."""
    guided = jnp.asarray(overlapping_maps())
    user = np.ones((1, 2, 2, 4), np.float32)
    user[0, 1] = [[0, 0.5, 1, 0], [0, 0, 0, 0.25]]
    narrowed = with_user_masks(guided, jnp.asarray(user), jnp.zeros((1, 2)), "strongest")
    np.testing.assert_array_equal(narrowed[0, 0], guided[0, 0])
    np.testing.assert_array_equal(narrowed[0, 1], guided[0, 1] * user[0, 1])
    second = jnp.asarray([[0.0, 1.0]])
    apart = with_user_masks(guided, jnp.asarray(user), second, "strongest")
    np.testing.assert_array_equal(apart[0, 1], user[0, 1])
    np.testing.assert_array_equal(apart[0, 0], np.float32([[0.9, 0, 0, 0], [0.9, 0.2, 0.7, 0]]))
    shared = with_user_masks(guided, jnp.asarray(user), second, "shared")
    np.testing.assert_array_equal(shared[0, 0], guided[0, 0])
    np.testing.assert_array_equal(shared[0, 1], user[0, 1])


def test_two_replacing_masks_may_overlap():
    user = jnp.asarray(overlapping_maps())
    result = with_user_masks(jnp.zeros_like(user), user, jnp.ones((1, 2)), "strongest")
    np.testing.assert_array_equal(result, user)
