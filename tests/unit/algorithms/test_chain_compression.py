"""Semi-implicit chains: sentences and words of four languages, stubs, the schedule, what must hold at every stage."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earwise import prompts
from earwise.algorithms.chain_compression import (
    StepwiseSchedule,
    StubFormat,
    chain_at_progress,
    compress_chain,
    count_sentences,
    default_cutover,
    grows,
    make_stub,
    num_internalised,
    progress_after,
    random_offset,
    remove_tokens,
)
from earwise.algorithms.sentences import split_sentences, split_words
from earwise.answers import parse, split_reasoning
from earwise.errors import ConfigError
from earwise.types import Audio, Example, Turn

CHAIN = (
    "[de] Warum ist der Himmel am Tag blau? Erkläre es kurz.\n"
    "[en] Why is the sky blue by day? Explain it briefly.\n"
    "[en-response] Air scatters blue light more than red light. That is why blue comes from everywhere."
)
JAPANESE = (
    "[ja] 空はなぜ昼に青く見えるのですか。短く説明してください。\n"
    "[en] Why does the sky look blue by day?\n"
    "[en-response] Air scatters blue light. So it reaches us from everywhere."
)
TEXTS = st.text(st.sampled_from("aB 1.!?…\n,\"'()犬がはのを食べる。、！「」ァー[ja] é"), max_size=60)


@pytest.mark.parametrize(
    ("language", "marked"),  # | where one sentence ends and the next begins
    [
        ("en", "Mr. Fox runs, e.g. at night. |He eats! |No. 5 sleeps?"),
        ("en", "Is it? |No. |It is not."),
        ("en", 'He said "Stop." |Then left'),
        ("de", "Am 3. Mai kam Dr. Weiß, z. B. mit dem Zug. |Danach ging er."),
        ("fr", "M. Petit est là. |Où va-t-il ? |Chez Mme. Roy !"),
        ("ja", "雨です。|「はい！」|と言った。|傘は？"),
        ("en", "no end at all"),
    ],
)
def test_sentences(language: str, marked: str) -> None:
    assert split_sentences(marked.replace("|", ""), language) == marked.split("|")


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("ja", "フランスの首都はどこですか。", ["フランスの", "首都は", "どこですか。"]),
        ("ja", "お茶の入れ方を教えてください。", ["お茶の", "入れ", "方を", "教えてください。"]),
        ("ja", "3月に犬が走る。", ["3月に", "犬が", "走る。"]),
        ("ja", "「雨」と言った。", ["「雨」と", "言った。"]),
        ("en", "one  two three", ["one  ", "two ", "three"]),
    ],
)
def test_words(language: str, text: str, expected: list[str]) -> None:
    assert split_words(text, language) == expected


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["en", "de", "fr", "ja", "es"]))
def test_pieces_joined_are_the_text(text: str, language: str) -> None:
    assert "".join(split_sentences(text, language)) == text
    assert "".join(split_words(text, language)) == text


def test_stub_by_hand() -> None:
    assert make_stub("The big dog barks loudly.", "en", StubFormat(stub_groups=2)) == "The big..."
    assert (
        make_stub("The big dog barks loudly.", "en", StubFormat(stub_groups=1, words_per_group=3)) == "The big dog..."
    )
    assert make_stub("The big dog.", "en", StubFormat(stub_groups=3)) == "The big dog."
    assert make_stub("The big dog barks.", "en", StubFormat(stub_groups=0, ellipsis="")) == ""
    with pytest.raises(ConfigError, match="stub_groups -1"):
        StubFormat(stub_groups=-1)


def test_compress_left_to_right_by_hand() -> None:
    assert count_sentences(CHAIN) == 6
    assert compress_chain(CHAIN, 0) == CHAIN
    two = compress_chain(CHAIN, 2)
    assert two.startswith("[de] Warum ist der... Erkläre es kurz.\n[en] Why is the sky")  # three words: stays whole
    assert compress_chain(CHAIN, 99) == (
        "[de] Warum ist der... Erkläre es kurz.\n[en] Why is the... Explain it briefly.\n"
        "[en-response] Air scatters blue... That is why..."
    )
    assert compress_chain(JAPANESE, 1).startswith(
        "[ja] 空はなぜ昼に...短く説明してください。\n[en] Why does the sky look"
    )
    assert compress_chain(CHAIN, 1, StubFormat(order="right")).endswith("red light. That is why...")
    assert compress_chain(CHAIN, 99, StubFormat(stub_groups=0, ellipsis="")) == "[de] \n[en] \n[en-response] "


@settings(deadline=None)
@given(st.integers(0, 8), st.sampled_from(["left", "right", "random"]), st.integers(0, 4), st.integers(1, 2), TEXTS)
def test_a_chain_never_grows_and_markers_stay(at: int, order: str, k: int, group: int, text: str) -> None:
    stubs = StubFormat(stub_groups=k, words_per_group=group, order=order)  # type: ignore[arg-type]

    def tokens(value: str) -> int:  # an ellipsis costs more than letters: the worst case for stubs
        return len(value) + 12 * value.count("...")

    for chain in (CHAIN, JAPANESE, "[fr] " + text + "\n[en] " + text):
        before, after = (compress_chain(chain, number, stubs, key="a", count=tokens) for number in (at, at + 1))
        assert tokens(after) <= tokens(before) <= tokens(chain)
        assert compress_chain(chain, 0, stubs) == chain
    for chain in (CHAIN, JAPANESE):
        marks = [line.split("] ")[0] for line in compress_chain(chain, at, stubs).split("\n")]
        assert marks == [line.split("] ")[0] for line in chain.split("\n")]


def test_a_tokenizers_count_is_obeyed() -> None:
    chain = "The dog barks at cats."
    assert compress_chain(chain, 1) == "The dog barks..."
    assert compress_chain(chain, 1, count=lambda text: 100 if "..." in text else 1) == chain


@pytest.mark.parametrize("chain", ["", "[de] \n[en] \n[en-response] ", "no stop", "\n\n", "犬", "[ja] 犬"])
def test_little_text_is_no_error(chain: str) -> None:
    assert compress_chain(chain, 5) == chain


def test_schedule() -> None:
    assert [num_internalised(step, 4, 3) for step in range(5)] == [0, 1, 2, 4, 4]
    assert num_internalised(0, 0, 3) == 0
    assert [progress_after(epochs, 2.0) for epochs in (0.0, 0.49, 0.5, 0.999, 1.0)] == [0, 0, 1, 1, 2]
    assert [grows(step, step + 1, 2) for step in range(4)] == [True, True, False, False]
    assert not grows(1, 1, 5)
    assert default_cutover([1, 1, 1, 8]) == 8 and default_cutover([3]) == 3 and default_cutover([2] * 99 + [50]) == 2


def test_offsets_are_geometric_and_repeatable() -> None:
    draws = [random_offset(1.0, f"row{number}", seed=3) for number in range(4000)]
    assert draws == [random_offset(1.0, f"row{number}", seed=3) for number in range(4000)]
    # P(0) = 1 - 1/e = .632, P(1) = .2325; four standard errors
    assert draws.count(0) / 4000 == pytest.approx(0.632, abs=0.031)
    assert draws.count(1) / 4000 == pytest.approx(0.2325, abs=0.027)
    assert random_offset(float("inf"), "a") == 0
    with pytest.raises(ConfigError, match="smoothing 0"):
        random_offset(0.0, "a")


def test_same_bytes_in_another_process() -> None:
    code = (
        "import sys; from earwise.algorithms.chain_compression import *; "
        "sys.stdout.reconfigure(encoding='utf-8'); "
        f"print(chain_at_progress({CHAIN!r}, 2, 9, StubFormat(order='random'), key='row', seed=5, smoothing=1.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    here = chain_at_progress(CHAIN, 2, 9, StubFormat(order="random"), key="row", seed=5, smoothing=1.0)
    assert done.stdout.decode().rstrip("\n") == here != CHAIN


def test_answer_is_the_same_at_every_stage() -> None:
    answer = "Die Luft streut blaues Licht... stärker. [sic]\nDeshalb!"
    turns = (Turn("user", (Audio("a.ogg"),)),)
    lengths = []
    for progress in range(8):
        chain = chain_at_progress(CHAIN, progress, 6)
        example = Example("x", turns, answer=(answer,), reasoning=chain, language="de")
        target = prompts.target_text(example, "xs-cot")
        assert target.endswith(f"\n[de-response] {answer}")
        assert split_reasoning(target) == (chain, answer)
        assert parse(target).answer == answer and parse(target).status == "ok"
        lengths.append(len(target))
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[3] > lengths[-1]
    assert parse(CHAIN).status == "unparsed"  # the last part never came


def test_stepwise_by_hand() -> None:
    plan = StepwiseSchedule(steps_per_epoch=4, tokens_per_epoch=2, start=1, pretrain_epochs=1, remove_all_beyond=3)
    assert [plan.scheduled(batch) for batch in range(10)] == [1, 1, 1, 1, 1, 1, 2, 2, float("inf"), float("inf")]
    assert [batch for batch in range(10) if plan.grows(batch)] == [6, 8]
    assert plan.applied(3) == 1
    assert remove_tokens([1, 2, 3], 2) == [3] and remove_tokens([1, 2, 3], 0, "right") == [1, 2, 3]
