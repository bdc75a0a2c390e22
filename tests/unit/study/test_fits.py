"""The registry of fits against the modules that compute them."""

from importlib import import_module
from pathlib import Path

import pytest

import onejump.jumps
from onejump.study.fits import FITS


@pytest.mark.parametrize("name", FITS)
def test_each_registered_fit_has_its_module(name):
    assert callable(import_module(f"onejump.jumps.{name}").fit)


def test_each_module_that_fits_is_registered():
    names = [path.stem for path in Path(onejump.jumps.__file__).parent.glob("*.py")]
    fits = [name for name in names if hasattr(import_module(f"onejump.jumps.{name}"), "fit")]
    assert sorted(fits) == sorted(FITS)
