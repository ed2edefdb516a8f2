"""Encoding of requests: the black image, and calls inside a caller's jit."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import realcustom_jax as rc
from realcustom_jax.inputs import encode

PHOTO = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
PROMPTS = ["a cat on the beach"]
SUBJECTS = [[rc.Subject(PHOTO, "cat")]]


@pytest.fixture(scope="module")
def saved(micro_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    rc.save(micro_pipe, folder)
    return folder


def mesh(count: int) -> Mesh:
    return Mesh(np.asarray(jax.devices()[:count]), ("data",))


def test_black_image_is_encoded_once_per_pipeline(micro_pipe, monkeypatch):
    pipe, calls = micro_pipe.replace(), []
    encode_references = encode.reference_features
    monkeypatch.setattr(encode, "reference_features", lambda *x: (calls.append(1), encode_references(*x))[1])
    first, second = encode.black_features(pipe), encode.black_features(pipe)
    assert first is second and len(calls) == 1
    encode.black_features(pipe.replace())
    assert len(calls) == 2, "another pipeline may have other parameters"


def test_towers_are_traced_once_for_any_number_of_references(micro_pipe):
    """In a caller's jit; a graph that grew with the references would compile for minutes at full size."""
    size, pipe = micro_pipe.models.image_configs[0].image_size, micro_pipe.replace()

    def operations(count: int) -> int:
        views = np.zeros((count, 5 if pipe.models.high_res else 1, size, size, 3), np.uint8)

        def features(params):
            return encode.reference_features(pipe.replace(params=params), views)

        return len(jax.make_jaxpr(features)(pipe.params).jaxpr.eqns)

    assert operations(5) == operations(1)


@pytest.mark.parametrize("parameters", ["closed over", "arguments"])
@pytest.mark.parametrize("devices", [1, 4])
def test_requests_are_encoded_inside_callers_jit(saved, parameters, devices):
    """Traced values must not enter the pipeline's cache, which later calls read."""
    pipe = rc.load(saved, mesh=mesh(devices))

    def encode(params):
        own = pipe if parameters == "closed over" else pipe.replace(params=params)
        made = rc.make_conditioning(own, PROMPTS, SUBJECTS, [""], pipe.defaults)
        return made.text, made.features

    params = jax.device_put(dict(pipe.params), jax.devices()[0])
    traced = jax.jit(encode)(params)
    assert "black" not in pipe.cache
    expected = encode(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), traced, expected)
