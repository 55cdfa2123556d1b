"""Gives the embedded model the connector `labels`, fitted on a labelled collection: `earwise build connector`.

The clips of the collection's training split, and scenes composed of them (`earwise build labels --tasks order,...`),
are encoded once; two linear classifiers are fitted on their states (`models.embedded.label_init`); the words that the
decoder will read are its own embeddings of the labels' names. The model's other weights stay as they are, so the result
is a start for training, as the connector of recipe `embedded` is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from earwise import progress
from earwise.audio import decode, num_samples
from earwise.data import manifest
from earwise.datasets.labels import collection
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.labels.varied.clip_questions import varied_facts
from earwise.errors import ConfigError, DataError
from earwise.models.base import AudioLM
from earwise.models.embedded import label_init
from earwise.models.embedded.connector import ConnectorSpec, build_connector
from earwise.models.embedded.label_words import Facet, LabelWords
from earwise.models.embedded.model import Embedded
from earwise.models.encoder_cache import EncoderCache, encoder_fingerprint
from earwise.models.parts.projector import LayerMix
from earwise.types import Example, Waveform

NONE = "none"
"""Label of a facet that does not apply to a clip: the language of a bark."""
SILENCE, SPEECH = "silence", "speech"
SILENCE_DB = -38.0
"""A window this far below the loudest one of its clip is silent."""
MIN_EVENT_S = 0.16
"""A window of a scene is labelled by an event that sounds for at least this long in it, if no other does."""
WINDOWS_PER_CLIP = 8
"""Largest number of windows of one clip to fit on."""
EPOCHS, WINDOW_EPOCHS = 30, 8
VALIDATION_BATCH = 512


@dataclass(frozen=True, slots=True)
class FacetField:
    """A facet: the field of `datasets.labels.varied` that it answers, and how the decoder sees the answer.

    Attributes:
        field: Name of the field.
        lead: Word in front of the answer.
        shown: Number of labels that are shown, the likeliest first.
        tokens: Tokens of each label.
        applies_to: Categories of clips that have such a label; `none` is right for clips of the others.
    """

    field: str
    lead: str
    shown: int = 1
    tokens: int = 1
    applies_to: tuple[str, ...] = ("music",)


FACETS = (
    FacetField("sound", "Sound", 4, 2, ("sound",)),
    FacetField("instrument", "Instrument", 3, 2),
    FacetField("kind", "Type", applies_to=("sound", "music", "speech")),
    FacetField("language", "Language", applies_to=("speech",)),
    FacetField("emotion", "Mood", 2, applies_to=("speech",)),
    FacetField("gender", "Speaker", applies_to=("speech",)),
    FacetField("digit", "Number", 2, applies_to=("speech",)),
    FacetField("register", "Pitch"),
    FacetField("dynamic", "Volume"),
    FacetField("pace", "Speed"),
    FacetField("mode", "Mode"),
    FacetField("contour", "Direction"),
)


@dataclass(frozen=True, slots=True)
class ConnectorReport:
    """What the classifiers hear in the clips of the validation split.

    Attributes:
        clips: Number of clips and scenes that were fitted on.
        labelled: Facet -> number of validation clips with a label.
        first: Facet -> share of the labelled validation clips whose label is the first that is shown.
        shown: Facet -> share whose label is among those shown.
        windows: Share of the validation windows with the right label; None if there are none.
    """

    clips: int
    labelled: dict[str, int]
    first: dict[str, float]
    shown: dict[str, float]
    windows: float | None


@dataclass(slots=True)
class _Data:
    """Features and labels of one split."""

    features: list[Tensor] = field(default_factory=list)
    labels: list[dict[str, tuple[str, ...]]] = field(default_factory=list)
    """Facet -> labels of a clip, all equally likely; absent where they are not known."""
    window_features: list[Tensor] = field(default_factory=list)
    window_labels: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Hearing:
    """How the features of a waveform are computed.

    Attributes:
        cache: Encoder states of clips.
        mix: The connector that mixes the encoder's layers.
        sample_rate: Sample rate of the waveforms, Hz.
        window_s: Length of a window, seconds.
        rng: Source of randomness of the windows that are used.
    """

    cache: EncoderCache
    mix: LayerMix
    sample_rate: int
    window_s: float
    rng: np.random.Generator

    @property
    def window_samples(self) -> int:
        """Length of a window in samples."""
        return num_samples(self.window_s, self.sample_rate)


def build_label_connector(
    model: AudioLM,
    collection_path: Path,
    out: Path,
    *,
    scenes: Sequence[Path] = (),
    without: Sequence[tuple[str, str]] = (),
    encoder_cache: Path | None = None,
    seed: int = 0,
) -> ConnectorReport:
    """Fit the connector and write the model with it.

    Args:
        model: The embedded model with a `mix` connector; it is changed in place.
        collection_path: Labelled collection (`collection.load`).
        out: Folder to write the model to; must not exist.
        scenes: Manifests of scenes, whose windows teach the order of events.
        without: Pairs of field and value; clips whose row has one of these values are left out.
        encoder_cache: Folder of encoder states, as in a recipe.
        seed: Seed of the fit.
    Returns:
        What it hears in the validation split.
    Raises:
        ConfigError: if the model has another connector, or `out` exists.
        DataError: if the collection has no clip to fit on.
    """
    embedded = model if isinstance(model, Embedded) else None
    mix = embedded.module.connector if embedded else None
    if embedded is None or not isinstance(mix, LayerMix):
        raise ConfigError(f"{model.name} is not the embedded model with the connector `mix`; start from such a one")
    if out.exists():
        raise ConfigError(f"{out}: exists already; choose another folder")
    folder = encoder_cache / encoder_fingerprint(model) if encoder_cache else None
    cache = EncoderCache(model, max_mb=0, batch_size=1, folder=folder)
    rows, root = collection.load(collection_path)
    rows = [row for row in rows if all(str(row.get(key)) != value for key, value in without)]
    splits = {"train": _Data(), "val": _Data()}
    spec, window_s = embedded.spec, embedded.connector_spec.token_ms / 1000
    hearing = _Hearing(cache, mix, spec.sample_rate, window_s, np.random.default_rng(seed))
    for row in progress.track(rows, "clips encoded", len(rows)):
        if row["split"] in splits:
            waveform = decode(root / row["path"], spec.sample_rate, max_s=spec.max_s, long_audio="truncate")
            _add_clip(splits[row["split"]], row, waveform, hearing)
    for example in progress.track(list(_scenes(scenes)), "scenes encoded"):
        if example.split in splits:
            _add_scene(splits[example.split], example, hearing)
    if not splits["train"].features:
        raise DataError(f"{collection_path}: has no clip of the split train to fit on")
    return _fit(embedded, mix, splits["train"], splits["val"], out, seed)


def _scenes(manifests: Iterable[Path]) -> Iterator[Example]:
    """One question about each scene of some manifests."""
    seen = set[Path]()
    for path in manifests:
        for example in manifest.read(path):
            if "events" in example.meta and example.audio_paths[0] not in seen:
                seen.add(example.audio_paths[0])
                yield example


def _add_clip(data: _Data, row: LabelRow, waveform: Waveform, hearing: _Hearing) -> None:
    """Add a clip and its windows."""
    facts = {fact.field: fact.name for fact in varied_facts(row)}
    labels = {facet.field: (facts[facet.field],) for facet in FACETS if facet.field in facts}
    labels |= {facet.field: (NONE,) for facet in FACETS if row["category"] not in facet.applies_to}
    spoken = SPEECH if row["category"] == "speech" else None
    name = facts.get("sound") or facts.get("instrument") or spoken
    levels = _window_levels(waveform, hearing.window_samples)
    windows = [SILENCE if level < SILENCE_DB else name for level in levels]
    _add(data, waveform, labels, windows, hearing)


def _add_scene(data: _Data, example: Example, hearing: _Hearing) -> None:
    """Add a scene and its windows, which are labelled by the events that sound in them."""
    waveform = decode(example.audio_paths[0], hearing.sample_rate)
    events = example.meta["events"]
    labels = {facet.field: (NONE,) for facet in FACETS if facet.applies_to == ("speech",)}
    labels["heard"] = tuple(sorted({event["label"] for event in events}))
    windows: list[str | None] = []
    for number in range(-(-len(waveform) // hearing.window_samples)):
        start, end = number * hearing.window_s, (number + 1) * hearing.window_s
        sounding = {
            event["label"]: min(end, event["at_s"] + event["for_s"]) - max(start, event["at_s"]) for event in events
        }
        heard = [name for name, seconds in sounding.items() if seconds > MIN_EVENT_S / 2]
        is_clear = len(heard) == 1 and sounding[heard[0]] >= MIN_EVENT_S
        windows.append(SILENCE if not heard else heard[0] if is_clear else None)
    _add(data, waveform, labels, windows, hearing)


def _window_levels(waveform: Waveform, size: int) -> list[float]:
    """Level of each window of `size` samples in dB, relative to the loudest window of the clip."""
    count = -(-len(waveform) // size)
    padded = np.pad(waveform, (0, count * size - len(waveform))).reshape(count, size)
    levels = np.sqrt(np.square(padded).mean(1)) + 1e-7
    return [float(level) for level in 20 * np.log10(levels / levels.max())]


def _add(
    data: _Data,
    waveform: Waveform,
    labels: Mapping[str, tuple[str, ...]],
    windows: Sequence[str | None],
    hearing: _Hearing,
) -> None:
    """Add the features and labels of a clip, and those of at most `WINDOWS_PER_CLIP` of its windows."""
    (states,) = hearing.cache.encoder_states([waveform])
    with torch.no_grad():
        rows = hearing.mix.mix_layers(states).half()
    data.features.append(rows[:2].flatten())
    data.labels.append(dict(labels))
    known = [number for number, name in enumerate(windows[: len(rows) - 2]) if name is not None]
    for number in sorted(hearing.rng.permutation(known)[:WINDOWS_PER_CLIP].tolist()):
        data.window_features.append(rows[2 + number])
        data.window_labels.append(str(windows[number]))


def _fit(model: Embedded, mix: LayerMix, train: _Data, val: _Data, out: Path, seed: int) -> ConnectorReport:
    """Fit the classifiers, put the connector into the model, write it, and measure it on the validation split."""
    names = {facet.field: _label_names(train, facet) for facet in FACETS}
    window_names = [SILENCE, SPEECH, *sorted(set(train.window_labels) - {SILENCE, SPEECH})]
    targets = [_targets(train.labels, facet.field, names[facet.field]) for facet in FACETS]
    fitted = label_init.fit_facets(torch.stack(train.features), targets, epochs=EPOCHS, seed=seed)
    window_targets = torch.tensor([window_names.index(name) for name in train.window_labels])
    fitted_windows = label_init.fit_windows(
        torch.stack(train.window_features), window_targets, len(window_names), epochs=WINDOW_EPOCHS, seed=seed
    )
    facets = tuple(
        Facet(len(names[facet.field]), min(facet.shown, len(names[facet.field])), facet.tokens) for facet in FACETS
    )
    spec = ConnectorSpec(kind="labels", facets=facets, window_labels=len(window_names))
    layers, dim = len(mix.gates), mix.frames.in_features // len(mix.gates)
    connector: LabelWords = build_connector(spec, layers, dim, mix.frames.out_features)
    connector.mix = mix
    label_init.set_connector(
        connector,
        facets,
        [_words(model, names[facet.field], facet.tokens) for facet in FACETS],
        torch.stack([_lead(model, facet.lead) for facet in FACETS]),
        _words(model, window_names, 1)[:, 0],
        fitted,
        fitted_windows,
    )
    model.module.connector = connector.requires_grad_(False)
    model.set_connector_spec(spec)
    model.save(out)
    return _measure(fitted, fitted_windows, names, window_names, train, val)


def _label_names(data: _Data, facet: FacetField) -> list[str]:
    """All labels of a facet, in alphabetical order, `none` last."""
    found = {name for labels in data.labels for name in labels.get(facet.field, ())} - {NONE}
    is_known_to_apply = found and not any(NONE in labels.get(facet.field, ()) for labels in data.labels)
    return sorted(found) if is_known_to_apply else [*sorted(found), NONE]


def _targets(all_labels: Sequence[Mapping[str, tuple[str, ...]]], facet: str, names: Sequence[str]) -> Tensor:
    """Probability of every label for every clip; zeros where the label is not known. In a scene the labels of all its
    sounds are equally likely."""
    number = {name: index for index, name in enumerate(names)}
    targets = torch.zeros(len(all_labels), len(names))
    for row, labels in enumerate(all_labels):
        right = labels.get(facet, ())
        if "heard" in labels and facet in ("sound", "instrument"):
            right = tuple(name for name in labels["heard"] if name in number) or (NONE,)
        for name in right:
            if name in number:
                targets[row, number[name]] = 1 / len(right)
    return targets


@torch.no_grad()
def _words(model: Embedded, names: Sequence[str], tokens: int) -> Tensor:
    """Embeddings of labels, `(labels, tokens, dim)`.

    With one token it is the mean of a name's tokens; with two it is the first and the mean of the rest, or a comma
    where there is no rest.
    """
    comma = model.embed(torch.tensor(model.tokenizer.encode(",")))[0]
    vectors = []
    for name in names:
        embedded = model.embed(torch.tensor(model.tokenizer.encode(f" {name}")))
        rest = embedded[1:].mean(0) if len(embedded) > 1 else comma
        vectors.append(embedded.mean(0, keepdim=True) if tokens == 1 else torch.stack([embedded[0], rest]))
    return torch.stack(vectors)


@torch.no_grad()
def _lead(model: Embedded, word: str) -> Tensor:
    """Embeddings of a lead, `(2, dim)`: its word and a colon."""
    embedded = model.embed(torch.tensor(model.tokenizer.encode(f" {word}:")))
    return torch.stack([embedded[:-1].mean(0), embedded[-1]])


def _measure(
    fitted: label_init.FittedClassifier,
    fitted_windows: label_init.FittedClassifier,
    names: Mapping[str, Sequence[str]],
    window_names: Sequence[str],
    train: _Data,
    val: _Data,
) -> ConnectorReport:
    """Accuracy of the classifiers on the validation split; clips whose label was not trained on count as wrong."""
    if not val.features:
        return ConnectorReport(len(train.features), {}, {}, {}, None)
    counts, first, shown = {}, {}, {}
    scores = [
        fitted(torch.stack(val.features[start : start + VALIDATION_BATCH]).float())
        for start in range(0, len(val.features), VALIDATION_BATCH)
    ]
    by_facet = torch.cat(scores).split([len(names[facet.field]) for facet in FACETS], 1)
    for facet, facet_scores in zip(FACETS, by_facet, strict=True):
        labelled = [
            (row, labels[facet.field][0])
            for row, labels in enumerate(val.labels)
            if labels.get(facet.field, (NONE,)) != (NONE,)
        ]
        if not labelled:
            continue
        ranked = facet_scores.topk(min(facet.shown, facet_scores.shape[1]), 1).indices.tolist()
        counts[facet.field] = len(labelled)
        right = [[names[facet.field][index] for index in ranked[row]] for row, _ in labelled]
        first[facet.field] = sum(top[0] == name for top, (_, name) in zip(right, labelled, strict=True)) / len(labelled)
        shown[facet.field] = sum(name in top for top, (_, name) in zip(right, labelled, strict=True)) / len(labelled)
    windows = None
    if val.window_features:
        guesses = fitted_windows(torch.stack(val.window_features).float()).argmax(1).tolist()
        windows = sum(
            window_names[guess] == name for guess, name in zip(guesses, val.window_labels, strict=True)
        ) / len(guesses)
    return ConnectorReport(len(train.features), counts, first, shown, windows)
