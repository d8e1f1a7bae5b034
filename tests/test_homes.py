"""The tests' own homes: given once, and the libraries read where they are."""

from __future__ import annotations

import os

import huggingface_hub.constants


def test_the_hubs_cache_stays_where_it_was_when_the_tests_began() -> None:
    import compose  # noqa: F401  (what it imports once moved the home under the hub's library)

    assert os.environ["HF_HOME"] == huggingface_hub.constants.HF_HOME
