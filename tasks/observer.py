"""Who watches a run: set by the command line, absent when a worker runs the flow."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

Observer = Callable[[str, str, Any], None]
"""`observer(stage, event, content)`; the events are `started`, `cached`, `waiting`, `metrics`, `progress`, `note`,
`done`, `failed`, and for the whole run `outcome`."""

observer: ContextVar[Observer] = ContextVar("observer", default=lambda stage, event, content: None)
