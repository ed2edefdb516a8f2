"""The package: public names, imports without JAX, and the compilation cache."""

import importlib
import subprocess
import sys
import types

import jax
import pytest

import realcustom_jax as rc
from realcustom_jax.common.compile_cache import cache_dir, use_compilation_cache


def test_public_names_and_sample_docstring_are_complete():
    """Importing the command keeps `rc.sample`; `dir` has the public names; the docstring has every option."""
    importlib.import_module("realcustom_jax.sample")
    del sys.modules["realcustom_jax.sample"]  # other tests run it as a command
    assert callable(rc.sample) and not isinstance(rc.sample, types.ModuleType)
    assert set(rc.__all__) <= set(dir(rc))
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = rc.unknown
    for name, rule in rc.SamplingOptions.rules().items():
        assert f"{name}: " in rc.sample.__doc__ and rule.help in " ".join(rc.sample.__doc__.split())


def test_package_imports_without_jax_and_reloads():
    """Loader workers import it; notebooks reload it. In a process of its own, as this one has JAX already."""
    code = """
import importlib, sys
import realcustom_jax as rc
import realcustom_jax.data.cut_outs, realcustom_jax.data.image_text, realcustom_jax.inputs.plurals
assert "jax" not in sys.modules
import realcustom_jax.common.errors
assert rc.UserError is realcustom_jax.common.errors.UserError and "jax" not in sys.modules
assert importlib.reload(rc).UserError is rc.UserError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_api_uses_compilation_cache(monkeypatch):
    """In our own folder, unless the user has configured one."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(cache_dir() / "xla")
        jax.config.update("jax_compilation_cache_dir", "/somewhere/else")
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "/somewhere/else"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
