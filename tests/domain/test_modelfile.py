import random

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import Modelfile, parse_modelfile

EXAMPLE = '''# a comment
from ./model.gguf
  Template """{{ .Prompt }}
# not a comment
"quoted" 	tab"""
SYSTEM "Two
lines"
PARAMETER temperature 0.5
PARAMETER stop <|im_end|>
PARAMETER stop "User: "
PARAMETER temperature 0.25
PARAMETER num_ctx 4096
PARAMETER use_mmap true
PARAMETER mirostat 1
MESSAGE user What's 1: one?
MESSAGE assistant """It is "one"."""
LICENSE first
LICENSE second
'''


def test_the_grammar_as_ollama_reads_it() -> None:
    parsed = parse_modelfile(EXAMPLE)
    assert parsed == Modelfile(
        from_="./model.gguf",
        template='{{ .Prompt }}\n# not a comment\n"quoted" \ttab',
        system="Two\nlines",
        parameters=(
            ("stop", "<|im_end|>"),
            ("stop", "User: "),
            ("temperature", 0.25),
            ("num_ctx", 4096),
            ("use_mmap", True),
        ),
        messages=(Message("user", "What's 1: one?"), Message("assistant", 'It is "one".')),
        license=("first", "second"),
    )
    assert parsed.stops == ("<|im_end|>", "User: ")
    assert parsed.parameter("num_ctx") == 4096
    assert parsed.parameter("seed") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('SYSTEM """a """b""" c"""\n', 'a """b""" c'),  # quotes inside a line don't close
        ('SYSTEM """a"b""""\n', 'a"b"'),
        ('SYSTEM a "quoted" word\n', 'a "quoted" word'),
        ("SYSTEM   padded   \n", "padded"),
        ('SYSTEM "  padded  "  \n', "  padded  "),
        ("SYSTEM no newline at the end", "no newline at the end"),
        ("SYSTEM a\u00a0b\u200dc\x07d\n", "abcd"),  # strconv.IsPrint drops them
        ("SYSTEM one\r\n# two\r\n", "one"),
        ('SYSTEM """"""\n', ""),
        ("SYSTEM first\nSYSTEM second\n", "second"),
        ("\ufeffSYSTEM marked\n", "marked"),
    ],
)
def test_values(text: str, expected: str) -> None:
    assert parse_modelfile(text).system == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("FRM x\n", "Modelfile:1: command 'FRM'", "did you mean from?"),
        (
            "FROM x\n\nPARAMETER temprature 1\n",
            "Modelfile:3: unknown parameter 'temprature'",
            "did you mean temperature?",
        ),
        ("PARAMETER top_k many\n", "Modelfile:1: top_k 'many'", "expected a whole number"),
        ("PARAMETER top_p lots\n", "Modelfile:1: top_p 'lots'", "expected a number"),
        ("PARAMETER use_mmap maybe\n", "Modelfile:1: use_mmap 'maybe'", "expected true or false"),
        ("PARAMETER  top_k 4\n", "Modelfile:1: PARAMETER", "expected a name, one blank and a value"),
        ("MESSAGE robot hi\n", "Modelfile:1: message role 'robot'", "expected one of system, user, assistant"),
        ("SYSTEM\n", "Modelfile:1: SYSTEM without a value", "expected a blank and a value after it"),
        (
            'FROM x\nSYSTEM """open\n',
            'Modelfile:2: a value that opens with """ and never closes',
            "expected closing quotes",
        ),
        (
            "FROM a\nFROM b\n",
            "Modelfile:2: a second FROM",
            "expected one FROM: a model of several files is not supported",
        ),
        ("= 3\n", "Modelfile:1: command '= 3\\n'", "expected one of from"),
    ],
)
def test_faults_name_the_line_and_the_nearest_spelling(text: str, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_modelfile(text)
    assert caught.value.message == message
    assert caught.value.hint.startswith(hint)


def test_what_the_grammar_cannot_carry_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"SYSTEM holds U\+00A0, U\+200D, which Ollama's parser drops"):
        Modelfile(system="a\u00a0b\u200dc").render()
    with pytest.raises(InputError, match=r'MESSAGE user holds a line that ends in """'):
        Modelfile(messages=(Message("user", 'say """ \nnow'),)).render()
    assert Modelfile(system='say """now""" please"""').inexpressible() == ()


def test_render_writes_commands_in_ollamas_order() -> None:
    modelfile = Modelfile(
        from_="base", template="{{ .Prompt }}", system=" x", parameters=(("top_p", 0.9), ("stop", '"'))
    )
    assert modelfile.render() == (
        'FROM base\nTEMPLATE {{ .Prompt }}\nSYSTEM """ x"""\nPARAMETER top_p 0.9\nPARAMETER stop """""""\n'
    )


def test_with_parameter_replaces_every_earlier_value() -> None:
    modelfile = Modelfile(parameters=(("num_ctx", 2048), ("stop", "a"), ("num_ctx", 1)))
    assert modelfile.with_parameter("num_ctx", 8192).parameters == (("stop", "a"), ("num_ctx", 8192))


def random_modelfile(randomness: random.Random) -> Modelfile:
    """Values made of what breaks parsers: quotes, line ends, blanks, comment signs, colons, emoji."""
    pieces = ['"', '""', '"""', "\n", "\r\n", " ", "\t", "#", ": ", "FROM", "x", "é", "🙂", "{{ .System }}", "\\n", "'"]

    def text() -> str:
        return "".join(randomness.choices(pieces, k=randomness.randint(1, 8)))

    return Modelfile(
        from_="base",
        template=text(),
        system=text(),
        parameters=(("stop", text()), ("stop", text()), ("temperature", randomness.random()), ("top_k", 3)),
        messages=(Message("user", text()), Message("assistant", text())),
        license=(text(),),
    )


def test_what_can_be_rendered_reads_back_the_same() -> None:
    randomness, rendered = random.Random(1), 0
    for _ in range(2000):
        modelfile = random_modelfile(randomness)
        if not modelfile.inexpressible():
            assert parse_modelfile(modelfile.render()) == modelfile
            rendered += 1
    assert rendered > 1000
