"""A registered model as a folder that MLflow reads: its files in `data`, and an MLmodel that tells of them.

Nothing is pickled: where the files need code to be loaded, that is for whoever loads them.
"""

import os
import time
from typing import Any, Final

from ..spec.writing import to_yaml
from .asset_files import downloaded
from .packing import Calling
from .registry_views import Asset

DATA: Final = "data"
_TEXTS: Final = ("inputs", "outputs", "params")


def as_mlflow(asset: Asset, to: str | os.PathLike[str]) -> Calling[None]:
    """Write the folder `to`; what is an MLflow model already is written as it is. Raises as `downloaded`."""
    if asset.type == "mlflow_model":
        yield from downloaded(asset, to)
        return
    yield from downloaded(asset, to, below=DATA, more={"MLmodel": to_yaml(mlmodel(asset))})


def mlmodel(asset: Asset) -> dict[str, Any]:
    """What its MLmodel says. A signature stands there where it is in MLflow's own words."""
    said: dict[str, Any] = {
        "artifact_path": asset.name,
        "flavors": {
            "paceline": {DATA: DATA, "framework": asset.framework, "type": asset.type, "tree": asset.tree}
        },
        "model_uuid": asset.tree[:32],
        "utc_time_created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(asset.made_us / 1e6)),
        "metadata": {"reference": asset.reference, "metrics": dict(asset.metrics), "tags": dict(asset.tags)},
    }
    if asset.signature and all(isinstance(asset.signature.get(key, ""), str) for key in _TEXTS):
        said["signature"] = dict(asset.signature)
    elif asset.signature:
        said["metadata"]["signature"] = dict(asset.signature)
    return said
