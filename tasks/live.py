"""Requests that come at any time, decoded together: continuous batching for every decoding rule.

One thread owns the models. Requests to one policy at one temperature and nucleus share a batch, whose rows they take and
leave as they come and end; such a lane lives as long as somebody waits for it. The random numbers of a request belong to its
seed and its prompt, whoever else is being served; so in fp32 it is answered alike in any company and by `alignflow decode`,
while in bf16 batches of another size round otherwise and now and then tip a token.

Where a step fails nothing says whose fault it was: the requests of that lane are asked again, each in a lane for itself, one after
the other, so that none fails but by itself.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import torch
from jinja2 import TemplateError

from registry.artifacts import Artifact
from registry.bases import Bases
from specs.problems import UserError
from tasks.batch import NotFinite
from tasks.lane import Lane, Open, rule_under
from tasks.models import Models
from tasks.requests import Asked, Failed, Tell
from tasks.rules import Rule, rule_of

LANES = 8
"""Different distributions at once: each has key/value caches of its own, for all its rows. What asks for another one waits."""
WAITING = 1024
"""Requests under way and waiting. One more is refused, so that who asks too much hears of it."""
CLOSING = Failed("the server is shutting down", "closing")


class Live(threading.Thread):
    """See the module. `start` it; `ask` from any thread."""

    def __init__(self, policies: Mapping[str, Artifact], *, rows: int, max_new_tokens: int) -> None:
        super().__init__(name="decoding", daemon=True)
        self.policies, self.rows, self.max_new_tokens = policies, rows, max_new_tokens
        self.models = Models(rows, Bases())
        self._coming: queue.SimpleQueue[Open | None] = queue.SimpleQueue()
        self._lanes: list[Lane] = []
        self._held: list[Open] = []
        self._apart: deque[Open] = deque()
        # What comes in while the thread ends would be answered by nobody.
        self._door = threading.Lock()
        self._is_open = True

    def load(self) -> None:
        """Everything that the policies are made of, so that no request waits for it. Raises `UserError` for what cannot be
        loaded, or cannot guide what it is to guide."""
        for policy in self.policies.values():
            self._lane(policy, rule_of(policy))

    def ask(self, asked: Asked, tell: Tell) -> Callable[[], None]:
        """`tell` hears of the answers in the thread of this object, in the end of `Done` or `Failed`; calling what is
        returned gives the request up."""
        opened = Open(asked, tell)
        with self._door:
            if not (self._is_open and self.is_alive()):
                tell(CLOSING)
            elif self._under_way() >= WAITING:
                tell(Failed(f"{WAITING:,} requests are under way; ask again later", "busy"))
            else:
                self._coming.put(opened)
        return opened.give_up

    def _under_way(self) -> int:
        lanes = sum(len(lane.opened) for lane in list(self._lanes))
        return lanes + len(self._held) + len(self._apart) + self._coming.qsize()

    def close(self) -> None:
        """End once the step under way is over; what is not answered by then fails."""
        self._coming.put(None)
        if self.is_alive():
            self.join()

    @torch.inference_mode()
    def run(self) -> None:
        try:
            while self._go_on():
                pass
        finally:
            with self._door:
                self._is_open = False
            left = [opened for lane in self._lanes for opened in lane.empty()]
            for opened in (*left, *self._held, *self._apart, *self._arrivals(wait=False)):
                if opened is not None:
                    opened.tell(CLOSING)

    def _go_on(self) -> bool:
        """One step of every lane; whether there are to be more."""
        coming = [*self._held, *self._arrivals(wait=not (self._lanes or self._held or self._apart))]
        self._held = [opened for opened in coming if opened is not None]
        if len(self._held) < len(coming):
            return False
        waiting, self._held = self._held, []
        if self._apart and not any(lane.is_apart for lane in self._lanes):
            waiting.insert(0, self._apart.popleft())
            waiting[0].is_apart = True
        for opened in waiting:
            if opened.is_given_up:
                continue
            try:
                lane = self._lane_of(opened)
                if lane is None:
                    self._held.append(opened)
                else:
                    lane.add(opened)
            except UserError as error:
                opened.tell(Failed(str(error), "request"))
            except TemplateError as error:
                opened.tell(Failed(f"the chat template refuses these messages: {error}", "request"))
            except Exception as error:  # a defect, or a machine without memory; others are served on
                traceback.print_exc()
                opened.tell(Failed(_defect(error), "policy"))
        for lane in self._lanes:
            try:
                lane.step()
            except NotFinite:
                self._failed(lane, f"`{lane.policy.name}` gave logits that are no numbers; look at its weights")
            except UserError as error:  # a reward that guides
                self._failed(lane, str(error))
            except Exception as error:
                traceback.print_exc()
                self._failed(lane, _defect(error))
        self._lanes = [lane for lane in self._lanes if lane.opened]
        return True

    def _failed(self, lane: Lane, told: str) -> None:
        opened = lane.empty()
        if len(opened) == 1:
            opened[0].tell(Failed(told, "policy"))
        else:
            self._apart.extend(opened)

    def _lane_of(self, opened: Open) -> Lane | None:
        """The lane of what a request means, whatever of it was left to the rule; None while there is room for no more."""
        policy = self.policies[opened.asked.policy]
        rule = rule_under(policy, opened.asked)
        for lane in self._lanes if not opened.is_apart else ():
            if lane.policy is policy and lane.rule == rule and lane.takes_more:
                return lane
        if len(self._lanes) >= LANES:
            return None
        lane = self._lane(policy, rule)
        self._lanes.append(lane)
        return lane

    def _lane(self, policy: Artifact, rule: Rule) -> Lane:
        return Lane(self.models, policy, rule, rows=self.rows, max_new_tokens=self.max_new_tokens)

    def _arrivals(self, wait: bool) -> Iterator[Open | None]:
        with contextlib.suppress(queue.Empty):
            if wait:
                yield self._coming.get()
            while True:
                yield self._coming.get_nowait()


def _defect(error: Exception) -> str:
    return f"the server failed: {type(error).__name__}; its log says more"
