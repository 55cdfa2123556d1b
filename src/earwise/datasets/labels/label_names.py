"""Display names of labels, and which names must not be options of one question."""

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
UNINFORMATIVE_LABELS = ("notification_", "dreydl", "spoken_letter_or_syllable", "unknown")
# Scenes and single strokes of which nobody can say whether they are speech, music or neither.
AMBIGUOUS_KIND = _set(
    "street_music children_playing crowd_chatter cafe restaurant supermarket library office subway_station "
    "carousel temple singing_bowl wind_chimes bell church_interior morse_code radio_tuning vinyl_crackle "
    "night_village telephone_ring clock_alarm siren train_interior"
)
PERCUSSION = _set(
    "bass_drum bongo clash_cymbals conga cowbell crash_cymbal cymbal djembe finger_snap hand_clap hi_hat "
    "maracas ride_cymbal side_stick snare_drum splash_cymbal tambourine tom_drum agogo_bells"
)
ORDINALS = ("the first", "the second", "the third", "the fourth")
OVERLAP = ("at the same time", "one after the other")

_MASS_NOUNS = _set(
    "rain wind traffic thunder music speech environmental_sound street_music crackling_fire boiling_water "
    "breaking_glass rustling_paper crowd_chatter white_noise pink_noise brown_noise vinyl_crackle "
    "jungle_ambience morse_code underwater striking_flint clinking_glass"
)


def display_name(label: str) -> str:
    """What a label is called in options and answers.

    >>> display_name("street_music"), display_name("spoken_digit_7"), display_name("gun_shot")
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
    if (
        is_plural(phrase)
        or phrase.endswith("ing")
        or phrase.replace(" ", "_") in _MASS_NOUNS
        or phrase.startswith("rain ")
    ):
        return phrase
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def is_plural(phrase: str) -> bool:
    """True for "maracas" and "footsteps in snow".

    >>> is_plural("maracas"), is_plural("footsteps in snow"), is_plural("double bass")
    (True, True, False)
    """
    head = phrase.split(" in ")[0].split(" on ")[0]
    return head.endswith("s") and not head.endswith(("ss", "us", "is"))


def _neighbours() -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for line in _CONFUSABLE:
        labels = line.split()
        hubs = [label for label in labels if label in _HUBS]
        for one in labels:
            others = labels if not hubs or one in hubs else hubs
            found.setdefault(display_name(one), set()).update(display_name(other) for other in others if other != one)
    return {label: frozenset(others) for label, others in found.items()}


CONFUSABLE: Mapping[str, frozenset[str]] = _neighbours()
"""Name -> names that must not be options beside it; symmetric."""
