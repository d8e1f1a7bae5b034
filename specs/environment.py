"""The environment variables that a study names as `${env:NAME}`: where they may stand, and whether they are set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from specs.base import MayNameEnvironment, Spec, environment_names
from specs.problems import Path


def environment_problems(spec: Spec, environment: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """What is wrong with them in a part of a study, or in a whole one: `(path, message)`."""
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        key = field.alias or name
        inner: dict[Path, object] = {(key,): value}
        if isinstance(value, dict):
            inner = {(key, name): entry for name, entry in value.items()}
        for where, part in inner.items():
            if isinstance(part, Spec):
                for further, message in environment_problems(part, environment):
                    yield (*where, *further), message
        if isinstance(value, str) and "${" in value:
            if not any(isinstance(m, MayNameEnvironment) for m in field.metadata):
                yield (key,), "`${env:}` stands only in paths, in `tracking.uri` and in `api_key`"
                continue
            for variable in environment_names(value):
                if variable not in environment:
                    yield (key,), f"the environment variable `{variable}` is not set"
            if value.count("${") != len(environment_names(value)):
                yield (key,), "write it as `${env:NAME}`"
