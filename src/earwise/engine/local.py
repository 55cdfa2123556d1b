"""The local engine: encode each clip once, prefill each prompt once, and decode all samples as branches of one tree.

`generate` goes through these steps for a batch of prompts:

1. `_encode_prompts`: every distinct clip goes through the encoder (or the encoder cache) and the connector once;
   every prompt becomes a token path.
2. `engine.prefill`: prompts with the same first clip are merged into one token tree, so that the clip's audio tokens
   are computed once for all of them; all trees go through the decoder in one packed pass.
3. `engine.decode_loop`: all samples of a prompt start on one leaf of its tree, which forks only where they draw
   different tokens. They are independent and identically distributed, as if drawn one by one.

`score` packs prompts and continuations into trees in the same way, and reads log-probabilities from one forward pass.
"""

import hashlib
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import torch
from torch import Tensor

from earwise.audio import LONG_AUDIO_REMEDY
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import DecodeLoop, DecodeRequest, DecodeStats, PartialCompletion, StepCallback
from earwise.engine.kv_cache import MAX_RESERVED_BYTES, TreeCache
from earwise.engine.prefill import group_by_clip, prefill
from earwise.engine.sampling.pause import PauseRule, pause_rule
from earwise.engine.sampling.rng import UniformDraws
from earwise.engine.static_cache import StaticCache, bucket_size
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
from earwise.models.cpu_decode.prepacked import CHEAP_ROWS, MIN_ROWS, PrepackedWeights
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.attention import TreeAttention
from earwise.models.precision import compute
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.types import Completion, Waveform

T = TypeVar("T")
LONG_COMPLETION = 48
"""Number of tokens from which samples of a prompt are expected to have diverged for most of their length."""
ACCELERATOR_ROWS = 8
"""Rows that a pass on an accelerator can have at the cost of one, since it waits for the weights to be read."""
PREFILL_CHUNK_TOKENS = 512
"""Tokens of a tree that are computed between two chances to pause."""
SCORE_PACK_TOKENS = 2048
"""Largest number of tokens in one scoring pass."""
REPLACEMENT_CHARACTER = "\ufffd"
"""What a tokenizer decodes the first bytes of an incomplete character to."""


