"""Texts that tell two tokenizers apart: code, many scripts, joined emoji, odd spaces, control and special tokens."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from unicodedata import ucd_3_2_0

# [first, last] code points. Plain ranges rather than unicodedata's newest tables, which change with the Python version.
_SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A)),
    "latin with marks": ((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x17F), (0x1E00, 0x1EF9)),
    "greek": ((0x391, 0x3A1), (0x3A3, 0x3CE)),
    "cyrillic": ((0x400, 0x45F),),
    "armenian": ((0x531, 0x556), (0x561, 0x586)),
    "hebrew": ((0x5B0, 0x5BD), (0x5D0, 0x5EA)),
    "arabic": ((0x621, 0x63A), (0x641, 0x652), (0x660, 0x669)),
    "devanagari": ((0x900, 0x903), (0x905, 0x939), (0x93E, 0x94D), (0x966, 0x96F)),
    "bengali": ((0x985, 0x98C), (0x995, 0x9A8), (0x9BE, 0x9C4)),
    "tamil": ((0xB85, 0xB8A), (0xB92, 0xB95), (0xBBE, 0xBC2)),
    "thai": ((0xE01, 0xE3A), (0xE40, 0xE4E), (0xE50, 0xE59)),
    "tibetan": ((0xF40, 0xF47), (0xF71, 0xF7E)),
    "georgian": ((0x10A0, 0x10C5), (0x10D0, 0x10FA)),
    "hangul": ((0x1100, 0x1112), (0xAC00, 0xD7A3)),
    "ethiopic": ((0x1200, 0x1248),),
    "cherokee": ((0x13A0, 0x13EF),),
    "khmer": ((0x1780, 0x17B3), (0x17B6, 0x17C5)),
    "kana": ((0x3041, 0x3096), (0x30A1, 0x30FA)),
    "han": ((0x4E00, 0x9FA5), (0x3400, 0x34FF), (0x20000, 0x200FF)),
    "gothic": ((0x10330, 0x10340),),
    "mathematical": ((0x1D400, 0x1D433), (0x1D7CE, 0x1D7FF)),
    "numbers": ((0x30, 0x39), (0xB2, 0xB3), (0xBC, 0xBE), (0x2150, 0x2182), (0x2460, 0x2473)),
    "symbols": ((0x20A0, 0x20BF), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2500, 0x257F)),
}
_MARKS = ((0x300, 0x34E), (0x483, 0x487), (0x591, 0x5AF), (0x20D0, 0x20DC), (0xFE00, 0xFE0F))
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡¿«»“”‘’–—…·、。「」・٪؟"
# U+2581, sentencepiece's own space, is left out: llama.cpp and sentencepiece treat it differently in a text.
_SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2002\u2009\u2028\u2029\u202f\u3000\u200b\u200d\u2060\ufeff"
_EMOJI = (  # split at spaces, like the three below
    "🙂 👍🏽 👩‍👩‍👧‍👦 👩🏿‍🚀 🏳️‍🌈 🏴‍☠️ 🇩🇪 🇯🇵🇧🇷 ❤️ ❤ 1️⃣ #️⃣ ☎︎ ©️ 🧑🏻‍❤️‍💋‍🧑🏿 🫠 👨‍👦‍👦 🇺 🏽"
)
_SPECIALS = (
    "<|im_start|> <|im_end|> <|endoftext|> <start_of_turn> <end_of_turn> <bos> <eos> <pad> <unk> <mask> <s> </s> "
    "<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end|> <|user|> <|assistant|> [INST] [/INST] <<SYS>> <0x0A> "
    "<unused7> <table> </table> <h1> <|fim_prefix|> <tool_call> <think> <|im_start <|im_end|"
)
_CONTRACTIONS = "I'm you'RE we'll they'd it'S don't O'Neill 'tis y'all'd've rock'n'roll l’été d’accord"
_PIECES_OF_CODE = (
    "def {a}({b}: int, *, {c}=None) -> list[str]:\n{i}return [{b}.{c} for {b} in {a}({n}) if not {c}]\n",
    "class {A}({B}):\n{i}def __init__(self):\n{i}{i}super().__init__()\n{i}{i}self._{a} = {n}\n",
    "for (int {a} = 0; {a} < {n}; ++{a}) {{\n{i}{b}[{a}] += {c} * {n};\n}}\n",
    '#include <{a}.h>\n#define {A} 0x{n}\nstatic const char *{b} = "{c}\\n\\t%d";\r\n',
    "SELECT {a}, COUNT(*) FROM {b} WHERE {c} <> '{n}' GROUP BY 1;--{a}\n",
    "<div class=\"{a} {b}\" id='{c}'>\n{i}<!-- {a} -->&nbsp;&#{n};\n</div>\n",
    '{{"{a}": [{n}, -{n}.5e-10, null], "{b}": {{"{c}": "\\u00e9"}}}}\n',
    "const {a} = async ({b}) => {{ await {c}?.{b}(`${{{a}}}`) ?? {n} }};  // {A}\n",
    "fn {a}<'a, T: {A}>({b}: &'a mut T) -> Result<(), {B}> {{ {c}!(\"{{}}\", {n})?; Ok(()) }}\n",
    "| {a} | {b} |\n|:---|---:|\n| `{c}` | **{n}** |\n\n- [ ] {a}\n  1. {b}\n",
    "$ {a} --{b}={n} -x \"$({c})\" 2>&1 | grep -E '^{a}+$' > /tmp/{b}.txt\n",
    "\\begin{{{a}}} \\frac{{{n}}}{{{b}_{{{n}}}}} &= \\mathbb{{R}}^{n} \\\\ \\end{{{a}}}\n",
    "https://{a}.example.org:{n}/{b}/{c}?q={n}&{a}=%20#{b}\n",
)
_INDENTS = ("  ", "    ", "\t", "        ")
_PROSE = (
    "the quick brown fox jumps over lazy dogs while reading Unicode annexes at midnight and nobody sees why "
    "Größe naïve café señor fjord œuvre straße İstanbul ΣΊΣΥΦΟΣ ﬁne Привет мир שלום مرحبا नमस्ते 東京都 안녕하세요 สวัสดี"
)


def check_texts(count: int) -> list[str]:
    """`count` texts of 1 to some 400 characters, always the same; a longer list starts with the shorter one.

    Each is one kind of text or several joined. Valid Unicode without NUL, surrogates and U+2581.
    """
    return [_text(Random(number)) for number in range(count)]


def _text(random: Random) -> str:
    pieces = [random.choice(_KINDS)(random) for _ in range(random.choice((1, 1, 2, 3)))]
    return random.choice(("", " ", "\n")).join(pieces)


def _pick(random: Random, ranges: tuple[tuple[int, int], ...]) -> str:
    first, last = random.choice(ranges)
    return chr(random.randint(first, last))


def _word(random: Random, script: str = "latin", longest: int = 9) -> str:
    return "".join(_pick(random, _SCRIPTS[script]) for _ in range(random.randint(1, longest)))


def _prose(random: Random) -> str:
    words = random.choices(_PROSE.split(" "), k=random.randint(1, 14))
    ends = random.choices((" ", " ", " ", "  ", ", ", ". ", "! ", "? ", "-", "\n", "\n\n"), k=len(words))
    changes = random.choices((str, str, str, str.title, str.upper, str.swapcase), k=len(words))
    return "".join(change(word) + end for change, word, end in zip(changes, words, ends, strict=True))


def _code(random: Random) -> str:
    joint = random.choice(("", "_"))
    names = {key: joint.join(random.choices(_PROSE.split(" ")[:16], k=random.randint(1, 3))) for key in "abc"}
    capitals = {key.upper(): "".join(random.choices(_PROSE.split(" ")[:16], k=2)).title() for key in "ab"}
    text = random.choice(_PIECES_OF_CODE).format(i=random.choice(_INDENTS), n=_number(random), **names, **capitals)
    return text if random.random() < 0.5 else text.replace("\n", "\n" + random.choice(_INDENTS))


def _number(random: Random) -> str:
    return str(random.randrange(10 ** random.randint(1, 12)))


def _numbers(random: Random) -> str:
    forms = ("{}", "{}.{}", "-{}e-{}", "0x{}F", "{},{}", "{}%", "${}.{}", "{}/{}", "{}st", "v{}.{}", "²{}½")
    pairs = [random.choice(forms).format(_number(random), _number(random)) for _ in range(random.randint(1, 6))]
    return random.choice((" ", "  ", "", "\n", "+")).join(pairs)


def _scripts(random: Random) -> str:
    script = random.choice(tuple(_SCRIPTS))
    joint = random.choice((" ", " ", "", "-", "، ", "。"))
    return joint.join(_word(random, script) for _ in range(random.randint(1, 8)))


def _mixed_scripts(random: Random) -> str:
    words = [_word(random, random.choice(tuple(_SCRIPTS)), 4) for _ in range(random.randint(2, 10))]
    return random.choice(("", " ", ".")).join(words)


def _emoji(random: Random) -> str:
    return random.choice(("", " ", "a", "\u200d")).join(random.choices(_EMOJI.split(" "), k=random.randint(1, 8)))


def _space_runs(random: Random) -> str:
    runs = [random.choice(" \n\t ") * random.randint(1, 33) + random.choice(("", "x", "=", "1", "é")) for _ in range(4)]
    return "".join(runs)


def _odd_spaces(random: Random) -> str:
    return "".join(random.choice(_SPACES) * random.randint(0, 3) + _word(random, longest=3) for _ in range(8))


def _controls(random: Random) -> str:
    codes = (*range(1, 32), *range(127, 160), 0xAD, 0x200E, 0x202E, 0xFFFD, 0xFFF9, 0xE000, 0x10FFFD, 0xE0067)
    return "".join(random.choice((chr(random.choice(codes)), _word(random, longest=2))) for _ in range(12))


def _lone_marks(random: Random) -> str:
    def marked() -> str:
        return random.choice(("", " ", "a", "é", "1", "\n", "-")) + "".join(
            _pick(random, _MARKS) for _ in range(random.randint(1, 4))
        )

    return "".join(marked() for _ in range(random.randint(1, 8)))


def _punctuation(random: Random) -> str:
    runs = [random.choice(_PUNCTUATION) * random.choice((1, 1, 2, 3, 9)) for _ in range(random.randint(1, 14))]
    return random.choice(("", " ", "a")).join(runs)


def _special_tokens(random: Random) -> str:
    between = random.choices(("", " ", "\n", "user", " a ", "  ", "é", "system\nYou help."), k=5)
    return "".join(random.choice(_SPECIALS.split(" ")) + text for text in between)


def _contractions(random: Random) -> str:
    return random.choice((" ", "", "\n")).join(random.choices(_CONTRACTIONS.split(" "), k=random.randint(1, 6)))


def _repeats(random: Random) -> str:
    unit = random.choice(("a", "ab", "=", "-", "é", "한", "0", "\n", "ha", "🙂", ". ", "\r\n", "_", "ы"))
    return unit * random.randint(2, 90)


def _anything(random: Random) -> str:
    """Characters of Unicode 3.2, which all tables agree on: newer ones are letters to some and nothing to others."""
    codes = [random.randrange(1, 0x30000 if random.random() < 0.5 else 0x3000) for _ in range(random.randint(1, 24))]
    known = [chr(code) for code in codes if code != 0x2581]
    return "".join(char for char in known if ucd_3_2_0.category(char) not in ("Cn", "Cs", "Co")) or "a"


_KINDS: tuple[Callable[[Random], str], ...] = (
    _prose,
    _code,
    _code,
    _numbers,
    _scripts,
    _mixed_scripts,
    _emoji,
    _space_runs,
    _odd_spaces,
    _controls,
    _lone_marks,
    _punctuation,
    _special_tokens,
    _contractions,
    _repeats,
    _anything,
)
