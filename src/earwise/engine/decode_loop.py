"""Token after token: the trie of what samples say, one state per distinct beginning, guesses in rows that are free.

A pass computes the last token of every state, and guesses of what follows it (`draft.py`). At each of them all samples
of the state draw as if they stood there; then every sample goes on as far as the guesses are what it drew.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from earwise.engine.base import Decoding
from earwise.engine.draft import LONGEST, Drafts, Guess
from earwise.engine.kv_cache import TreeCache, following
from earwise.engine.rng import Draws, drawn
from earwise.engine.static_cache import StaticCache
from earwise.models.base import AudioLM


@dataclass(slots=True)
class Said:
    """One sample so far: the drawn tokens, the end token included, their log-probabilities, and whether it ended."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False


Watch = Callable[[Sequence[Sequence[Said]]], Collection[tuple[int, int]]]
"""Sees the samples of every prompt after each token; gives back those that are to say no more, as (prompt, sample)."""


@dataclass(slots=True)
class State:
    """A distinct beginning: its prompt and tree, the samples that stand on it, where the token before its last stood in
    the last pass, and its last token (not yet computed)."""

    prompt: int
    tree: int
    samples: list[int]
    column: int
    token: int
    position: int


@dataclass(slots=True)
class Tally:
    """What sampling has come to.

    Attributes:
        distinct: Tokens computed that somebody said, trunks included.
        guessed: Tokens computed on a guess.
        kept: Those of them that somebody said.
        sampled: Tokens handed out.
        passes: Decoding passes.
    """

    distinct: int = 0
    guessed: int = 0
    kept: int = 0
    sampled: int = 0
    passes: int = 0


@dataclass(slots=True)
class _Pass:
    """One forward pass: a row a state, then a row a guess.

    Attributes:
        states: As they were before it.
        guesses: Parents first.
        columns: Where each row stood among its tree's queries.
        slots: Where each guess's keys and values went.
        scores: Of the next token, `(rows, vocab)`.
    """

    states: list[State]
    guesses: list[Guess]
    columns: list[int]
    slots: list[int]
    scores: Tensor

    def rows(self) -> Iterator[tuple[State, int]]:
        """The state that each row belongs to, and how many tokens behind it the row is."""
        yield from ((state, 0) for state in self.states)
        yield from ((self.states[guess.state], guess.depth) for guess in self.guesses)