class LocalEngine:
    """An `Engine` on a model in this process.

    Args:
        model: The model.
        encoder_cache: Cache of encoder states to share with other users of the model; None makes a new one.
        batch_size: Number of prompts that are decoded together.
        use_static_cache: True decodes in buffers of fixed shapes (`engine.static_cache`), False in buffers that grow;
            None uses fixed shapes on CUDA, where they are captured as graphs.
    """

    def __init__(
        self, model: AudioLM, *, encoder_cache: EncoderCache | None = None, batch_size: int = 32,
        use_static_cache: bool | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.name = model.name
        plan = compute.plan_of(model.module)
        self.revision = model.revision if plan == compute.FLOAT32 else f"{model.revision}+{plan}"
        self.sample_rate = model.spec.sample_rate
        self.max_audio_s = model.spec.max_s
        self.encoder_cache = encoder_cache or EncoderCache(model)
        self.batch_size = batch_size
        self._prepacked = PrepackedWeights(model.module, model.parameter_prefixes["decoder"])
        on_cuda = self._device.type == "cuda"
        static = on_cuda if use_static_cache is None else use_static_cache
        self._static_cache = StaticCache(model, capture=on_cuda) if static else None
        self.cache_bytes_per_token = 0
        """Size of the keys and values of one token in bytes; known once a prompt was computed."""
        self.stats = DecodeStats()
        """Work done by this engine so far."""

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        """Sample `n` completions of every prompt; see `Engine`.

        Raises:
            AudioError: if a clip is longer than the model accepts.
        """
        completions: list[list[Completion]] = []
        for start in range(0, len(prompts), self.batch_size):
            completions += self._generate_batch(prompts[start : start + self.batch_size], sampling_params, n, None)
        return completions

    def generate_with_callback(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int, callback: StepCallback
    ) -> None:
        """Like `generate`, as one batch, with a callback after every token.

        For a server, which streams completions and stops some of them early. Stopping a sample does not change what the
        other samples draw.

        Args:
            prompts: Prompts to complete.
            sampling_params: Length limit, temperature, truncation and seed.
            n: Number of completions per prompt.
            callback: See `StepCallback`.
        """
        self._generate_batch(prompts, sampling_params, n, callback)

    def generate_in_steps(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int, callback: StepCallback,
        wants_pause: Callable[[], bool],
    ) -> Iterator[None]:  # fmt: skip
        """Like `generate_with_callback`, but interruptible, so that a thread can let several batches take turns.

        Closing the iterator gives the batch up. On an accelerator a batch is not interrupted once it decodes, because
        its cache has fixed buffers.

        Args:
            prompts: Prompts to complete.
            sampling_params: Length limit, temperature, truncation and seed.
            n: Number of completions per prompt.
            callback: See `StepCallback`.
            wants_pause: Asked after each clip, prefill chunk and decoding pass whether to pause.
        Yields:
            Nothing, at every pause.
        """
        completions = [[PartialCompletion() for _ in range(n)] for _ in prompts]
        return self._steps(prompts, sampling_params, completions, callback, wants_pause)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams) -> Iterator[str]:
        """Sample one completion and yield its text piece by piece while it is decoded."""
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        sent = ""

        def send_new_text(completions: Sequence[Sequence[PartialCompletion]]) -> tuple[()]:
            nonlocal sent
            ids = [token for token in completions[0][0].token_ids if token not in self.model.eos_ids]
            text = self.model.tokenizer.decode(ids)
            if not text.endswith(REPLACEMENT_CHARACTER):
                pieces.put(text[len(sent) :])
                sent = text
            return ()

        def decode() -> None:
            try:
                self._generate_batch([prompt], sampling_params, 1, send_new_text)
                pieces.put(None)
            except BaseException as error:  # handed over to the reading thread, which raises it
                pieces.put(error)

        threading.Thread(target=decode, daemon=True).start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-likelihood of each continuation; see `Engine`.

        All continuations of all prompts with the same first clip form one tree, so the clip is computed once.

        Raises:
            AudioError: if a clip is longer than the model accepts.
        """
        for prompt in prompts:
            self._check(prompt)
        paths, audio_embeddings = self._encode_prompts(prompts)
        tree_groups = group_by_clip(paths)
        trees = [
            build_tree(
                [
                    paths[index] + answer_path(self.model, continuation)
                    for index in group
                    for continuation in continuations[index]
                ]
            )
            for group in tree_groups
        ]
        tree_scores: list[list[float]] = [[] for _ in tree_groups]
        for members in assign_bins([len(tree) for tree in trees], SCORE_PACK_TOKENS):
            forest = pack([trees[tree] for tree in members], self._device)
            embeddings = insert_audio_embeddings(self.model.embed(forest.ids), forest, audio_embeddings)
            with self._fast_prefill():
                hidden = self.model.decode(embeddings, forest.positions, TreeAttention(forest))
            # The output head computes the log-probabilities in float32 whatever the precision of the layers is.
            sums = branch_logprobs(target_logprobs(hidden, forest, self.model.logits), forest).sum(1)
            for tree, value in zip(forest.branch_trees.tolist(), sums.tolist(), strict=True):
                tree_scores[members[tree]].append(value)
        scores: list[list[float]] = [[] for _ in prompts]
        for group, values in zip(tree_groups, tree_scores, strict=True):
            branch_scores = iter(values)
            for index in group:
                scores[index] = [next(branch_scores) for _ in continuations[index]]
        return scores

    @property
    def _device(self) -> torch.device:
        return next(self.model.module.parameters()).device

    def _fast_prefill(self) -> AbstractContextManager[object]:
        """The context in which prompts are computed: in bfloat16 or int8 with packed weights."""
        plan = compute.plan_of(self.model.module)
        if plan.prefill == plan.decode != "float32":
            return self._prepacked.active(MIN_ROWS, passes=1)
        return nullcontext()

    def _check(self, prompt: Prompt) -> None:
        """Reject clips that are longer than the model accepts."""
        for waveform in prompt.waveforms:
            if len(waveform) > self.max_audio_s * self.sample_rate:
                raise AudioError(
                    f"clip of {len(waveform) / self.sample_rate:.1f} s is longer than the {self.max_audio_s:.0f} s "
                    f"that {self.name} hears; {LONG_AUDIO_REMEDY}"
                )

    def _generate_batch(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int, callback: StepCallback | None
    ) -> list[list[Completion]]:
        """Prefill and decode a batch of prompts; the arguments are those of `generate_with_callback`."""
        completions = [[PartialCompletion() for _ in range(n)] for _ in prompts]
        deque(self._steps(prompts, sampling_params, completions, callback, None), maxlen=0)
        pause = self._pause_rule(sampling_params)
        return [[self._completion(sample, pause) for sample in samples] for samples in completions]

    def _pause_rule(self, sampling_params: SamplingParams) -> PauseRule | None:
        """Where pause tokens are put; None: nowhere."""
        return None if sampling_params.pause is None else pause_rule(self.model, sampling_params.pause)

    @torch.inference_mode()
    def _steps(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, completions: list[list[PartialCompletion]],
        callback: StepCallback | None, wants_pause: Callable[[], bool] | None,
    ) -> Iterator[None]:  # fmt: skip
        """Encode, prefill and decode a batch, and pause where `wants_pause` asks for it; see `generate_in_steps`."""
        pauses = wants_pause or (lambda: False)
        n = len(completions[0])
        for prompt in prompts:
            self._check(prompt)
        if wants_pause is not None:
            for prompt in prompts:
                for waveform in prompt.waveforms:
                    self.encoder_cache.encoder_states([waveform])
                    if pauses():
                        yield
        paths, audio_embeddings = self._encode_prompts(prompts)
        request = DecodeRequest(
            prompts=[path.ids for path in paths],
            completions=completions,
            draws=[UniformDraws(sampling_params.seed, prompt.key or str(i), n) for i, prompt in enumerate(prompts)],
            sampling_params=sampling_params,
            callback=callback,
            pause=self._pause_rule(sampling_params),
        )
        chunk_tokens = None if wants_pause is None else PREFILL_CHUNK_TOKENS
        cache = TreeCache()
        self._reserve(cache, paths, n * sampling_params.max_new_tokens)
        chunks = prefill(self.model, paths, audio_embeddings, cache, n, self.stats, chunk_tokens)
        start = yield from _pausing(chunks, pauses, self._fast_prefill)
        self.cache_bytes_per_token = cache.bytes_per_slot
        if self._static_cache is not None:
            with self._static_cache.loaded(cache):  # its buffers hold one batch at a time, so it is not interrupted
                DecodeLoop(
                    self.model, self._static_cache, start.next_slots, request,
                    row_capacity=lambda rows: bucket_size(max(rows, ACCELERATOR_ROWS)), stats=self.stats,
                ).run(start.leaves, start.logits)  # fmt: skip
            return
        max_rows = _rows_with_drafts(len(prompts) * (n if sampling_params.temperature else 1), _passes(sampling_params))
        passes: Iterator[None] | None = None
        while True:
            # While batches take turns, weights are not packed anew: another batch would pack them for its own rows.
            expected = 0 if pauses() else _passes(sampling_params)
            with self._prepacked.active(max_rows, passes=expected) as padded_rows:
                if passes is None:
                    loop = DecodeLoop(
                        self.model, cache, start.next_slots, request, row_capacity=lambda _: padded_rows,
                        stats=self.stats,
                    )  # fmt: skip
                    passes = loop.steps(start.leaves, start.logits)
                for _ in passes:
                    if pauses():
                        break
                else:
                    return
            yield

    def _reserve(self, cache: TreeCache, paths: Sequence[TokenPath], completion_tokens: int) -> None:
        """Reserve room in the cache for all tokens of a batch, where reserved memory costs nothing until it is used.

        Args:
            cache: The empty cache.
            paths: Token path of each prompt.
            completion_tokens: Largest number of tokens that the completions of one prompt can have.
        """
        if self._static_cache is not None or self._device.type != "cpu":
            return
        groups = group_by_clip(paths)
        slots = max(sum(len(paths[index].ids) + completion_tokens for index in group) for group in groups)
        if len(groups) * slots * self.cache_bytes_per_token <= MAX_RESERVED_BYTES:
            cache.reserve(slots)

    def _encode_prompts(self, prompts: Sequence[Prompt]) -> tuple[list[TokenPath], dict[int, Tensor]]:
        """Tokenize prompts and embed their audio.

        Returns:
            The token path of every prompt, and the audio embeddings of every distinct clip by the number that the paths
            give it. A clip that is in one prompt twice has two numbers: where no text stands between them, one number
            would make one clip of them (`forest.pack`).
        """
        paths: list[TokenPath] = []
        clip_numbers: dict[tuple[bytes, int], int] = {}
        distinct: list[Waveform] = []
        for prompt in prompts:
            clips = []
            repeats: Counter[bytes] = Counter()
            for waveform in prompt.waveforms:
                digest = hashlib.blake2b(waveform.tobytes(), digest_size=16).digest()
                number = clip_numbers.setdefault((digest, repeats[digest]), len(clip_numbers))
                repeats[digest] += 1
                if number == len(distinct):
                    distinct.append(waveform)
                clips.append(number)
            lengths = [len(waveform) for waveform in prompt.waveforms]
            paths.append(conversation_path(self.model, prompt.turns, clips, lengths, generate=True))
        encoder_states = self.encoder_cache.encoder_states(distinct)
        return paths, dict(enumerate(self.model.project_audio(encoder_states)))

    def _completion(self, sample: PartialCompletion, pause: PauseRule | None) -> Completion:
        """A finished sample as a completion, whose text is without pause tokens."""
        ids = sample.token_ids[:-1] if sample.finished else sample.token_ids
        if pause is not None:
            ids = pause.visible(ids)
        text = self.model.tokenizer.decode(ids)
        return Completion(
            text,
            tuple(sample.token_ids),
            tuple(sample.logprobs),
            finish_reason="stop" if sample.finished else "length",
            reasoning_tokens=token_delay(text, ids, self.model.tokenizer.decode),
            entropies=tuple(sample.entropies),
            confidences=tuple(sample.confidences),
        )


def _passes(sampling_params: SamplingParams) -> int:
    """Largest number of decoding passes of a completion."""
    return sampling_params.max_new_tokens - 1


def _pausing(
    work: Generator[None, None, T], pauses: Callable[[], bool], context: Callable[[], AbstractContextManager[object]]
) -> Generator[None, None, T]:
    """Run a generator to its result, each step inside a context, and yield where it does only if a pause is wanted."""
    while True:
        try:
            with context():
                next(work)
        except StopIteration as end:
            return cast("T", end.value)
        if pauses():
            yield


def _rows_with_drafts(max_leaves: int, passes: int) -> int:
    """Number of rows to prepack weights for: twice the leaves if completions are long, so that drafts have room.

    Short completions share beginnings for much of their length, which leaves enough rows free. Up to `CHEAP_ROWS` rows
    cost little, since such a pass mostly waits for the weights.
    """
    if max_leaves < MIN_ROWS or passes < LONG_COMPLETION:
        return max_leaves
    return max(max_leaves, min(2 * max_leaves, CHEAP_ROWS))
