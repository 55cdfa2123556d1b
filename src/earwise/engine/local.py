"""The local engine: listen once, prefill the trunk once, keep one state per distinct beginning.

Prompts asked together about the same sound share it: they are branches of one tree with the sound at its root. All
samples of a prompt that have said the same so far stand on one state. A state computes its next-token distribution
once, draws as many tokens from it as samples stand on it, and forks only where they differ: the samples are independent
and identically distributed as if drawn one by one (`grow.py`, `draws.py`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from earwise.answers import parse
from earwise.audio import decode
from earwise.engine.base import Engine, Prompt, SamplingParams
from earwise.engine.decode_loop import Growth, PartialCompletion, State, DecodeStats, StepCallback
from earwise.engine.kv_cache import Step, TreeCache
from earwise.engine.rng import Draws
from earwise.engine.static_cache import StaticCache, rung
from earwise.engine.token_delay import token_delay
from earwise.errors import AudioError
from earwise.forest import (
    TokenPath,
    assign_bins,
    branch_logprobs,
    build_tree,
    insert_audio_embeddings,
    pack,
    target_logprobs,
)
from earwise.models.base import AudioLM
from earwise.models.cpu_decode.prepacked import CHEAP, FEWEST, Packed
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.attention import TreeAttention
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.types import Audio, Completion, Example, Text, Turn, Waveform

LONG = 48
"""From so many tokens on answers are taken to part soon."""
FEWEST_TOKENS = 8
"""A pass on an accelerator may have so many tokens at the cost of one: it waits for the weights."""


class LocalEngine:
    """An `Engine` on a model in this process.

    Args:
        model: Any `AudioLM`.
        ears: Shared memory of what was heard; None makes one.
        trees: Prompts sampled together; those about one sound share it.
        static: Decode in buffers of fixed shapes (`static.py`); None does so on CUDA, where it pays.
    """

    def __init__(
        self, model: AudioLM, *, encoder_cache: EncoderCache | None = None, trees: int = 32, static: bool | None = None
    ) -> None:
        self.model = model
        self.name = model.name
        self.revision = model.revision
        self.sample_rate = model.spec.sample_rate
        self.max_audio_s = model.spec.max_s
        self.encoder_cache = encoder_cache or EncoderCache(model)
        self.trees = trees
        self._packed = Packed(model.module, model.groups["decoder"])
        on_cuda = self._device.type == "cuda"
        self._static = StaticCache(model, capture=on_cuda) if (on_cuda if static is None else static) else None
        self.stats = DecodeStats()
        """What sampling has come to since the start."""

    def generate(self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1) -> list[list[Completion]]:
        """Answer every prompt `n` times; see `Engine`."""
        out: list[list[Completion]] = []
        for start in range(0, len(prompts), self.trees):
            out += self._group(prompts[start : start + self.trees], sampling_params, n, None)
        return out

    def generate_with_callback(self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int, watch: StepCallback) -> None:
        """`generate` as one group, looked at while it grows: for a server, whose answers are told piece by piece and
        may end before the model ends them. Nobody's draws change when another sample is ended."""
        self._group(prompts, sampling_params, n, watch)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams) -> Iterator[str]:
        """Answer one prompt, piece by piece as it is said."""
        import queue
        import threading

        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        told = ""

        def tell(said: Sequence[Sequence[PartialCompletion]]) -> tuple[()]:
            nonlocal told
            text = self.model.detokenize([i for i in said[0][0].token_ids if i not in self.model.eos_ids])
            if not text.endswith("\ufffd"):
                pieces.put(text[len(told) :])
                told = text
            return ()

        def work() -> None:
            try:
                self._group([prompt], sampling_params, 1, tell)
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
        groves = _groves(trunks)
        trees = [
            build_tree(
                [
                    trunks[number] + answer_path(self.model, option)
                    for number in members
                    for option in continuations[number]
                ]
            )
            for members in groves
        ]
        values: list[list[float]] = [[] for _ in groves]
        for members in assign_bins([len(tree) for tree in trees], 2048):
            forest = pack([trees[i] for i in members], self._device)
            embeddings = insert_audio_embeddings(self.model.embed(forest.ids), forest, connected)
            hidden = self.model.decode(embeddings, forest.positions, TreeAttention(forest))
            sums = branch_logprobs(target_logprobs(hidden, forest, self.model.logits), forest).sum(1)
            for tree, value in zip(forest.branch_trees.tolist(), sums.tolist(), strict=True):
                values[members[tree]].append(value)
        out: list[list[float]] = [[] for _ in prompts]
        for members, scores in zip(groves, values, strict=True):
            told = iter(scores)
            for number in members:
                out[number] = [next(told) for _ in continuations[number]]
        return out

    @property
    def _device(self) -> torch.device:
        return next(self.model.module.parameters()).device

    def _check(self, prompt: Prompt) -> None:
        for wave in prompt.waveforms:
            if len(wave) > self.max_audio_s * self.sample_rate:
                raise AudioError(
                    f"clip of {len(wave) / self.sample_rate:.1f} s is longer than the {self.max_audio_s:.0f} s "
                    f"that {self.name} hears; "
                    "cut it, or choose long_audio: truncate or chunk"
                )

    @torch.inference_mode()
    def _group(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int, watch: StepCallback | None
    ) -> list[list[Completion]]:
        for prompt in prompts:
            self._check(prompt)
        said = [[PartialCompletion() for _ in range(n)] for _ in prompts]
        draws = [Draws(sampling_params.seed, prompt.key or str(i), n) for i, prompt in enumerate(prompts)]
        trunks, connected = self._trunks(prompts)
        cache = TreeCache()
        states, scores, slots = self._prefill(trunks, connected, cache, n)
        grow = partial(
            Growth, self.model, slots=slots, prompts=[trunk.ids for trunk in trunks], said=said, draws=draws,
            sampling_params=sampling_params, stats=self.stats, watch=watch,
        )  # fmt: skip
        if self._static is not None:
            with self._static.holding(cache):
                grow(self._static, room=lambda states: rung(max(states, FEWEST_TOKENS))).run(states, scores)
        else:
            beginnings, passes = len(prompts) * (n if sampling_params.temperature else 1), sampling_params.max_new_tokens - 1
            with self._packed.decoding(_with_guesses(beginnings, passes), passes=passes) as rows:
                grow(cache, room=lambda _: rows).run(states, scores)
        return [[self._completion(sample, sampling_params) for sample in samples] for samples in said]

    def _trunks(self, prompts: Sequence[Prompt]) -> tuple[list[TokenPath], dict[int, Tensor]]:
        """The path of every prompt, and the embeddings of every distinct clip under the number that the paths give
        it."""
        trunks: list[TokenPath] = []
        numbers: dict[bytes, int] = {}
        waveforms: list[Waveform] = []
        for prompt in prompts:
            clips = []
            for wave in prompt.waveforms:
                number = numbers.setdefault(hashlib.blake2b(wave.tobytes(), digest_size=16).digest(), len(numbers))
                if number == len(waveforms):
                    waveforms.append(wave)
                clips.append(number)
            lengths = [len(wave) for wave in prompt.waveforms]
            trunks.append(conversation_path(self.model, prompt.turns, clips, lengths, generate=True))
        return trunks, dict(enumerate(self.model.project_audio(self.encoder_cache.encoder_states(waveforms))))

    def _prefill(
        self, trunks: Sequence[TokenPath], connected: dict[int, Tensor], cache: TreeCache, n: int
    ) -> tuple[list[State], Tensor, list[int]]:
        """Compute all trunks in one pass; returns one state per prompt, its next-token scores, and the next free slot
        of each tree."""
        device = self._device
        groves = _groves(trunks)
        # The last token of each trunk is marked, so that the tree says where it stands.
        trees = [build_tree([_marked(trunks[number]) for number in members]) for members in groves]
        forest = pack(trees, device)
        slots = [len(tree) for tree in trees]
        width = max(slots)
        starts = torch.tensor(forest.tree_offsets[:-1], device=device)
        lengths = torch.tensor(slots, device=device)
        rows = torch.repeat_interleave(torch.arange(len(trees), device=device), lengths, output_size=len(forest))
        index = torch.arange(len(forest), device=device) - starts[rows]
        ends = torch.zeros(len(trees), width, dtype=torch.long, device=device)
        ends[rows, index] = forest.subtree_ends - starts[rows]
        place = torch.arange(width, device=device)
        mask = (place[None, None, :] <= place[None, :, None]) & (place[None, :, None] < ends[:, None, :])
        mask |= torch.eye(width, dtype=torch.bool, device=device)  # a row of padding must see something
        cache.begin(Step(rows=rows, columns=index, slots=index, mask=mask[:, None]))
        embeddings = insert_audio_embeddings(self.model.embed(forest.ids), forest, connected)
        hidden = self.model.decode(embeddings, forest.positions, cache)
        self.stats.computed_tokens += len(forest)
        found = {
            number: (tree, branch[0])
            for tree, members in enumerate(groves)
            for number, branch in zip(members, trees[tree].branches, strict=True)
        }
        states, last = [], []
        for number, trunk in enumerate(trunks):
            tree, at = found[number]
            states.append(State(number, tree, list(range(n)), at, -1, len(trunk.ids)))
            last.append(forest.tree_offsets[tree] + at)
        return states, self.model.logits(hidden[torch.tensor(last, device=device)]), slots

    def _completion(self, sample: PartialCompletion, sampling_params: SamplingParams) -> Completion:
        ids = sample.token_ids[:-1] if sample.finished else sample.token_ids
        text = self.model.detokenize(ids)
        delay = token_delay(text, ids, self.model.detokenize)
        return Completion(text, tuple(sample.token_ids), tuple(sample.logprobs), "stop" if sample.finished else "length", delay)


