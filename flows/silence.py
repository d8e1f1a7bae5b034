"""Nothing phones home unless asked: the layers' telemetry is off where the environment does not say otherwise.

Imported before Prefect, MLflow and the hub client, all of which read these at import.
"""

from __future__ import annotations

import logging
import os
import warnings

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def apply(*, offline: bool = False) -> None:
    """Sets what is not set; with `offline` forbids the hub client any network."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the address may hold a password
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # Where it is installed, every import says that it has no fast kernel for processors.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # What transformers renames within itself concerns nobody who asks a policy.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"


apply()
