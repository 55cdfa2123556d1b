"""How labels are said: names for options, phrasings for questions, captions. Tables and string functions, nothing else.

Used by `build/labels.py` only. All wordings are ours. A label that is not in a table is said as it is written, without
underscores, so a collection with other labels works too.
"""

from collections.abc import Mapping


def _set(labels: str) -> frozenset[str]:
    return frozenset(labels.split())


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LANGUAGES: Mapping[str, str] = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "zh": "Chinese",
}
EMOTIONS: Mapping[str, str] = {"disgust": "disgusted"}
GENDERS: Mapping[str, str] = {"female": "woman", "male": "man"}
KINDS: Mapping[str, str] = {"sound": "environmental sound", "music": "music", "speech": "speech"}

NAMES: Mapping[str, str] = {
    "boiling_water": "boiling water",
    "car_horn": "car horn",
    "cat_purring": "purring cat",
    "clock_alarm": "alarm clock",
    "clock_tick": "ticking clock",
    "door_close": "closing door",
    "door_open": "opening door",
    "engine_idling": "idling engine",
    "flint_striking": "striking flint",
    "footsteps_dirt": "footsteps on dirt",
    "footsteps_grass": "footsteps on grass",
    "footsteps_gravel": "footsteps on gravel",
    "footsteps_hard": "footsteps on a hard floor",
    "footsteps_ice": "footsteps on ice",
    "footsteps_leaves": "footsteps in leaves",
    "footsteps_metal": "footsteps on metal",
    "footsteps_sand": "footsteps in sand",
    "footsteps_snow": "footsteps in snow",
    "footsteps_water": "footsteps in water",
    "footsteps_wood": "footsteps on wood",
    "french_horn": "French horn",
    "fuse_burning": "burning fuse",
    "glass_breaking": "breaking glass",
    "glass_clink": "clinking glass",
    "gun_shot": "gunshot",
    "hand_saw": "handsaw",
    "hi_hat": "hi-hat",
    "horse_gallop": "galloping horse",
    "horse_neigh": "neighing horse",
    "kettle_whistle": "whistling kettle",
    "keyboard_typing": "keyboard typing",
    "mountaingoat": "mountain goat",
    "paper_rustling": "rustling paper",
    "telephone_ring": "ringing telephone",
    "toilet_flush": "flushing toilet",
    "wolf_howl": "howling wolf",
}

# What the animals do, for captions.
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

# Labels of one set are never options of one question: an honest listener could not tell them apart by the names.
_CONFUSABLE = (
    "calm neutral",
    "rain rain_on_leaves rain_on_tent rain_on_umbrella rain_on_window rain_on_car_roof thunderstorm windshield_wipers",
    "stream waterfall water_drops footsteps_water rain",
    "sea_waves sailboat rowing_boat stream underwater",
    "wind wind_in_trees sailboat",
    "busy_street traffic engine_idling car_horn siren",
    "cafe restaurant crowd_chatter supermarket library office subway_station children_playing street_music carousel",
    "construction_site drilling jackhammer hammer",
    "train train_interior subway_station mine_cart airplane_cabin",
    "washing_machine laundry_room dryer",
    "air_conditioner fan airplane_cabin dryer",
    "white_noise pink_noise brown_noise waterfall radio_tuning",
    "chirping_birds lark blackbird jungle_ambience woodpecker cuckoo night_village",
    "crickets grasshopper night_village jungle_ambience",
    "bee bees hornet mosquito",
    "goat mountaingoat sheep lamb ram",
    "cow bull bison",
    "camel dromedary",
    "deer doe caribou",
    "horse_neigh donkey zebra",
    "hen rooster turkey",
    "duck goose",
    "whale orca dolphin submarine underwater",
    "lion tiger bear",
    "gorilla chimpanzee",
    "dog wolf_howl fox",
    "cat cat_purring",
    "kettle_whistle boiling_water",
    "bubbles boiling_water lava_bubbling",
    "temple singing_bowl bell",
    "explosion fireworks gun_shot",
    "hammer wood_chopping",
    "footsteps_dirt footsteps_grass footsteps_gravel footsteps_hard footsteps_ice footsteps_leaves footsteps_metal "
    "footsteps_sand footsteps_snow footsteps_water footsteps_wood",
    "cymbal crash_cymbal splash_cymbal ride_cymbal suspended_cymbal sizzle_cymbal chinese_cymbal clash_cymbals "
    "chinese_hand_cymbals",
    "drum_kit bass_drum snare_drum tom_drum tom_toms tenor_drum side_stick hi_hat crash_cymbal ride_cymbal cymbal "
    "splash_cymbal",
    "tom_drum tom_toms tenor_drum surdo",
    "maracas banana_shaker lemon_shaker strawberry_shaker cabasa",
    "guitar acoustic_guitar electric_guitar",
    "string_ensemble violin viola cello",
    "shamisen koto banjo",
)
# A drum kit is made of the others, which differ from each other: only its own pairs clash (likewise a generic label).
_HUBS = ("drum_kit", "construction_site", "cymbal", "string_ensemble")

