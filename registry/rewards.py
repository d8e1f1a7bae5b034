"""A reward's name to a scorer: prompts and responses in, one finite number a response out."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from registry.artifacts import Artifact
from registry.dialogue_text import Message, shown
from specs.calibration import Calibrate
from specs.preference_training import AutoregressiveRewardModel
from specs.problems import UserError
from specs.rewards import Coherence, Length, Lexicon, PythonReward, Weighted

Score = Callable[[Sequence[Sequence[Message]], Sequence[str]], list[float]]
"""Prompts and answers to one number each."""


class Loader(Protocol):
    """Where a reward gets its models from."""

    def language_model(self, artifact: Artifact) -> Any: ...

    def reward_model(self, artifact: Artifact) -> tuple[Any, Any, int]:
        """A sequence classifier, its tokenizer, and the index of the class that is the reward (-1: the only output)."""


class Anew:
    """A loader that holds nothing."""

    def language_model(self, artifact: Artifact) -> Any:
        from registry.language_models import load_language_model

        return load_language_model(artifact)

    def reward_model(self, artifact: Artifact) -> tuple[Any, Any, int]:
        from registry.reward_models import load_sequence_classifier

        return load_sequence_classifier(artifact)


def scorer(artifact: Artifact, *, batch: int, loader: Loader | None = None) -> Score:
    """The scorer of a reward. `batch` rows go through a model at once. Raises `UserError` when it is called and the reward
    raises, returns too few scores, or one that is not finite."""
    return _checked(artifact.name, _scorer(artifact, batch, loader or Anew()))


def _scorer(artifact: Artifact, batch: int, loader: Loader) -> Score:
    match artifact.entry:
        case Lexicon():
            return _lexicon()
        case Length(per_word=per_word):
            return lambda prompts, responses: [per_word * len(r.split()) for r in responses]
        case Coherence():
            from registry.coherence import coherence_scores

            return coherence_scores(artifact, batch)
        case PythonReward(target=target):
            return _python(artifact.name, target)
        case Weighted():
            return _weighted(artifact, batch, loader)
        case Calibrate():
            from registry.calibration import calibrated_scores

            return calibrated_scores(artifact, scorer(artifact.one("reward"), batch=batch, loader=loader))
        case AutoregressiveRewardModel():
            from registry.autoregressive_rewards import autoregressive_scores

            return autoregressive_scores(artifact, batch, loader.language_model(artifact))
        case _:  # a classifier, a reward model, or a soup of them
            from registry.reward_models import classifier_scores

            return classifier_scores(artifact, batch, *loader.reward_model(artifact))


def _lexicon() -> Score:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda prompts, responses: [analyzer.polarity_scores(r)["compound"] for r in responses]


def _weighted(artifact: Artifact, batch: int, loader: Loader) -> Score:
    weights: dict[str, float] = artifact.fields["of"]
    distinct = {a.fingerprint: a for a in artifact.inputs["of"]}
    parts = [(weights[mark], scorer(a, batch=batch, loader=loader)) for mark, a in distinct.items()]

    def score(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        columns = [[weight * x for x in part(prompts, responses)] for weight, part in parts]
        return [math.fsum(row) for row in zip(*columns, strict=True)]

    return score


def _python(name: str, target: str) -> Score:
    module, function = target.split(":")
    try:
        call = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the person's module raises is theirs to hear of
        raise UserError(f"rewards.{name}.target: `{target}` cannot be imported: {_brief(error)}") from error
    if not callable(call):
        raise UserError(f"rewards.{name}.target: `{target}` is not a function")
    return lambda prompts, responses: call([shown(p) for p in prompts], list(responses))


def _checked(name: str, score: Score) -> Score:
    def checked(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        try:
            scores = score(prompts, responses)
            values = [float(x) for x in scores]
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"the reward `{name}` failed: {_brief(error)}") from error
        if len(values) != len(responses):
            raise UserError(
                f"the reward `{name}` returned {len(values)} scores for {len(responses)} responses; it must return one each"
            )
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise UserError(
                    f"the reward `{name}` returned {value} for the response {responses[i][:60]!r}; it must return finite numbers"
                )
        return values

    return checked


def _brief(error: BaseException) -> str:
    """What was raised, in one line, and on which line of whose file."""
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    place = f" ({Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno})" if frame else ""
    return " ".join(f"{type(error).__name__}: {error}{place}".split())
