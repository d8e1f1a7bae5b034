"""An autoregressive reward model as a scorer: r(x, y) = sum over t of log pi_r(y_t | x, y_<t), the end included."""

from __future__ import annotations

from collections.abc import Sequence

from registry.artifacts import Artifact
from registry.dialogue_text import Message, cut_left, encode_answer, encode_prompt
from registry.language_models import LanguageModel
from registry.log_probs import score_rows
from registry.reading import note
from registry.reward_models import reads
from registry.rewards import Score


def autoregressive_scores(artifact: Artifact, batch: int, loaded: LanguageModel) -> Score:
    """Every answer is read as a finished one, as by every reward model. One that is too long loses its prompt's
    beginning."""
    longest = reads(loaded.model, loaded.tokenizer, int(artifact.fields["max_length"]))

    def score(prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        tokenizer = loaded.tokenizer
        encoded = (
            (encode_prompt(tokenizer, p), encode_answer(tokenizer, p, a)) for p, a in zip(prompts, answers, strict=True)
        )
        cut = [cut_left(tokenizer, p, a[1 - longest :], longest) for p, a in encoded]
        note([len(p) + len(a) - 1 for p, a in cut])
        return [row[0] for row in score_rows(loaded.model, [(p, [a]) for p, a in cut], batch=batch)]

    return score