class Growth:
    """The trees of one group of prompts while they grow.

    Args:
        model: Who speaks.
        cache: Keys and values of the trunks.
        slots: The next free slot of each tree.
        prompts: Token ids of each prompt.
        said: Filled here; one list of samples a prompt.
        draws: Random numbers of each prompt.
        decoding: How to draw, and how long.
        room: Rows that a pass of so many states may have at no further cost.
        tally: Counted on here.
        watch: See `Watch`.
    """

    def __init__(
        self, model: AudioLM, cache: TreeCache | StaticCache, slots: list[int], prompts: Sequence[Sequence[int]],
        said: list[list[Said]], draws: Sequence[Draws], decoding: Decoding, *, room: Callable[[int], int],
        tally: Tally, watch: Watch | None,
    ) -> None:  # fmt: skip
        self._model, self._cache, self._slots = model, cache, slots
        self._free: list[list[int]] = [[] for _ in slots]
        """Slots of each tree that hold a guess which nobody said."""
        self._said, self._draws, self._decoding = said, draws, decoding
        self._room, self._tally, self._watch = room, tally, watch
        self._prompts = prompts
        self._drafts = Drafts(prompts, model.eos_ids) if room(1) > 1 else None

    def run(self, states: list[State], scores: Tensor) -> None:
        """Go on from trunks until all samples have ended.

        Args:
            states: One a prompt; its column is where the trunk's last token stood, its own token unused.
            scores: Of the next token, `(states, vocab)`.
        """
        last = _Pass(states, [], [state.column for state in states], [], scores)
        while states := self._walk(last):
            self._drop_trees(states)
            last = self._compute(states, self._guess(states))

    def _walk(self, last: _Pass) -> list[State]:
        """Draw the next tokens of every sample; the states of those that go on."""
        rows = list(last.rows())
        tokens, values = self._drawn(last.scores, rows)
        count = len(last.states)
        below = {
            (guess.parent + count if guess.parent >= 0 else guess.state, guess.token): count + number
            for number, guess in enumerate(last.guesses)
        }
        seats = [{sample: seat for seat, sample in enumerate(state.samples)} for state in last.states]
        owners = [*range(count), *(guess.state for guess in last.guesses)]
        walking = [(row, state.samples) for row, state in enumerate(last.states)]
        out: list[State] = []
        reached: set[int] = set()
        while walking:
            further = []
            for row, samples in walking:
                (state, depth), seat = rows[row], seats[owners[row]]
                said = {sample: (tokens[row][seat[sample]], values[row][seat[sample]]) for sample in samples}
                for token, some in self._say(state.prompt, said).items():
                    if (child := below.get((row, token))) is None:
                        position = state.position + depth
                        out.append(State(state.prompt, state.tree, some, last.columns[row], token, position))
                    else:
                        reached.add(child)
                        further.append((child, some))
            walking = further
            if self._watch is not None and (enough := self._watch(self._said)):
                walking = [(row, left) for row, some in walking if (left := _without(some, rows[row][0], enough))]
                for state in out:
                    state.samples = _without(state.samples, state, enough)
        self._tally.distinct += len(reached)
        self._tally.guessed += len(last.guesses)
        self._tally.kept += len(reached)
        for number, (guess, slot) in enumerate(zip(last.guesses, last.slots, strict=True)):
            if count + number not in reached:
                self._free[last.states[guess.state].tree].append(slot)
        return [state for state in out if state.samples]

    def _drawn(self, scores: Tensor, rows: Sequence[tuple[State, int]]) -> tuple[list[list[int]], list[list[float]]]:
        """What each sample of a row's state says there, and its log-probability."""
        logprobs = torch.log_softmax(scores.float(), -1)
        width = max(len(state.samples) for state, _ in rows)
        if self._decoding.temperature == 0:
            chosen = logprobs.argmax(-1)[:, None].expand(-1, width)
        else:
            numbers = torch.zeros(len(rows), width, dtype=torch.float64)
            for row, (state, depth) in zip(numbers, rows, strict=True):
                token = len(self._said[state.prompt][state.samples[0]].ids) + depth
                row[: len(state.samples)] = self._draws[state.prompt].at(token, state.samples)
            chosen = drawn(logprobs, numbers, self._decoding)
        return chosen.tolist(), logprobs.gather(-1, chosen).tolist()

    def _say(self, prompt: int, said: dict[int, tuple[int, float]]) -> dict[int, list[int]]:
        """Write down what samples that said the same so far say next; who goes on, by token."""
        before = self._context(prompt, next(iter(said)))
        groups: dict[int, list[int]] = {}
        for sample, (token, value) in said.items():
            one = self._said[prompt][sample]
            one.ids.append(token)
            one.logprobs.append(value)
            one.done = token in self._model.eos_ids
            groups.setdefault(token, []).append(sample)
        self._tally.sampled += len(said)
        if self._drafts is not None:
            for token, samples in groups.items():
                self._drafts.learn(before, token, len(samples))
        full = len(self._said[prompt][next(iter(said))].ids) == self._decoding.max_new_tokens
        return {} if full else {token: some for token, some in groups.items() if token not in self._model.eos_ids}

    def _context(self, prompt: int, sample: int) -> list[int]:
        """The last tokens of a sample, from its prompt where it has said too few."""
        ids = self._said[prompt][sample].ids[-LONGEST:]
        return ids if len(ids) == LONGEST else [*self._prompts[prompt][-LONGEST:], *ids][-LONGEST:]

    def _guess(self, states: Sequence[State]) -> list[Guess]:
        free = self._room(len(states)) - len(states)
        if self._drafts is None or free <= 0:
            return []
        asked = []
        for state in states:
            sample = state.samples[0]
            deepest = self._decoding.max_new_tokens - len(self._said[state.prompt][sample].ids) - 1
            asked.append((state.prompt, self._context(state.prompt, sample), deepest))
        return self._drafts.guess(asked, free)

    def _drop_trees(self, states: Sequence[State]) -> None:
        """Forget trees that nobody stands on, once they are half of all."""
        alive = sorted({state.tree for state in states})
        if len(alive) > len(self._slots) // 2:
            return
        self._cache.keep(torch.tensor(alive, device=self._device))
        renumber = {old: new for new, old in enumerate(alive)}
        for state in states:
            state.tree = renumber[state.tree]
        self._slots = [self._slots[tree] for tree in alive]
        self._free = [self._free[tree] for tree in alive]

    def _compute(self, states: list[State], guesses: list[Guess]) -> _Pass:
        """The last token of every state, and the guesses that follow them."""
        filled = [0] * len(self._slots)
        columns: list[int] = []
        numbers: list[list[int]] = []

        def put(tree: int, token: int, position: int, parent: int) -> None:
            if self._free[tree]:
                slot = self._free[tree].pop()
            else:
                slot, self._slots[tree] = self._slots[tree], self._slots[tree] + 1
            columns.append(filled[tree])
            numbers.append([token, position, tree, parent, filled[tree], slot])
            filled[tree] += 1

        for state in states:
            put(state.tree, state.token, state.position, state.column)
        for guess in guesses:
            state, parent = states[guess.state], guess.state if guess.parent < 0 else len(states) + guess.parent
            put(state.tree, guess.token, state.position + guess.depth, columns[parent])
        for state in states:
            state.position += 1
        ids, positions, rows, parents, places, slots = torch.tensor(numbers, device=self._device).unbind(1)
        depths = [guess.depth for guess in guesses]
        levels = [len(states), *(depths.count(depth) for depth in sorted(set(depths)))]
        shape = (max(filled), max(self._slots))
        step = following(self._cache.mask, rows, parents, places, slots, shape, levels)
        self._tally.distinct += len(states)
        self._tally.passes += 1
        scores = self._cache.advance(self._model, ids, positions, step)
        return _Pass(states, guesses, columns, [number[-1] for number in numbers[len(states) :]], scores)

    @property
    def _device(self) -> torch.device:
        return self._cache.mask.device


def _without(samples: list[int], state: State, enough: Collection[tuple[int, int]]) -> list[int]:
    return [sample for sample in samples if (state.prompt, sample) not in enough]
