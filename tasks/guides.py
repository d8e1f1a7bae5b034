"""The guides of a decoding rule, loaded: reward models, prefix scorers and language models as readers of its answers.

A guide reads the prompt as its own tokenizer's template writes it, and then the very tokens that the policy draws; so the
two must have one vocabulary, and are refused where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from registry.artifacts import Artifact
from registry.dialogue_text import (
    ANY_ANSWER,
    ANY_DIALOGUE,
    behind_the_end,
    decode_answer,
    encode_answer,
    encode_plain,
    encode_prompt,
)
from registry.language_models import LanguageModel
from registry.prefix_scorers import PrefixHead
from registry.rows import Prompt
from registry.vocabularies import difference
from specs.decoding import DecodeARGS, DecodeCARDS, DecodeControlled, DecodeGenARM, DecodeMOD, DecodeTransferQ
from specs.problems import UserError
from specs.rewards import Classifier
from specs.soup import Soup
from specs.training import RewardModel
from tasks.attention import grouped_heads
from tasks.batch import Companion
from tasks.blocks import BlockScorer, Blockwise, PrefixBlocks, TextBlocks
from tasks.cards import Judge, Segments
from tasks.guidance import Guidance, Guide, NextTokens, Prefixes
from tasks.models import Models
from tasks.reader import Output, Reader, next_token_logits
from tasks.rollouts import Rollouts
from tasks.slot_cache import check_room
from tasks.trace import Observer


@dataclass
class Guides:
    """The guides of a policy, loaded, and the prompts that they were given."""

    policy: Artifact
    base: LanguageModel
    models: Models
    observer: Observer | None = None
    """Hears of every choice: see `tasks.trace`."""
    prompts: list[Prompt] = field(init=False, default_factory=list)
    way: Companion = field(init=False)
    """How the policy is decoded: see `tasks.sampler.sample`."""
    _given: list[tuple[Reader, Callable[[Prompt, int, bool], list[int]]]] = field(init=False, default_factory=list)
    """Each reader with what makes its tokens of a prompt."""

    def __post_init__(self) -> None:
        self.way = self._way()

    def give(self, prompt: Prompt, new: int, *, is_plain: bool = False) -> None:
        """The next prompt, to which there will be `new` tokens; a plain one is read as it stands, without templates. Raises
        `UserError` for one that a guide has no room for."""
        encoded = [encode(prompt, new, is_plain) for _, encode in self._given]
        for (reader, _), ids in zip(self._given, encoded, strict=True):
            reader.prompts.append(ids)
        self.prompts.append(prompt)

    def _way(self) -> Companion:
        entry = self.policy.entry
        match entry:
            case DecodeARGS():
                guide = self._prefixes(self.policy.one("reward"))
                return Guidance(
                    [(guide, entry.strength)], entry.candidates, standardised=entry.standardise, observer=self.observer
                )
            case DecodeControlled(block=None):
                guides = [(guide, entry.strength * weight) for guide, weight in self._weighed("scorers")]
                return Guidance(guides, observer=self.observer)
            case DecodeControlled(block=int(block), samples=int(branches)):
                scorers = [(self._block_scorer(one), weight) for one, weight in self._artifacts("scorers")]
                return Blockwise(scorers, block, branches, self.observer)
            case DecodeGenARM():
                guides = [(guide, entry.strength * weight) for guide, weight in self._weighed("guides")]
                return Guidance(guides, normalised=entry.official_code, observer=self.observer)
            case DecodeTransferQ():
                guide = self._rollouts(entry.look_ahead)
                return Guidance([(guide, entry.strength)], entry.candidates, observer=self.observer)
            case DecodeMOD():
                guides = list(self._weighed("policies"))
                weight = 1 - sum(weight for _, weight in guides)
                return Guidance(guides, policy_weight=weight, observer=self.observer)
            case DecodeCARDS():
                segments = Segments(
                    entry.target, entry.alpha, entry.beta, entry.entropy, entry.shortest, entry.longest, entry.tries
                )
                return self._judge(self.policy.one("reward"), segments)
        raise AssertionError(f"{self.policy.name} has no guides")

    def _artifacts(self, slot: str) -> Iterator[tuple[Artifact, float]]:
        weights: dict[str, float] = self.policy.fields[slot]
        for artifact in {a.fingerprint: a for a in self.policy.inputs[slot]}.values():
            yield artifact, weights[artifact.fingerprint]

    def _weighed(self, slot: str) -> Iterator[tuple[Guide, float]]:
        return ((self._next_tokens(artifact), weight) for artifact, weight in self._artifacts(slot))

    def _block_scorer(self, artifact: Artifact) -> BlockScorer:
        if artifact.produces == "prefix scorer":
            loaded, head = self.models.prefix_scorer(artifact)
            reader = self._reader(artifact, hidden_states(loaded.model), loaded.model, loaded.tokenizer)
            reader.lag = 0 if head.each is None else 1
            return PrefixBlocks(reader, head.of_tokens)
        return self._texts(artifact)

    def _texts(self, artifact: Artifact) -> BlockScorer:
        score = self.models.score(artifact)

        def reward(places: Sequence[int], answers: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
            texts = [[decode_answer(self.base.tokenizer, answer) for answer in row] for row in answers]
            asked = [self.prompts[place].messages for place, row in zip(places, texts, strict=True) for _ in row]
            found = iter(score(asked, [text for row in texts for text in row]))
            return [[next(found) for _ in row] for row in texts]

        return TextBlocks(reward)

    def _next_tokens(self, artifact: Artifact) -> Guide:
        if artifact.produces == "prefix scorer":
            return self._scorer(artifact)
        loaded = self.models.language_model(artifact)
        return NextTokens(self._reader(artifact, next_token_logits(loaded.model), loaded.model, loaded.tokenizer))

    def _prefixes(self, artifact: Artifact) -> Guide:
        return self._scorer(artifact) if artifact.produces == "prefix scorer" else Prefixes(*self._growing(artifact))

    def _judge(self, artifact: Artifact, segments: Segments) -> Judge:
        if artifact.produces != "prefix scorer":
            reader, tail = self._growing(artifact)
            return Judge(reader, segments, tail, self.observer)
        (reader,) = self._scorer(artifact).readers
        return Judge(reader, segments, observer=self.observer)

    def _growing(self, artifact: Artifact) -> tuple[Reader, list[int]]:
        """A reward model that reads an answer as it grows, and what its template writes behind the end of one."""
        model, tokenizer, label = self.models.reward_model(artifact)
        if not _reads_as_it_grows(model):
            raise UserError(f"`{artifact.name}` reads whole texts, not a text as it grows; name a causal reward model")
        tail = behind_the_end(tokenizer, ANY_DIALOGUE)
        return self._reader(artifact, prefix_rewards(model, label), model, tokenizer, len(tail)), tail

    def _rollouts(self, look_ahead: int) -> Guide:
        artifact = self.policy.one("baseline")
        loaded = self.models.language_model(artifact)
        baseline = self._reader(artifact, next_token_logits(loaded.model), loaded.model, loaded.tokenizer)
        return Rollouts(baseline, self._finished(self.policy.one("reward")), look_ahead)

    def _finished(self, artifact: Artifact) -> BlockScorer:
        """A reward of answers as finished ones: a reward model of the same tokens reads on from what it has read."""
        if isinstance(artifact.entry, Classifier | RewardModel | Soup):
            model, tokenizer, label = self.models.reward_model(artifact)
            if _reads_as_it_grows(model) and difference(self.base.tokenizer.get_vocab(), tokenizer.get_vocab()) is None:
                end = encode_answer(tokenizer, ANY_DIALOGUE, ANY_ANSWER)[-1]
                finish = [end, *behind_the_end(tokenizer, ANY_DIALOGUE)]
                reader = self._reader(artifact, prefix_rewards(model, label), model, tokenizer, len(finish))
                return PrefixBlocks(reader, lambda rewards, tokens: rewards, finish=finish)
        return self._texts(artifact)

    def _scorer(self, artifact: Artifact) -> Guide:
        loaded, head = self.models.prefix_scorer(artifact)
        reader = self._reader(artifact, prefix_values(loaded.model, head), loaded.model, loaded.tokenizer)
        return Prefixes(reader) if head.each is None else NextTokens(reader)

    def _reader(self, artifact: Artifact, output: Output, model: Any, tokenizer: Any, behind: int = 0) -> Reader:
        """`behind` is how many tokens it reads behind those of an answer."""
        name = artifact.name
        if (told := difference(self.base.tokenizer.get_vocab(), tokenizer.get_vocab())) is not None:
            raise UserError(f"`{name}` cannot guide `{self.policy.one('from').name}`: {told}")
        reader = Reader(output, [], torch.device(model.device))

        def encode(prompt: Prompt, new: int, is_plain: bool) -> list[int]:
            encoded = (
                encode_plain(tokenizer, prompt.messages[-1]["content"])
                if is_plain
                else encode_prompt(tokenizer, prompt.messages)
            )
            try:
                check_room(model, [len(self.prompts) + 1], [encoded], new + behind)
            except ValueError as error:
                raise UserError(f"`{name}`: {error}") from None
            return encoded

        self._given.append((reader, encode))
        return reader


def _reads_as_it_grows(classifier: Any) -> bool:
    """Whether it is a head on a causal body, which can be read at every position."""
    return isinstance(getattr(_unwrapped(classifier), "score", None), nn.Module)


def prefix_rewards(classifier: Any, label: int = -1) -> Output:
    """A sequence classifier on a causal language model's body, read at every position: the rewards [rows, L] of what was
    read so far, or the log-probability of the class `label`. It was trained on finished dialogues alone, so of an
    unfinished one it is an extrapolation."""
    body, head = _body(classifier), _unwrapped(classifier).score
    # Adapters beside bf16 weights are fp32.
    bf16 = next(classifier.parameters()).dtype == torch.bfloat16

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        with grouped_heads(classifier), torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=bf16):
            found: Tensor = head(_kept(body(**inputs).last_hidden_state, keep)).float()
        return found[..., 0] if label < 0 else found.log_softmax(-1)[..., label]

    return output


def prefix_values(model: Any, head: PrefixHead) -> Output:
    """A prefix scorer: the values [rows, L, vocabulary] of every next token; of a scalar head the values [rows, L] of
    what was read so far."""
    hidden = hidden_states(model)

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        states = hidden(keep, **inputs)
        return head.of_tokens(states, inputs["input_ids"]) if head.each is None else head.of_all(states)

    return output


def hidden_states(model: Any) -> Output:
    """The last hidden states [rows, L, width] of a causal language model's body."""
    body = _body(model)

    def output(keep: Tensor | None = None, **inputs: Any) -> Tensor:
        with grouped_heads(model):
            return _kept(body(**inputs).last_hidden_state, keep)

    return output


def _kept(hidden: Tensor, keep: Tensor | None) -> Tensor:
    return hidden if keep is None else hidden[:, keep]


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _body(model: Any) -> Any:
    """The decoder below the head."""
    whole = _unwrapped(model)
    return getattr(whole, whole.base_model_prefix)
