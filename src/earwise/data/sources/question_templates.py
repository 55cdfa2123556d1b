"""Question templates for data sets that publish answers but no questions. All wordings are ours."""

CAPTION = (
    "Describe what you hear.",
    "What is going on in this recording?",
    "Write a caption for this audio.",
    "Put this recording into one sentence.",
    "What can be heard here?",
    "Give a short description of the sound.",
    "Which sounds are in this clip, and how do they unfold?",
    "Summarise this audio in a sentence.",
)
CAPTION_FIRST = (
    "Describe the first audio.",
    "Write a caption for the first recording.",
    "What can be heard in the first clip?",
    "Put the first recording into one sentence.",
)
CAPTION_SECOND = (
    "Describe the second audio.",
    "Write a caption for the second recording.",
    "What can be heard in the second clip?",
    "Put the second recording into one sentence.",
)
CAPTION_BOTH = (
    "Describe both recordings.",
    "Write a caption for each of the two clips.",
    "What can be heard in the first audio, and what in the second?",
)
# Tiers of the difference task (ADIFF, arXiv:2502.04476; Mellow, arXiv:2503.08540): few words, a sentence, in detail.
DIFFERENCE = {
    1: (
        "In a few words, how do the two recordings differ?",
        "Name the difference between the two audios briefly.",
        "What sets the first clip apart from the second? Answer in a few words.",
        "State the difference between both sounds as briefly as you can.",
    ),
    2: (
        "Explain in one sentence how the two recordings differ.",
        "Describe the difference between the two audios in a single sentence.",
        "In a sentence: what distinguishes the first clip from the second?",
        "Compare the two sounds in one sentence.",
    ),
    3: (
        "Explain in detail how the two recordings differ.",
        "Compare the two audios thoroughly: sources, scene, sound and effect on a listener.",
        "Give a full account of the differences between the first and the second clip.",
        "Describe at length what distinguishes the two sounds.",
    ),
}
ENTAILMENT = (
    'Going by the audio, what holds for the hypothesis "{hypothesis}"?',
    'Judge this statement by the recording: "{hypothesis}"',
    'What does the sound say about the claim "{hypothesis}"?',
)
# Options and order as in Mellow's prompt (arXiv:2503.08540); the third is the neutral class, the fourth is never right.
ENTAILMENT_CHOICES = (
    "it is definitely true",
    "it is definitely false",
    "it is plausible",
    "I cannot determine",
)
ENTAILMENT_ANSWERS = {"entailment": 0, "contradiction": 1, "neutral": 2}
TRANSCRIBE = ("What is said in this recording?", "Transcribe the speech.", "Write down the words that are spoken.")
EMOTION = (
    "Which emotion does the speaker express?",
    "How does the speaker feel?",
    "What emotion is in the voice?",
)
SENTIMENT = ("Is the speaker's tone positive, negative or neutral?", "What sentiment does the utterance carry?")
TAGS = ("Which sounds can be heard in this clip?", "Name the sounds in this recording.")
VOCAL = ("Which sound does the person make?", "What kind of human vocal sound is this?")
KEY = ("In which key is this music?", "What is the key of this piece?")
TEMPO = ("How fast is this music, in beats per minute?", "What is the tempo of this piece?")
METRE = ("How many beats are in a bar of this music?", "Which number of beats does each bar have?")
TRANSLATE = (
    "Translate the speech into {language}.",
    "Say in {language} what the speaker says.",
)
