"""Templates of questions and captions about labelled clips.

Used by the builders of questions from labels. All wordings are ours. In templates, `{x}` is the name of a label, `{a}`
the name with its indefinite article, and `{A}` the same at the beginning of a sentence.
"""

from collections.abc import Mapping

from earwise.datasets.labels.label_names import is_plural, with_article

# Verbs for captions of animal sounds.
VERBS: Mapping[str, str] = {
    "bear": "growling",
    "bee": "buzzing",
    "blackbird": "singing",
    "cat": "meowing",
    "cow": "mooing",
    "crow": "cawing",
    "cuckoo": "calling",
    "dog": "barking",
    "donkey": "braying",
    "duck": "quacking",
    "elephant": "trumpeting",
    "frog": "croaking",
    "goat": "bleating",
    "goose": "honking",
    "hen": "clucking",
    "lamb": "bleating",
    "lark": "singing",
    "lion": "roaring",
    "mosquito": "buzzing",
    "owl": "hooting",
    "pig": "grunting",
    "rooster": "crowing",
    "seagull": "crying",
    "sheep": "bleating",
    "tiger": "roaring",
    "turkey": "gobbling",
}

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "sound": (
        "Which sound is this?",
        "What do you hear?",
        "What makes the sound in this recording?",
        "Name the sound in this clip.",
    ),
    "instrument": (
        "Which instrument is playing?",
        "What instrument do you hear?",
        "Name the instrument in this recording.",
        "Which instrument makes this sound?",
    ),
    "language": (
        "Which language is spoken?",
        "What language do you hear?",
        "In which language does the speaker talk?",
        "Name the language of this recording.",
    ),
    "emotion": (
        "How does the speaker feel?",
        "How does the voice sound?",
        "Which emotion does the speaker express?",
        "What is the mood of the speaker?",
    ),
    "gender": ("Is the speaker a man or a woman?", "Who is speaking, a man or a woman?"),
    "digit": (
        "Which number is said?",
        "What number do you hear?",
        "Which digit does the speaker say?",
    ),
    "words": (
        "What does the speaker say?",
        "Which words do you hear?",
        "What is said in this recording?",
    ),
    "kind": (
        "What kind of recording is this?",
        "What type of audio do you hear?",
        "Is this speech, music or environmental sound?",
    ),
}
YES_NO: Mapping[str, tuple[str, ...]] = {
    "sound": ("Do you hear {a}?", "Is this the sound of {a}?", "Is there {a} in this recording?"),
    "instrument": ("Do you hear {a}?", "Is this the sound of {a}?", "Is {a} playing?"),
    "language": ("Is the speaker talking in {x}?", "Is this {x}?", "Do you hear {x}?"),
    "emotion": ("Does the speaker sound {x}?", "Is the voice {x}?"),
    "gender": ("Is the speaker {a}?", "Do you hear {a} speaking?"),
    "digit": ("Does the speaker say {x}?", "Is the number {x}?"),
    "words": ('Does the speaker say "{x}"?', 'Do you hear the words "{x}"?'),
    "kind": ("Is this a recording of {x}?", "Do you hear {x}?"),
}
CAPTIONS: Mapping[str, tuple[str, ...]] = {
    "sound": ("The sound of {a}.", "{A} can be heard.", "This is {a}."),
    "instrument": ("The sound of {a}.", "{A} is playing.", "Music played on {a}."),
    "language": ("Someone is speaking {x}.", "A person talks in {x}.", "Speech in {x}."),
    "emotion": ("Someone speaks in {a} voice.", "A speaker who sounds {x}.", "The voice is {x}."),
    "gender": ("{A} is speaking.", "The voice of {a}.", "{A} talks."),
    "digit": ("Someone says the number {x}.", "A voice says {x}.", "The number {x} is said."),
    "words": ('Someone says "{x}"', 'A voice says "{x}"'),
    "kind": ("A recording of {x}.", "This is {x}."),
}
PLURAL_CAPTIONS: Mapping[str, tuple[str, ...]] = {
    "instrument": ("The sound of {a}.", "{A} are playing.", "Music played on {a}."),
    "sound": ("The sound of {a}.", "{A} can be heard.", "These are {a}."),
}

# Questions about two clips: do they have the same speaker, language, ...?
SAME: Mapping[str, tuple[str, ...]] = {
    "speaker": ("Is the same person speaking in both clips?", "Do both clips have the same speaker?"),
    "language": ("Is the same language spoken in both clips?", "Are both speakers talking in one language?"),
    "emotion": ("Do both speakers express the same emotion?", "Is the mood of the voice the same in both clips?"),
    "instrument": ("Is the same instrument playing in both clips?", "Do both clips have the same instrument?"),
    "sound": ("Do both clips have the same kind of sound?", "Is it the same kind of sound in both clips?"),
}
# Questions about two clips: which one is louder (higher, longer, faster), and which one is quieter (lower, ...)?
COMPARED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "loudness": (
        ("Which clip is louder?", "In which of the two clips is the sound louder?"),
        ("Which clip is quieter?", "In which of the two clips is the sound quieter?"),
    ),
    "pitch": (
        ("Which clip is higher in pitch?", "In which of the two clips is the pitch higher?"),
        ("Which clip is lower in pitch?", "In which of the two clips is the pitch lower?"),
    ),
    "duration": (
        ("Which clip is longer?", "Which of the two clips lasts longer?"),
        ("Which clip is shorter?", "Which of the two clips ends sooner?"),
    ),
    "tempo": (
        ("Which clip has the faster tempo?", "In which of the two clips is the beat faster?"),
        ("Which clip has the slower tempo?", "In which of the two clips is the beat slower?"),
    ),
}
# Questions about one recording composed of several clips.
SCENES: Mapping[str, tuple[str, ...]] = {
    "first": ("Which sound comes first?", "What do you hear first?"),
    "last": ("Which sound comes last?", "What do you hear last?"),
    "count": ("How many times do you hear {a}?", "How often does the sound of {a} occur?"),
    "louder": ("Which of the two sounds is louder?", "Which sound is the louder one?"),
    "quieter": ("Which of the two sounds is quieter?", "Which sound is the quieter one?"),
    "odd_one_out": (
        "Which of the {n} sounds is different from the others?",
        "One of the {n} sounds is not like the others. Which one?",
    ),
    "overlap": (
        "Are the two sounds heard at the same time or one after the other?",
        "Do the two sounds overlap, or does one follow the other?",
    ),
}


def fill_template(template: str, phrase: str) -> str:
    """Replace `{x}`, `{a}` and `{A}` in a template by the phrase and its article."""
    with_its_article = with_article(phrase)
    return template.format(x=phrase, a=with_its_article, A=with_its_article[:1].upper() + with_its_article[1:])


def captions(field: str, phrase: str) -> tuple[str, ...]:
    """All captions of a clip about one field.

    Args:
        field: What the caption is about, a key of `CAPTIONS`.
        phrase: Display name of the clip's label in this field.

    >>> captions("sound", "dog")
    ('A dog is barking.', 'The sound of a dog.', 'A dog can be heard.', 'This is a dog.')
    """
    templates = PLURAL_CAPTIONS.get(field, CAPTIONS[field]) if is_plural(phrase) else CAPTIONS[field]
    action = (f"{{A}} is {VERBS[phrase]}.",) if field == "sound" and phrase in VERBS else ()
    return tuple(fill_template(template, phrase) for template in action + templates)
