"""Numbers in Chinese text written out as they are read, for character error rates.

Qwen2-Audio's program passes Chinese references and outputs through the text normaliser of speechio (TextNorm, with all
optional steps off): dates, sums of money, telephone numbers, fractions, percentages, counted things, long and other
numbers become characters, in this order, and punctuation becomes blanks. Every rule finds its matches first and then
replaces the first occurrence of each matched text; where a text occurs twice this differs from replacing in place, and
it is kept, since published rates were computed so.

Source: eval_audio of QwenLM/Qwen2-Audio@595360e; rules and word lists of speechio/chinese_text_normalization
(Apache-2.0). Written anew; compared case by case with the original's outputs (`tests/golden`).
"""

import re
import string
from collections.abc import Callable, Sequence

DIGITS = "零一二三四五六七八九"
UNITS = {
    1: "十",
    2: "百",
    3: "千",
    4: "万",
    **{8 + 4 * place: unit for place, unit in enumerate("亿兆京垓秭穰沟涧正载")},
}
"""Characters of the powers of ten."""
PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"
    "·〈〉" + string.punctuation
)

_POWER = "亿|千万|百万|万|千|百"
_MONEY = rf"(?:{_POWER}|(?:{_POWER}|)元|(?:{_POWER}|)块|角|毛|分)"
_COUNTED = (
    "匹张座回场尾条个首阙阵网炮顶丘棵只支袭辆挑担颗壳窠曲墙群腔砣座客贯扎捆刀令打手罗坡山岭江溪钟队单双对出口头脚板跳枝件贴"
    "针线管名位身堂课本页家户层丝毫厘分钱两斤担铢石钧锱忽寸尺丈里寻常铺程撮勺合升斗石盘碗碟叠桶笼盆盒杯钟斛锅簋篮盘桶罐瓶壶卮盏"
    "箩箱煲啖袋钵年月日季刻时周天秒分旬纪岁世更夜春夏秋冬代伏辈丸泡粒颗幢堆条根支道面片张颗块"
)
_QUANTIFIER = rf"(?:[{_COUNTED}]|[千毫微]克|[千分厘毫]米)"
_DATE = re.compile(r"\D+((?:(?:[089]\d|(?:19|20)\d{2})年)?(?:\d{1,2}月(?:\d{1,2}[日号])?)?)")
_SUM = re.compile(rf"\D+(\d+(?:\.\d+)?[多余几]?{_MONEY}(?:\d{_MONEY}?)?)")
_MOBILE = re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D")
_LANDLINE = re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D")
_FRACTION = re.compile(r"\d+/\d+")
_PERCENTAGE = re.compile(r"\d+(?:\.\d+)?%")
_COUNT = re.compile(rf"(\d+(?:\.\d+)?)[多余几]?{_QUANTIFIER}")
_CODE = re.compile(r"\d{4,32}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LETTERS_AROUND_TWO = re.compile(r"[a-zA-Z]+二[a-zA-Z]+")


def read_digits(number: str) -> str:
    """A number read digit by digit.

    >>> read_digits("1919")
    '一九一九'
    """
    return "".join(DIGITS[int(digit)] for digit in number)


def read_number(number: str) -> str:
    """A number read as a quantity.

    >>> read_number("231"), read_number("12.50"), read_number("2000000")
    ('两百三十一', '十二点五零', '两百万')

    Args:
        number: Decimal digits, with at most one point. Leading zeros are read once ("010" is 零一十), and zeros alone
            are read as nothing, as the original does.
    """
    whole, _, decimals = number.partition(".")
    symbols = _symbols(whole) if len(whole) > 1 else list(read_digits(whole))
    text = "".join(_with_liang([*symbols, "点", *read_digits(decimals)] if decimals else symbols))
    if text.startswith("点"):
        return "零" + text
    return text[1:] if text.startswith("一十") else text


def normalise_chinese(text: str) -> str:
    """Text with its numbers written out and its punctuation replaced by blanks.

    >>> normalise_chinese("会议在2023年5月6日下午3点半开始。")
    '会议在二零二三年五月六日下午三点半开始 '
    """
    text = f"^{text}$"
    text = _replace(text, _DATE.findall(text), _read_date)
    text = _replace(text, _SUM.findall(text), _read_sum)
    text = _replace(text, _MOBILE.findall(text), lambda number: read_digits(number.strip("+").replace(" ", "")))
    text = _replace(text, _LANDLINE.findall(text), lambda number: read_digits(number.replace("-", "")))
    text = _replace(text, _FRACTION.findall(text), _read_fraction)
    text = text.replace("％", "%")
    text = _replace(text, _PERCENTAGE.findall(text), lambda share: "百分之" + read_number(share.rstrip("%")))
    text = _replace(text, _COUNT.findall(text), read_number)
    text = _replace(text, _CODE.findall(text), read_digits)
    text = _replace(text, _NUMBER.findall(text), read_number)
    text = _replace(text, _LETTERS_AROUND_TWO.findall(text), lambda name: name.replace("二", "2"))
    text = text.lstrip("^").rstrip("$")
    return text.translate(str.maketrans(PUNCTUATION, " " * len(PUNCTUATION)))


def _replace(text: str, matches: Sequence[str], read: Callable[[str], str]) -> str:
    """Replace, for each match in turn, the first occurrence of its text."""
    for match in matches:
        if match:
            text = text.replace(match, read(match), 1)
    return text


def _read_date(date: str) -> str:
    year, mark, rest = date.rpartition("年")
    month, month_mark, day = rest.partition("月")
    return (
        read_digits(year)
        + mark
        + (read_number(month) + month_mark if month else "")
        + (read_number(day[:-1]) + day[-1] if day else "")
    )


def _read_sum(money: str) -> str:
    return _replace(money, _NUMBER.findall(money), read_number)


def _read_fraction(fraction: str) -> str:
    numerator, denominator = fraction.split("/")
    return f"{read_number(denominator)}分之{read_number(numerator)}"


def _symbols(number: str) -> list[str]:
    """Digits and units of a whole number, from the largest unit down."""
    stripped = number.lstrip("0")
    if not stripped:
        return []
    if len(stripped) == 1:
        digit = DIGITS[int(stripped)]
        return ["零", digit] if len(number) > 1 else [digit]
    power = max(power for power in UNITS if power < len(stripped))
    return [*_symbols(number[:-power]), UNITS[power], *_symbols(stripped[-power:])]


def _with_liang(symbols: list[str]) -> list[str]:
    """The same symbols with 两 for a 二 that counts hundreds or more, and does not follow tens."""
    units = set(UNITS.values())
    spoken = list(symbols)
    for place, symbol in enumerate(symbols[:-1]):
        previous = symbols[place - 1] if place else None
        counts = symbols[place + 1] in units and symbols[place + 1] != "十"
        if symbol == "二" and counts and (previous is None or (previous in units and previous != "十")):
            spoken[place] = "两"
    return spoken
