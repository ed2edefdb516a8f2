"""The programs of a sampling request, traced from shapes for eight CPU devices; nothing is compiled."""

import runpy
from pathlib import Path

import jax
import pytest

from realcustom_jax.aot.compiled import Figures
from realcustom_jax.aot.report import as_json, as_table, programs_json
from realcustom_jax.aot.request import LOOP, Request, request_programs
from realcustom_jax.aot.topology import parse_topology
from realcustom_jax.training.config import read_config
from realcustom_jax.weights.keys import flatten

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = ["text encoders", "image towers", "contexts", LOOP, "VAE decoder"]


@pytest.fixture(scope="module")
def request_of_toybox() -> Request:
    config = runpy.run_path(str(CONFIGS / "tiny.py"))["get_config"]("customize")
    config.compute_dtype = "bfloat16"
    return request_programs(read_config(config), jax.devices(), per_chip=2)


def test_request_contains_all_programs_with_their_parameters(request_of_toybox):
    assert list(request_of_toybox.programs) == NAMES
    held = request_of_toybox.held
    # The UNet is in two programs; each other component is in one.
    assert held["contexts"] == held[LOOP]
    assert sum(held.values()) - held[LOOP] == request_of_toybox.parameters
    assert all(program.images == 16 for program in request_of_toybox.programs.values())


def test_parameter_dtypes_match_load(request_of_toybox):
    """bfloat16, but float32 in the VAE, whose config does not allow less, and in the scoring."""
    for name, vae in (("VAE decoder", True), (LOOP, False)):
        params = flatten(request_of_toybox.programs[name].lowered.args_info[0][0])
        for path, leaf in params.items():
            single = vae or "/scoring/" in path
            assert leaf.dtype.name == ("float32" if single else "bfloat16"), path


def test_sampling_loop_shards_rows_across_chips(request_of_toybox):
    text = request_of_toybox.programs[LOOP].lowered.as_text()
    assert "stablehlo.while" in text
    # Each chip's own two rows of latents, within the program that all chips run.
    assert "tensor<2x16x16x" in text and "tensor<16x16x16x" in text


def test_resident_bytes_include_other_components():
    figures = Figures(3 * 2**30, 2**30, 1.0, 1.0, 1.0, {}, 1.5, True)
    topology = parse_topology("v5e:1x1")
    for total, fits in ((14, True), (16, False)):
        request = Request({LOOP: None}, {LOOP: 2 * 2**30}, total * 2**30)
        found = programs_json(request, {LOOP: figures}, topology)[LOOP]
        assert found["resident_bytes"] == (3 + total - 2) * 2**30
        assert found["fits"] is fits and found["fits_offloaded"]


def test_table_has_one_line_per_program(request_of_toybox):
    figures = Figures(2**30, 2**29, 1e12, 1e9, 0.5, {}, 1.5, True)
    topology = parse_topology("v5e:2x4")
    values = as_json(request_of_toybox.programs[LOOP], figures, topology, None)
    values["programs"] = programs_json(request_of_toybox, dict.fromkeys(NAMES, figures), topology)
    table = as_table(values)
    assert all(f"{name}: alone" in table for name in NAMES)


def test_base_model_has_no_image_tower_program():
    config = runpy.run_path(str(CONFIGS / "tiny.py"))["get_config"]("base")
    found = request_programs(read_config(config), jax.devices()[:1])
    assert list(found.programs) == [name for name in NAMES if name != "image towers"]
