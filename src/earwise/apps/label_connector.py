"""Gives the embedded model the connector `labels`, fitted on a labelled collection: `earwise build connector`.

The clips of the collection's training split, and scenes composed of them (`earwise build labels --tasks order,...`),
are encoded once; a linear classifier (`models.embedded.labels.label_init`) and a network that finds events
(`models.embedded.labels.event_init`) are fitted on their states; the words that the decoder will read are its own
embeddings of the labels' names. The model's other weights stay as they are, so the result is a start for training, as
the connector of recipe `embedded` is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from earwise import progress
from earwise.apps import label_features
from earwise.apps.label_features import FACETS, NONE, SILENCE, SPEECH, ClipData, FacetField, Hearing
from earwise.audio import decode
from earwise.datasets.labels import collection
from earwise.errors import ConfigError, DataError
from earwise.models.base import AudioLM
from earwise.models.embedded.connector import ConnectorSpec, build_connector
from earwise.models.embedded.labels import event_init, event_listener, label_init
from earwise.models.embedded.labels.event_listener import EventListener, ListenerSpec
from earwise.models.embedded.labels.label_init import ConnectorWords
from earwise.models.embedded.labels.label_words import EVENT_LEADS, LABEL_TOKENS, Facet, LabelWords
from earwise.models.embedded.model import Embedded
from earwise.models.encoder_cache import EncoderCache, encoder_fingerprint
from earwise.models.parts.projector import LayerMix

EPOCHS, LISTENER_EPOCHS = 30, 10
VALIDATION_BATCH = 512


@dataclass(frozen=True, slots=True)
class ConnectorReport:
    """What the classifiers hear in the clips of the validation split.

    Attributes:
        clips: Number of clips and scenes that were fitted on.
        labelled: Facet -> number of validation clips with a label.
        first: Facet -> share of the labelled validation clips whose label is the first that is shown.
        shown: Facet -> share whose label is among those shown.
        event_counts: Number of validation scenes without overlap.
        counted: Share of these in which as many events are found as there are; None if there are none.
        order: Share in which the events are named alike exactly where they are alike; None if there are none.
    """

    clips: int
    labelled: dict[str, int]
    first: dict[str, float]
    shown: dict[str, float]
    event_counts: int
    counted: float | None
    order: float | None


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
        DataError: if the collection has no clip to fit on, or none with events.
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
    for name, value in without:
        rows = collection.rows_without(rows, name, value)
    splits = {"train": ClipData(), "val": ClipData()}
    spec, window_s = embedded.spec, embedded.connector_spec.token_ms / 1000
    hearing = Hearing(cache, mix, spec.sample_rate, window_s, np.random.default_rng(seed))
    for row in progress.track(rows, "clips encoded", len(rows)):
        if row["split"] in splits:
            waveform = decode(root / row["path"], spec.sample_rate, max_s=spec.max_s, long_audio="truncate")
            label_features.add_clip(splits[row["split"]], row, waveform, hearing)
    for example in progress.track(list(label_features.scenes_of(scenes)), "scenes encoded"):
        if example.split in splits:
            label_features.add_scene(splits[example.split], example, hearing)
    if not splits["train"].features:
        raise DataError(f"{collection_path}: has no clip of the split train to fit on")
    if not splits["train"].windows:
        raise DataError(
            f"{collection_path}: has no clip of a sound, an instrument or speech of the split train, and there are no "
            "scenes, so no events can be learnt; add such clips or --scenes"
        )
    return _fit(embedded, mix, splits["train"], splits["val"], out, seed)


def _fit(model: Embedded, mix: LayerMix, train: ClipData, val: ClipData, out: Path, seed: int) -> ConnectorReport:
    """Fit the classifiers, put the connector into the model, write it, and measure it on the validation split."""
    names = {facet.field: _label_names(train, facet) for facet in FACETS}
    heard = {name for clip in train.windows for window in clip.names for name in window}
    window_names = [SILENCE, SPEECH, *sorted(heard - {SILENCE, SPEECH})]
    targets = [_targets(train.labels, facet.field, names[facet.field]) for facet in FACETS]
    fitted = label_init.fit_facets(torch.stack(train.features), targets, epochs=EPOCHS, seed=seed)
    targets_of_windows = label_features.window_targets(train.windows, window_names)
    components = min(ListenerSpec(0).components, len(train.features[0]) // 2)
    listener_spec = ListenerSpec(len(window_names), components=components)
    listener = event_init.fit_listener(targets_of_windows, listener_spec, epochs=LISTENER_EPOCHS, seed=seed)
    facets = tuple(
        Facet(len(names[facet.field]), min(facet.shown, len(names[facet.field])), facet.tokens) for facet in FACETS
    )
    spec = ConnectorSpec(kind="labels", facets=facets, listener=listener_spec)
    layers, dim = len(mix.gates), mix.frames.in_features // len(mix.gates)
    connector: LabelWords = build_connector(spec, layers, dim, mix.frames.out_features)
    connector.mix = mix
    words = ConnectorWords(
        facets=[_words(model, names[facet.field], facet.tokens) for facet in FACETS],
        facet_leads=torch.stack([_lead(model, facet.lead) for facet in FACETS]),
        events=_words(model, window_names, LABEL_TOKENS),
        event_leads=torch.stack([_lead(model, lead) for lead in EVENT_LEADS]),
        no_event=_words(model, [NONE], LABEL_TOKENS)[0],
        together=_words(model, ["no", "yes"], 1)[:, 0],
        windows=_words(model, window_names, 1)[:, 0],
    )
    label_init.set_connector(connector, words, fitted, listener)
    model.module.connector = connector.requires_grad_(False)
    model.set_connector_spec(spec)
    model.save(out)
    return _measure(fitted, listener, names, train, val)


def _label_names(data: ClipData, facet: FacetField) -> list[str]:
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
    listener: EventListener,
    names: Mapping[str, Sequence[str]],
    train: ClipData,
    val: ClipData,
) -> ConnectorReport:
    """Accuracy of the classifiers on the validation split; clips whose label was not trained on count as wrong."""
    if not val.features:
        return ConnectorReport(len(train.features), {}, {}, {}, 0, None, None)
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
    scenes = [clip for clip in val.windows if clip.events]
    found = [event_listener.find_events(listener(clip.features.float())) for clip in scenes]
    counted = [len(events) == len(clip.events) for events, clip in zip(found, scenes, strict=True)]
    order = [
        _pattern([int(event.label_scores.argmax()) for event in events]) == _pattern(clip.events)
        for events, clip in zip(found, scenes, strict=True)
    ]
    return ConnectorReport(
        len(train.features), counts, first, shown,
        len(scenes), sum(counted) / len(scenes) if scenes else None, sum(order) / len(scenes) if scenes else None,
    )  # fmt: skip


def _pattern(names: Sequence[object]) -> list[int]:
    """Which items of a sequence are equal: the place of the first that equals each."""
    return [names.index(name) for name in names]
