"""Display names of labels, and which names must not be options of the same question.

Used by the builders of questions from labels. All names are ours. A label that is in no table is displayed as it is
written, without underscores, so that collections with other labels work too.
"""

from collections.abc import Mapping


def _set(labels: str) -> frozenset[str]:
    """Set of labels that are separated by spaces."""
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

# Labels of one set are never options of the same question, because a listener could confuse them.
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
# A drum kit contains the others of its set, which differ from each other: only pairs with it are confusable. The same
# holds for other generic labels.
_GENERIC_LABELS = ("drum_kit", "construction_site", "cymbal", "string_ensemble")

# Beginnings of labels that do not describe the sound.
UNINFORMATIVE_LABELS = ("notification_", "dreydl", "spoken_letter_or_syllable", "unknown")
# Scenes and single strokes that are not clearly speech, music or environmental sound.
AMBIGUOUS_KIND = _set(
    "street_music children_playing crowd_chatter cafe restaurant supermarket library office subway_station "
    "carousel temple singing_bowl wind_chimes bell church_interior morse_code radio_tuning vinyl_crackle "
    "night_village telephone_ring clock_alarm siren train_interior"
)
PERCUSSION = _set(
    "bass_drum bongo clash_cymbals conga cowbell crash_cymbal cymbal djembe finger_snap hand_clap hi_hat "
    "maracas ride_cymbal side_stick snare_drum splash_cymbal tambourine tom_drum agogo_bells"
)
ORDINALS: tuple[str, ...] = ("the first", "the second", "the third", "the fourth")
OVERLAP = ("at the same time", "one after the other")

# Names without an indefinite article.
_MASS_NOUNS = _set(
    "rain wind traffic thunder music speech environmental_sound street_music crackling_fire boiling_water "
    "breaking_glass rustling_paper crowd_chatter white_noise pink_noise brown_noise vinyl_crackle "
    "jungle_ambience morse_code underwater striking_flint clinking_glass"
)


def display_name(label: str) -> str:
    """Name of a label in options and answers.

    >>> display_name("street_music"), display_name("spoken_digit_7"), display_name("gun_shot")
    ('street music', 'seven', 'gunshot')
    """
    if label.startswith("spoken_digit_") and label[13:].isdigit() and int(label[13:]) < len(NUMBERS):
        return NUMBERS[int(label[13:])]
    return NAMES.get(label, " ".join(label.replace("_", " ").replace("-", " ").split()))


def with_article(phrase: str) -> str:
    """A name with its indefinite article, if it takes one.

    >>> with_article("owl"), with_article("rain"), with_article("tubular bells"), with_article("drilling")
    ('an owl', 'rain', 'tubular bells', 'drilling')
    """
    if (
        is_plural(phrase)
        or phrase.endswith("ing")
        or phrase.replace(" ", "_") in _MASS_NOUNS
        or phrase.startswith("rain ")
    ):
        return phrase
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def is_plural(phrase: str) -> bool:
    """True if a name is a plural noun, such as "maracas" or "footsteps in snow".

    >>> is_plural("maracas"), is_plural("footsteps in snow"), is_plural("double bass")
    (True, True, False)
    """
    head = phrase.split(" in ")[0].split(" on ")[0]
    return head.endswith("s") and not head.endswith(("ss", "us", "is"))


def _confusable_names() -> Mapping[str, frozenset[str]]:
    """Display name -> display names that it could be confused with, from the sets above."""
    confusable: dict[str, set[str]] = {}
    for line in _CONFUSABLE:
        labels = line.split()
        generic = [label for label in labels if label in _GENERIC_LABELS]
        for label in labels:
            others = labels if not generic or label in generic else generic
            names = confusable.setdefault(display_name(label), set())
            names.update(display_name(similar) for similar in others if similar != label)
    return {name: frozenset(names) for name, names in confusable.items()}


CONFUSABLE: Mapping[str, frozenset[str]] = _confusable_names()
"""Name -> names that must not be options of the same question; symmetric."""
