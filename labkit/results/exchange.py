"""Results for other programs: arrays with named axes, as xarray has them and NetCDF and Zarr keep them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit._version import install_command

if TYPE_CHECKING:
    import xarray as xr


def labelled(
    values: np.ndarray,
    over: Sequence[str],
    coords: Mapping[str, Any],
    *,
    name: str,
    about: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> xr.DataArray:
    """Values with named axes, and attributes that files of other programs can hold: numbers and text.

    Raises:
        ImportError: xarray is not installed.
    """
    try:
        import xarray as xr
    except ImportError:
        raise ImportError(
            f"to_xarray() needs xarray, which is not installed here: {install_command('exchange')}"
        ) from None
    array = xr.DataArray(values.copy(), dims=tuple(over), coords=dict(coords), name=str(name))
    units = {"units": str(recipe["unit"])} if recipe.get("unit") else {}
    array.attrs = {**units, **about, "model": str(recipe.get("model")), "recipe": json.dumps(recipe, default=str)}
    return array