def _groves(trunks: Sequence[TokenPath]) -> list[list[int]]:
    """Numbers of the trunks that share a tree: those whose first clip is the same; a trunk without sound stands
    alone."""
    groves: dict[int, list[int]] = {}
    for number, trunk in enumerate(trunks):
        first = next((clip for clip in trunk.clips if clip >= 0), -1 - number)
        groves.setdefault(first, []).append(number)
    return list(groves.values())


def _with_guesses(beginnings: int, passes: int) -> int:
    """Rows of a packed pass: as many again for guesses where answers may get long. Short ones leave room enough, since
    they begin alike; a pass of up to `CHEAP` rows mostly waits for the weights."""
    if beginnings < FEWEST or passes < LONG:
        return beginnings
    return max(beginnings, min(2 * beginnings, CHEAP))


def _marked(trunk: TokenPath) -> TokenPath:
    """The same path with its last token, and no other, wanted."""
    return TokenPath(trunk.ids, (False,) * (len(trunk.ids) - 1) + (True,), trunk.clips)


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
        decode(Path(sound), engine.sample_rate, max_s=engine.max_audio_s)
        if isinstance(sound, str | PathLike)
        else sound
    )
    example = Example("ask", (Turn("user", (Audio("sound"), Text(question))),), choices=tuple(choices))
    prompt = Prompt(prompt_turns(example, "answer" if choices else "open"), (wave,))
    (said,) = engine.generate([prompt], SamplingParams())[0]
    return parse(said.text, example.choices).answer or parse(said.text, ()).answer or said.text.strip()
