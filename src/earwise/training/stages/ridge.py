"""Closed-form start of the embedded model's connector: ridge regression onto the decoder's own word embeddings.

Used by SFT with `connector_init: ridge`, before the first step. The connector gets one summary token per kind of label
(`LABEL_FIELDS`); the target of a token is the mean word embedding of the label's text. Ours; the regression itself is
`models.embedded.ridge_init`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from earwise.errors import ConfigError
from earwise.models.embedded.model import Embedded
from earwise.models.embedded.ridge_init import ridge_init
from earwise.training.batches import ClipGroup, group_by_clips
from earwise.training.stages.stage import StageContext

LABEL_FIELDS = (("sound", "instrument", "digit"), ("language",), ("emotion",), ("gender",))
"""Values of `meta.field` that each summary token stands for: kind of sound, language, emotion, voice. Rows of `earwise
build labels` have this field."""
LEAD_TEXTS = (" Sound:", " Language:", " Emotion:", " Voice:", " Audio:")
"""Text in front of each summary token, and in front of the remaining audio tokens."""
NO_LABEL = "none"
"""Target of the summary token of a field that no clip has a label of, as in a collection without speech."""
STRENGTH = 2.0
"""Weight of the ridge penalty."""
NOTIFY_CLIPS = 500
"""Clips between two lines of progress."""


def init_connector(context: StageContext) -> None:
    """Set the connector of the embedded model by ridge regression on the training rows.

    Raises:
        ConfigError: if the model has no connector of kind `mix`, or no row has a label of what is heard.
    """
    model, notify = context.model, context.notify
    if not isinstance(model, Embedded) or model.connector_spec.kind != "mix":
        kind = f" with connector {model.connector_spec.kind}" if isinstance(model, Embedded) else ""
        raise ConfigError(
            f"connector_init: ridge is for the embedded model's connector mix, not for {model.name}{kind}; "
            "use connector_init: none"
        )
    encoder_states: list[Tensor] = []
    labels: list[dict[str | None, str]] = []
    groups = group_by_clips([row for rows, _ in context.data.mixture for row in rows])
    for number, group in enumerate(groups, start=1):
        waveforms = context.clip_loader.load(group[0])
        if waveforms is not None:
            encoder_states += context.encoder_cache.encoder_states(waveforms)
            labels.append(_labels(group))
        if number % NOTIFY_CLIPS == 0:
            notify(f"ridge start: encoded {number} of {len(groups)} clips")
    targets = [_targets(model, fields, labels) for fields in LABEL_FIELDS]
    with torch.no_grad():
        leads = torch.stack([model.embed(torch.tensor(model.tokenizer.encode(text))) for text in LEAD_TEXTS])
    explained = ridge_init(model.module.connector, encoder_states, targets, leads, strength=STRENGTH)
    shares = ", ".join(f"{fields[0]} {share:.2f}" for fields, share in zip(LABEL_FIELDS, explained, strict=True))
    notify(f"ridge start on {len(encoder_states)} clips; share of variance explained: {shares}")


def _labels(group: ClipGroup) -> dict[str | None, str]:
    """Labels of a clip, by field, from the rows that ask about it."""
    return {row.meta.get("field"): str(row.meta.get("label")) for row in group}


def _targets(model: Embedded, fields: Sequence[str], labels: Sequence[dict[str | None, str]]) -> Tensor:
    """Target embedding `(clips, dim)` of one summary token; NaN where a clip has no label of these fields.

    Raises:
        ConfigError: if no clip has a label of what is heard. Without labels of the other fields, the target is
            `NO_LABEL` for every clip.
    """
    texts = [next((clip_labels[field] for field in fields if field in clip_labels), None) for clip_labels in labels]
    if not any(texts) and fields == LABEL_FIELDS[0]:
        raise ConfigError(
            f"connector_init: ridge needs rows with meta.field {' or '.join(fields)}; build them with "
            "`earwise build labels`"
        )
    if not any(texts):
        texts = [NO_LABEL] * len(labels)
    embeddings = {text: _mean_embedding(model, text) for text in set(texts) if text}
    no_label = torch.full_like(next(iter(embeddings.values())), float("nan"))
    return torch.stack([embeddings[text] if text else no_label for text in texts])


@torch.no_grad()
def _mean_embedding(model: Embedded, text: str) -> Tensor:
    """Mean embedding of the tokens of a text."""
    return model.embed(torch.tensor(model.tokenizer.encode(" " + text))).mean(0)
