"""The local engine: listen once, prefill the trunk once, keep one state per distinct beginning.

All samples of a prompt that have said the same so far stand on one state. A state computes its next-token distribution
once, draws as many tokens from it as samples stand on it, and forks only where they differ: the samples are independent
and identically distributed as if drawn one by one. Draws of a prompt come from a generator seeded by `(seed, key)`
alone, so they do not depend on what else is in the batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path as FilePath

import torch
from torch import Tensor

from earwise.answers import parse
from earwise.audio import decode
from earwise.engine.base import Decoding, Engine, Prompt
from earwise.engine.cache import Step, TreeCache
from earwise.errors import AudioError
from earwise.forest import Path, bins, by_branch, pack, place_audio, plant, target_logprobs
from earwise.models.base import AudioLM
from earwise.models.ears import Ears
from earwise.models.parts.attention import TreeAttention
from earwise.models.sequence import answer_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.types import Audio, Completion, Example, Text, Turn, Waveform


@dataclass(slots=True)
class _Said:
    """One sample so far."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False


@dataclass(slots=True)
class _State:
    """A distinct beginning: its tree, the samples that stand on it, what it sees, and its last token (not yet
    computed)."""

    tree: int
    samples: list[int]
    seen: Tensor
    token: int
    position: int


class LocalEngine:
    """An `Engine` on a model in this process.

    Args:
        model: Any `AudioLM`.
        ears: Shared memory of what was heard; None makes one.
        trees: Prompts sampled together.
    """

    def __init__(self, model: AudioLM, *, ears: Ears | None = None, trees: int = 16) -> None:
        self.model = model
        self.name = model.name
        self.revision = model.revision
        self.sample_rate = model.spec.sample_rate
        self.max_audio_s = model.spec.max_s
        self.ears = ears or Ears(model)
        self.trees = trees
        self.distinct_tokens = 0
        """Tokens computed while sampling, since the start."""
        self.sampled_tokens = 0
        """Tokens handed out while sampling, since the start."""

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding, n: int = 1) -> list[list[Completion]]:
        """Answer every prompt `n` times; see `Engine`."""
        out: list[list[Completion]] = []
        for start in range(0, len(prompts), self.trees):
            out += self._group(prompts[start : start + self.trees], decoding, n, None)
        return out

    def stream(self, prompt: Prompt, decoding: Decoding) -> Iterator[str]:
        """Answer one prompt, piece by piece as it is said."""
        import queue
        import threading

        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        told = ""

        def tell(ids: list[int]) -> None:
            nonlocal told
            text = self.model.detokenize(ids)
            if not text.endswith("\ufffd"):
                pieces.put(text[len(told) :])
                told = text

        def work() -> None:
            try:
                self._group([prompt], decoding, 1, tell)
                pieces.put(None)
            except BaseException as error:  # handed over to the reader, who raises it
                pieces.put(error)

        threading.Thread(target=work, daemon=True).start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-likelihood of each continuation; one tree per prompt, the sound heard once."""
        for prompt in prompts:
            self._check(prompt)
        trunks, connected = self._trunks(prompts)
        trees = [
            plant([trunk + answer_path(self.model, option) for option in options])
            for trunk, options in zip(trunks, continuations, strict=True)
        ]
        out: list[list[float]] = [[] for _ in prompts]
        for members in bins([len(tree) for tree in trees], 2048):
            forest = pack([trees[i] for i in members], self._device)
            embeddings = place_audio(self.model.embed(forest.ids), forest, connected)
            hidden = self.model.decode(embeddings, forest.positions, TreeAttention(forest))
            sums = by_branch(target_logprobs(hidden, forest, self.model.logits), forest).sum(1)
            for tree, value in zip(forest.branch_trees.tolist(), sums.tolist(), strict=True):
                out[members[tree]].append(value)
        return out

    @property
    def _device(self) -> torch.device:
        return next(self.model.module.parameters()).device

    def _check(self, prompt: Prompt) -> None:
        for wave in prompt.waves:
            if len(wave) > self.max_audio_s * self.sample_rate:
                raise AudioError(
                    f"clip of {len(wave) / self.sample_rate:.1f} s is longer than the {self.max_audio_s:.0f} s "
                    f"that {self.name} hears; "
                    "cut it, or choose long_audio: truncate or chunk"
                )

    @torch.inference_mode()
    def _group(
        self, prompts: Sequence[Prompt], decoding: Decoding, n: int, tell: Callable[[list[int]], None] | None
    ) -> list[list[Completion]]:
        for prompt in prompts:
            self._check(prompt)
        device = self._device
        said = [[_Said() for _ in range(n)] for _ in prompts]
        draws = [_generator(decoding.seed, prompt.key or str(i)) for i, prompt in enumerate(prompts)]
        cache = TreeCache(len(prompts))
        states, scores = self._prefill(prompts, cache, n)
        rows = list(range(len(prompts)))  # cache row -> prompt
        slots = [int(state.position) for state in states]  # next free slot per row; trunks fill 0..position-1
        for step in range(decoding.max_new_tokens):
            states = self._fork(states, scores, said, draws, rows, decoding)
            if tell is not None:
                tell([i for i in said[0][0].ids if i not in self.model.eos_ids])
            if not states or step == decoding.max_new_tokens - 1:
                break
            alive = sorted({state.tree for state in states})
            if len(alive) <= len(rows) // 2:
                cache.keep(torch.tensor(alive, device=device))
                renumber = {old: new for new, old in enumerate(alive)}
                for state in states:
                    state.tree = renumber[state.tree]
                rows, slots = [rows[i] for i in alive], [slots[i] for i in alive]
            scores = self._advance(states, cache, slots, device)
        return [[self._completion(sample, decoding) for sample in samples] for samples in said]

    def _trunks(self, prompts: Sequence[Prompt]) -> tuple[list[Path], dict[int, Tensor]]:
        """The path of every prompt, and the embeddings of every clip under the number that the paths give it."""
        trunks: list[Path] = []
        waves: list[Waveform] = []
        for prompt in prompts:
            clips = range(len(waves), len(waves) + len(prompt.waves))
            waves += prompt.waves
            lengths = [len(wave) for wave in prompt.waves]
            trunks.append(conversation_path(self.model, prompt.turns, clips, lengths, generate=True))
        return trunks, dict(enumerate(self.model.connect(self.ears.heard(waves))))

    def _prefill(self, prompts: Sequence[Prompt], cache: TreeCache, n: int) -> tuple[list[_State], Tensor]:
        """Compute every trunk in one pass; returns one state per prompt and its next-token scores."""
        device = self._device
        trunks, connected = self._trunks(prompts)
        forest = pack([plant([trunk]) for trunk in trunks], device)
        lengths = [len(trunk.ids) for trunk in trunks]
        width = max(lengths)
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        cache.begin(
            Step(
                rows=torch.repeat_interleave(
                    torch.arange(len(trunks), device=device), torch.tensor(lengths, device=device)
                ),
                columns=forest.positions,
                slots=forest.positions,
                mask=causal.expand(len(trunks), 1, width, width),
            )
        )
        embeddings = place_audio(self.model.embed(forest.ids), forest, connected)
        hidden = self.model.decode(embeddings, forest.positions, cache)
        self.distinct_tokens += len(forest)
        last = hidden[torch.tensor(forest.bounds[1:], device=device) - 1]
        states = []
        for tree, length in enumerate(lengths):
            states.append(_State(tree, list(range(n)), torch.arange(width, device=device) < length, -1, length))
        return states, self.model.logits(last)

    def _fork(
        self,
        states: list[_State],
        scores: Tensor,
        said: list[list[_Said]],
        draws: list[torch.Generator],
        rows: list[int],
        decoding: Decoding,
    ) -> list[_State]:
        """Draw the next token of every sample; one new state per distinct beginning that goes on."""
        logprobs = torch.log_softmax(scores.float(), -1)
        greedy = logprobs.argmax(-1).tolist() if decoding.temperature == 0 else []
        weights = None if decoding.temperature == 0 else _weights(logprobs, decoding)
        out = []
        for number, state in enumerate(states):
            prompt = rows[state.tree]
            if weights is None:
                tokens = [greedy[number]] * len(state.samples)
            else:
                tokens = torch.multinomial(
                    weights[number].cpu(), len(state.samples), replacement=True, generator=draws[prompt]
                ).tolist()
            groups: dict[int, list[int]] = {}
            for sample, token in zip(state.samples, tokens, strict=True):
                groups.setdefault(token, []).append(sample)
            values = logprobs[number, list(groups)].tolist()
            for (token, samples), value in zip(groups.items(), values, strict=True):
                ends = token in self.model.eos_ids
                for sample in samples:
                    one = said[prompt][sample]
                    one.ids.append(token)
                    one.logprobs.append(value)
                    one.done = ends
                self.sampled_tokens += len(samples)
                if not ends:
                    out.append(_State(state.tree, samples, state.seen, token, state.position))
        return out

    def _advance(self, states: list[_State], cache: TreeCache, slots: list[int], device: torch.device) -> Tensor:
        """Compute the last token of every state; returns next-token scores `(states, vocab)`."""
        columns, where = [], []
        filled = [0] * len(slots)
        for state in states:
            columns.append(filled[state.tree])
            filled[state.tree] += 1
            where.append(slots[state.tree])
            slots[state.tree] += 1
        used = max(slots)
        mask = torch.zeros(len(slots), 1, max(filled), used, dtype=torch.bool, device=device)
        mask[..., 0] = True  # a row of padding must see something
        for state, column, slot in zip(states, columns, where, strict=True):
            seen = torch.zeros(used, dtype=torch.bool, device=device)
            seen[: len(state.seen)] = state.seen[:used]
            seen[slot] = True
            state.seen = seen
            mask[state.tree, 0, column] = seen
        cache.begin(
            Step(
                rows=torch.tensor([state.tree for state in states], device=device),
                columns=torch.tensor(columns, device=device),
                slots=torch.tensor(where, device=device),
                mask=mask,
            )
        )
        ids = torch.tensor([state.token for state in states], device=device)
        positions = torch.tensor([state.position for state in states], device=device)
        for state in states:
            state.position += 1
        self.distinct_tokens += len(states)
        return self.model.logits(self.model.decode(self.model.embed(ids), positions, cache))

    def _completion(self, sample: _Said, decoding: Decoding) -> Completion:
        text = self.model.detokenize(sample.ids[:-1] if sample.done else sample.ids)
        return Completion(text, tuple(sample.ids), tuple(sample.logprobs), "stop" if sample.done else "length")


def _generator(seed: int, key: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _weights(logprobs: Tensor, decoding: Decoding) -> Tensor:
    """Sampling probabilities after temperature, top-k and top-p (the smallest set of likeliest tokens that reaches
    p)."""
    scaled = logprobs / decoding.temperature
    if decoding.top_k:
        floor = scaled.topk(min(decoding.top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    weights = torch.softmax(scaled, -1)
    if decoding.top_p < 1:
        ordered, order = weights.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= decoding.top_p
        weights = weights.scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return weights


def ask(engine: Engine, sound: str | PathLike[str] | Waveform, question: str, choices: Sequence[str] = ()) -> str:
    """Ask one question about one sound.

    Args:
        engine: Who answers.
        sound: A file, or a waveform at the engine's sample rate.
        question: In words.
        choices: Options, if there are any.
    Returns:
        The answer, tags taken off; the model's own words where they hold no answer.
    Raises:
        AudioError: if the file cannot be read or is longer than the engine hears.
    """
    wave = (
        decode(FilePath(sound), engine.sample_rate, max_s=engine.max_audio_s)
        if isinstance(sound, str | PathLike)
        else sound
    )
    example = Example("ask", (Turn("user", (Audio("sound"), Text(question))),), choices=tuple(choices))
    prompt = Prompt(prompt_turns(example, "answer" if choices else "open"), (wave,))
    (said,) = engine.generate([prompt], Decoding())[0]
    return parse(said.text, example.choices).answer or said.text.strip()