# Labels that say nothing about the sound.
UNASKED = ("notification_", "dreydl", "spoken_letter_or_syllable", "unknown")
# Scenes and single strokes of which nobody can say whether they are speech, music or neither.
NO_KIND = _set(
    "street_music children_playing crowd_chatter cafe restaurant supermarket library office subway_station "
    "carousel temple singing_bowl wind_chimes bell church_interior morse_code radio_tuning vinyl_crackle "
    "night_village telephone_ring clock_alarm siren train_interior"
)
PERCUSSION = _set(
    "bass_drum bongo clash_cymbals conga cowbell crash_cymbal cymbal djembe finger_snap hand_clap hi_hat "
    "maracas ride_cymbal side_stick snare_drum splash_cymbal tambourine tom_drum agogo_bells"
)

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

# Two clips: is a fact of both the same?
SAME: Mapping[str, tuple[str, ...]] = {
    "speaker": ("Is the same person speaking in both clips?", "Do both clips have the same speaker?"),
    "language": ("Is the same language spoken in both clips?", "Are both speakers talking in one language?"),
    "emotion": ("Do both speakers express the same emotion?", "Is the mood of the voice the same in both clips?"),
    "instrument": ("Is the same instrument playing in both clips?", "Do both clips have the same instrument?"),
    "sound": ("Do both clips have the same kind of sound?", "Is it the same kind of sound in both clips?"),
}
# Two clips: which has more of something measured, which has less.
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
ORDINALS = ("the first", "the second", "the third", "the fourth")
# One recording put together from several clips.
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
OVERLAP = ("at the same time", "one after the other")

_MASS = _set(
    "rain wind traffic thunder music speech environmental_sound street_music crackling_fire boiling_water "
    "breaking_glass rustling_paper crowd_chatter white_noise pink_noise brown_noise vinyl_crackle "
    "jungle_ambience morse_code underwater striking_flint clinking_glass"
)


def name(label: str) -> str:
    """What a label is called in options and answers.

    >>> name("street_music"), name("spoken_digit_7"), name("gun_shot")
    ('street music', 'seven', 'gunshot')
    """
    if label.startswith("spoken_digit_") and label[13:].isdigit() and int(label[13:]) < len(NUMBERS):
        return NUMBERS[int(label[13:])]
    return NAMES.get(label, " ".join(label.replace("_", " ").replace("-", " ").split()))


def with_article(phrase: str) -> str:
    """A name as it stands in a sentence.

    >>> with_article("owl"), with_article("rain"), with_article("tubular bells"), with_article("drilling")
    ('an owl', 'rain', 'tubular bells', 'drilling')
    """
    if is_plural(phrase) or phrase.endswith("ing") or phrase.replace(" ", "_") in _MASS or phrase.startswith("rain "):
        return phrase
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def is_plural(phrase: str) -> bool:
    """True for "maracas" and "footsteps in snow".

    >>> is_plural("maracas"), is_plural("footsteps in snow"), is_plural("double bass")
    (True, True, False)
    """
    head = phrase.split(" in ")[0].split(" on ")[0]
    return head.endswith("s") and not head.endswith(("ss", "us", "is"))


def say(template: str, phrase: str) -> str:
    """Fill `{x}` with the phrase, `{a}` with the phrase and its article, `{A}` the same at the start of a sentence."""
    phrase_with = with_article(phrase)
    return template.format(x=phrase, a=phrase_with, A=phrase_with[:1].upper() + phrase_with[1:])


def captions(field: str, phrase: str) -> tuple[str, ...]:
    """All captions of one fact.

    >>> captions("sound", "dog")
    ('A dog is barking.', 'The sound of a dog.', 'A dog can be heard.', 'This is a dog.')
    """
    templates = PLURAL_CAPTIONS.get(field, CAPTIONS[field]) if is_plural(phrase) else CAPTIONS[field]
    doing = (f"{{A}} is {VERBS[phrase]}.",) if field == "sound" and phrase in VERBS else ()
    return tuple(say(template, phrase) for template in doing + templates)


def _neighbours() -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for line in _CONFUSABLE:
        labels = line.split()
        hubs = [label for label in labels if label in _HUBS]
        for one in labels:
            others = labels if not hubs or one in hubs else hubs
            found.setdefault(name(one), set()).update(name(other) for other in others if other != one)
    return {label: frozenset(others) for label, others in found.items()}


CONFUSABLE: Mapping[str, frozenset[str]] = _neighbours()
"""Name -> names that must not be options beside it; symmetric."""
