"""The guides of a decoding rule, loaded: reward models, prefix scorers and language models as readers of its answers.

A guide reads the prompt as its own tokenizer's template writes it, and then the very tokens that the policy draws; so the
two must have one vocabulary, and are refused where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from registry.artifacts import Artifact
from registry.dialogue_text import (
    ANY_ANSWER,
    ANY_DIALOGUE,
    behind_the_end,
    cut_left,
    decode_answer,
    encode_answer,
    end_of_answer,
)
from registry.language_models import LanguageModel
from registry.reading import noting
from registry.reward_models import longest_dialogue
from registry.rows import Prompt, encode_request
from registry.vocabularies import difference
from specs.decoding import DecodeARGS, DecodeCARDS, DecodeControlled, DecodeGenARM, DecodeMOD, DecodeTransferQ
from specs.problems import UserError
from specs.rewards import Classifier
from specs.soup import Soup
from specs.training import RewardModel
from tasks.batch import Companion
from tasks.blocks import BlockScorer, Blockwise, PrefixBlocks, TextBlocks
from tasks.cards import Judge, Segments
from tasks.guidance import Guidance, Guide, NextTokens, Prefixes
from tasks.meter import Meter
from tasks.models import Models
from tasks.outputs import body_states, exchanging, prefix_rewards, prefix_values, reads_as_it_grows
from tasks.reader import Output, Positions, Reader, next_token_logits
from tasks.rollouts import Rollouts
from tasks.slot_cache import check_room, room
from tasks.trace import Observer


@dataclass
class Guides:
    """The guides of a policy, loaded, and the prompts that they were given."""

    policy: Artifact
    base: LanguageModel
    models: Models
    observer: Observer | None = None
    """Hears of every choice: see `tasks.trace`."""
    reference: Artifact | None = None
    """The language model from which every token's distance is measured: see `tasks.meter`."""
    meter: Meter | None = field(init=False, default=None)
    texts: int = field(init=False, default=0)
    """Whole texts that were scored."""
    _read: int = field(init=False, default=0)
    """Positions that models read for them."""
    prompts: list[Prompt] = field(init=False, default_factory=list)
    way: Companion = field(init=False)
    """How the policy is decoded: see `tasks.sampler.sample`."""
    _given: list[tuple[Reader, Callable[[Prompt, int, bool, str], list[int]], Callable[[Prompt, bool], int]]] = field(
        init=False, default_factory=list
    )
    """Each reader with what makes its tokens of a prompt, and with how many new ones it has room for behind one."""

    def __post_init__(self) -> None:
        self.way = self._way()

    @property
    def count(self) -> Positions:
        """What all guides have read."""
        witness = self.meter.reader if self.meter else None
        each = [reader.count for reader, *_ in self._given if reader is not witness]
        found = Positions(*(sum(getattr(one, what) for one in each) for what in ("prefill", "padding", "decode")))
        found.decode += self._read
        return found

    def give(self, prompt: Prompt, new: int, *, is_plain: bool = False, told: str | None = None) -> None:
        """The next prompt, to which there will be `new` tokens; a plain one is read as it stands, without templates. Raises
        `UserError` for one that a guide has no room for, under the name `told`."""
        name = told or str(len(self.prompts) + 1)
        made = [read(prompt, new, is_plain, name) for _, read, _ in self._given]
        for (reader, *_), ids in zip(self._given, made, strict=True):
            reader.prompts.append(ids)
        self.prompts.append(prompt)

    def room(self, prompt: Prompt, is_plain: bool) -> int | None:
        """The most new tokens that every guide has room for behind a prompt; None where none sets a bound."""
        return min((left(prompt, is_plain) for *_, left in self._given), default=None)

    def _way(self) -> Companion:
        entry = self.policy.entry
        guided = partial(Guidance, observer=self.observer)
        if self.reference is not None and not isinstance(entry, DecodeCARDS) and getattr(entry, "block", None) is None:
            self.meter = self._meter(self.reference)
            guided = partial(guided, meter=self.meter)
        match entry:
            case DecodeARGS():
                guide = self._prefixes(self.policy.one("reward"))
                return guided([(guide, entry.strength)], entry.candidates, standardised=entry.standardise)
            case DecodeControlled(block=None):
                guides = [(guide, entry.strength * weight) for guide, weight in self._weighed("scorers")]
                return guided(guides)
            case DecodeControlled(block=int(block), samples=int(branches)):
                scorers = [(self._block_scorer(one), weight) for one, weight in self._artifacts("scorers")]
                return Blockwise(scorers, block, branches, self.observer)
            case DecodeGenARM():
                guides = [(guide, entry.strength * weight) for guide, weight in self._weighed("guides")]
                return guided(guides, normalised=entry.official_code)
            case DecodeTransferQ():
                guide = self._rollouts(entry.look_ahead)
                return guided([(guide, entry.strength)], entry.candidates)
            case DecodeMOD():
                guides = list(self._weighed("policies"))
                weight = 1 - sum(weight for _, weight in guides)
                return guided(guides, policy_weight=weight)
            case DecodeCARDS():
                segments = Segments(
                    entry.target, entry.alpha, entry.beta, entry.entropy, entry.shortest, entry.longest, entry.tries
                )
                return self._judge(self.policy.one("reward"), segments)
        raise AssertionError(f"{self.policy.name} has no guides")

    def _meter(self, reference: Artifact) -> Meter | None:
        """None where the reference has other tokens, so that there is no distance."""
        if reference.fingerprint == self.policy.one("from").fingerprint:
            return Meter()
        loaded = self.models.language_model(reference)
        if difference(self.base.tokenizer.get_vocab(), loaded.tokenizer.get_vocab()) is not None:
            return None
        return Meter(self._reader(reference, next_token_logits(loaded.model), loaded.model, loaded.tokenizer))

    def _artifacts(self, slot: str) -> Iterator[tuple[Artifact, float]]:
        weights: dict[str, float] = self.policy.fields[slot]
        for artifact in {a.fingerprint: a for a in self.policy.inputs[slot]}.values():
            yield artifact, weights[artifact.fingerprint]

    def _weighed(self, slot: str) -> Iterator[tuple[Guide, float]]:
        return ((self._next_tokens(artifact), weight) for artifact, weight in self._artifacts(slot))

    def _block_scorer(self, artifact: Artifact) -> BlockScorer:
        if artifact.produces == "prefix scorer":
            loaded, head = self.models.prefix_scorer(artifact)
            reader = self._reader(artifact, body_states(loaded.model), loaded.model, loaded.tokenizer)
            reader.lag = 0 if head.each is None else 1
            return PrefixBlocks(reader, head.of_tokens, end=end_of_answer(loaded.tokenizer))
        return self._texts(artifact)

    def _texts(self, artifact: Artifact) -> BlockScorer:
        score = self.models.score(artifact)

        def reward(places: Sequence[int], answers: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
            texts = [[decode_answer(self.base.tokenizer, answer) for answer in row] for row in answers]
            asked = [self.prompts[place].messages for place, row in zip(places, texts, strict=True) for _ in row]
            self.texts += len(asked)
            with noting() as noted:
                found = iter(score(asked, [text for row in texts for text in row]))
            self._read += sum(map(sum, noted))
            # Equal texts of a row are worth the same, however the batches that they were read in round.
            worth: list[dict[str, float]] = [{} for _ in texts]
            return [[of.setdefault(text, next(found)) for text in row] for of, row in zip(worth, texts, strict=True)]

        return TextBlocks(reward)

    def _next_tokens(self, artifact: Artifact) -> Guide:
        if artifact.produces == "prefix scorer":
            return self._scorer(artifact)
        return NextTokens(self._speaker(artifact), speaks=True)

    def _speaker(self, artifact: Artifact) -> Reader:
        """A language model that says what comes next."""
        loaded = self.models.language_model(artifact)
        output = self._ending_alike(next_token_logits(loaded.model), loaded.tokenizer)
        return self._reader(artifact, output, loaded.model, loaded.tokenizer)

    def _ending_alike(self, output: Output, tokenizer: Any) -> Output:
        """An output of every next token by a guide whose template may end answers by another token than the policy's."""
        ours, its = end_of_answer(self.base.tokenizer), end_of_answer(tokenizer)
        return output if ours == its or ours is None or its is None else exchanging(output, ours, its)

    def _prefixes(self, artifact: Artifact) -> Guide:
        return self._scorer(artifact) if artifact.produces == "prefix scorer" else Prefixes(*self._growing(artifact))

    def _judge(self, artifact: Artifact, segments: Segments) -> Judge:
        if artifact.produces != "prefix scorer":
            reader, ending = self._growing(artifact)
            return Judge(reader, segments, ending, self.observer)
        loaded, head = self.models.prefix_scorer(artifact)
        reader = self._reader(artifact, prefix_values(loaded.model, head), loaded.model, loaded.tokenizer)
        return Judge(reader, segments, _end(loaded.tokenizer), self.observer)

    def _growing(self, artifact: Artifact, *, finishes: bool = False) -> tuple[Reader, list[int]]:
        """A reward model that reads an answer as it grows, and how its template ends one: the end of the turn and what it
        writes behind that. Where it `finishes` what has not ended, that comes behind an answer's last token."""
        model, tokenizer, label = self.models.reward_model(artifact)
        if not reads_as_it_grows(model):
            raise UserError(f"`{artifact.name}` reads whole texts, not a text as it grows; name a causal reward model")
        end = encode_answer(tokenizer, ANY_DIALOGUE, ANY_ANSWER)[-1]
        ending = [end, *behind_the_end(tokenizer, ANY_DIALOGUE)]
        longest = longest_dialogue(artifact, model, tokenizer)
        output = prefix_rewards(model, label)
        return self._reader(
            artifact, output, model, tokenizer, behind=len(ending) - (not finishes), longest=longest
        ), ending

    def _rollouts(self, look_ahead: int) -> Guide:
        baseline = self._speaker(self.policy.one("baseline"))
        return Rollouts(baseline, self._finished(self.policy.one("reward")), look_ahead)

    def _finished(self, artifact: Artifact) -> BlockScorer:
        """A reward of answers as finished ones: a reward model of the same tokens reads on from what it has read."""
        if isinstance(artifact.entry, Classifier | RewardModel | Soup):
            model, tokenizer, _ = self.models.reward_model(artifact)
            if reads_as_it_grows(model) and difference(self.base.tokenizer.get_vocab(), tokenizer.get_vocab()) is None:
                reader, ending = self._growing(artifact, finishes=True)
                return PrefixBlocks(reader, lambda rewards, tokens: rewards, finish=ending)
        return self._texts(artifact)

    def _scorer(self, artifact: Artifact) -> Guide:
        loaded, head = self.models.prefix_scorer(artifact)
        values = prefix_values(loaded.model, head)
        if head.each is None:
            return Prefixes(self._reader(artifact, values, loaded.model, loaded.tokenizer), _end(loaded.tokenizer))
        values = self._ending_alike(values, loaded.tokenizer)
        return NextTokens(self._reader(artifact, values, loaded.model, loaded.tokenizer))

    def _reader(
        self,
        artifact: Artifact,
        output: Output,
        model: Any,
        tokenizer: Any,
        *,
        behind: int = 0,
        longest: int | None = None,
    ) -> Reader:
        """`behind` is how many tokens it reads behind those of an answer. Where prompt and answer may be more than `longest`
        tokens the prompt loses its beginning, as it does where the reward scores whole texts, but never more than half of
        `longest`: an answer that grows beyond that is read to its end."""
        name = artifact.name
        if (told := difference(self.base.tokenizer.get_vocab(), tokenizer.get_vocab())) is not None:
            raise UserError(f"`{name}` cannot guide `{self.policy.one('from').name}`: {told}")
        reader = Reader(output, [], torch.device(model.device))

        def encoded(prompt: Prompt, new: int, is_plain: bool) -> list[int]:
            whole = encode_request(tokenizer, prompt, is_plain)
            if longest is None:
                return whole
            return cut_left(tokenizer, whole, [], max(longest - new - behind, longest // 2))[0]

        def read(prompt: Prompt, new: int, is_plain: bool, told: str) -> list[int]:
            ids = encoded(prompt, new, is_plain)
            if len(ids) <= reader.lag:
                raise UserError(
                    f"`{name}` values a token from what stands before it: prompt {told} needs two tokens at least"
                )
            try:
                check_room(model, [told], [ids], new + behind)
            except ValueError as error:
                raise UserError(f"`{name}`: {error}") from None
            return ids

        def left(prompt: Prompt, is_plain: bool) -> int:
            return room(model) - behind - len(encoded(prompt, longest or 0, is_plain))  # as far as it may be cut

        self._given.append((reader, read, left))
        return reader


def _end(tokenizer: Any) -> list[int]:
    """The token by which a scorer's template ends an answer, as which it is to read any end; none where it writes none."""
    end = end_of_answer(tokenizer)
    return [] if end is None else [end]
