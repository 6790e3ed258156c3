from __future__ import annotations

import pytest

from amigo_local.data.decontamination import Decontamination, load_decontamination
from amigo_local.data.filters import ADDRESS, EMPTY, EVALUATION, LANGUAGE, LICENSE, SECRET, SYNTAX, Filters, allows
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.secrets import holding_secrets
from amigo_local.domain.recipe import DataSettings

GOOD = "```python\nx + 1\n```\n"
BROKEN = "```python\n(\n```"
LEAK = "the quick brown fox jumps over one lazy dog while seven wizards box"
KNOWN = load_decontamination(texts=[LEAK])


def pair(prompt: str = "Add one to x.", completion: str = GOOD, language: str = "", license: str = "") -> Pair:
    return Pair(prompt=prompt, completion=completion, source="test", language=language, license=license)


def refusal(item: Pair, known: Decontamination = KNOWN, **settings: object) -> str | None:
    return Filters(DataSettings(**settings), known).refusals([item])[0]  # type: ignore[arg-type]


def test_each_pair_gets_the_first_reason_of_the_steps_in_their_order() -> None:
    filters = Filters(DataSettings(max_characters=900, languages=("python",), licenses=("MIT",)), KNOWN)
    bad = {"language": "cobol", "license": "GPL-3.0-only"}
    address, secret = " a@company.io ", " hf_" + "aB" * 17
    everything = LEAK + address + secret
    rows = [
        pair(prompt="x" * 900, completion=BROKEN + everything, **bad),
        pair(prompt=" ", completion=BROKEN + everything, **bad),
        pair(prompt=" ", completion=BROKEN + everything, license="GPL-3.0-only"),
        pair(prompt=" ", completion=BROKEN + everything),
        pair(completion=BROKEN + everything),
        pair(completion=GOOD + everything),
        pair(completion=GOOD + LEAK + address),
        pair(completion=GOOD + LEAK),
        pair(),
    ]
    found = filters.refusals(rows)
    assert filters.steps == (
        "longer than 900 characters",
        LANGUAGE,
        LICENSE,
        EMPTY,
        SYNTAX,
        SECRET,
        ADDRESS,
        EVALUATION,
    )
    assert found == [*filters.steps, None]
    assert filters.refusals(rows[::-1]) == found[::-1]
    assert [filters.refusals([row])[0] for row in rows] == found


def test_rows_that_do_not_say_their_language_or_licence_are_kept() -> None:
    strict = {"languages": ("python", "C++"), "licenses": ("mit", "Apache-2.0")}
    assert refusal(pair(), **strict) is None
    assert refusal(pair(language="Py", license="MIT"), **strict) is None
    assert refusal(pair(language="cpp", license="apache-2.0"), **strict) is None
    assert refusal(pair(language="go", license="MIT"), **strict) == LANGUAGE
    assert refusal(pair(language="python", license="GPL-3.0-only"), **strict) == LICENSE
    assert refusal(pair(language="go", license="GPL-3.0-only")) is None


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit OR GPL-3.0-only", True),
        ("GPL-3.0-only OR Apache-2.0", True),
        ("MIT AND Apache-2.0", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND (GPL-3.0-only OR Apache-2.0)", True),
        ("GPL-3.0-only AND MIT OR Apache-2.0", True),
        ("GPL-3.0-only AND (MIT OR Apache-2.0)", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0 OR MIT", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("MIT OR", False),
        ("(MIT", False),
        ("MIT Apache-2.0", False),
        ("", False),
    ],
)
def test_a_licence_expression_is_allowed_when_it_can_be_met(expression: str, allowed: bool) -> None:
    assert allows(frozenset({"mit", "apache-2.0"}), expression) is allowed


def test_the_worse_answer_may_be_broken_but_holds_no_secret_and_no_evaluation() -> None:
    def preference(completion: str, rejected: str) -> Preference:
        return Preference(prompt="p", completion=completion, rejected=rejected, source="s")

    assert refusal(preference(GOOD, BROKEN)) is None
    assert refusal(preference(BROKEN, GOOD)) == SYNTAX
    assert refusal(preference(GOOD, "AKIA" + "ABCDEFGHIJKLMNOP")) == SECRET
    assert refusal(preference(GOOD, "mail someone@gmail.com")) == ADDRESS
    assert refusal(preference(GOOD, LEAK)) == EVALUATION


# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    "PuTTY-User-" + "Key-File-2: ssh-rsa",
    "AGE-SECRET-" + "KEY-1" + "Q" * 58,
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "ASIA" + "ABCDEFGHIJKLMNOP",
    *("gh" + kind + "_" + "a1" * 18 for kind in "pousr"),
    "github_" + "pat_" + "A1" * 11 + "_" + "b2" * 29 + "c",
    *("gl" + kind + "-" + "a1" * 10 for kind in ("pat", "dt", "rt", "ptt")),
    "hf_" + "aB" * 17,
    "sk-" + "proj-" + "a1" * 20,
    "sk-" + "ant-api03-" + "a1" * 20,
    "gsk_" + "a1" * 26,
    "xai-" + "a1" * 40,
    "r8_" + "a1" * 18 + "b",
    "pplx-" + "a1" * 24,
    "xoxb-" + "1234567890-abc",
    "xoxb-" + "1234567890",
    "xapp-" + "1-A0123456789-abc",
    "https://hooks." + "slack.com/services/T00000000/B00000000/" + "a1" * 12,
    "AIza" + "a1" * 17 + "b",
    "GOC" + "SPX-" + "a1" * 14,
    "ya29" + "." + "a1" * 20,
    "1/" + "/0" + "a1" * 25,
    "sk_" + "live_" + "a1" * 12,
    "rk_" + "test_" + "a1" * 12,
    "whsec" + "_" + "a1" * 16,
    "sq0" + "csp-" + "a1" * 21 + "b",
    "npm" + "_" + "a1" * 18,
    "pypi-" + "AgEIcHlwaS5vcmc" + "a1" * 40,
    "rubygems" + "_" + "a1" * 24,
    "dckr_" + "pat_" + "a1" * 13 + "b",
    "DefaultEndpointsProtocol=https;Account" + "Key=" + "a1" * 43 + "==;EndpointSuffix=x",
    "SharedAccess" + "Key=" + "a1" * 21 + "b=",
    "abc8" + "Q~" + "a1" * 16,
    "SG" + "." + "a1" * 11 + "." + "a1" * 21 + "b",
    "dop" + "_v1_" + "a1" * 32,
    "shpat" + "_" + "a1" * 16,
    "dapi" + "a1" * 16,
    "hvs" + "." + "a1" * 12,
    "a1" * 7 + ".atlas" + "v1." + "a1" * 30,
    "glsa" + "_" + "a1" * 16 + "_" + "a1" * 4,
    "lin_" + "api_" + "a1" * 20,
    "PMAK" + "-" + "a1" * 12 + "-" + "a1" * 17,
    "NRAK" + "-" + "A1" * 13 + "B",
    "https://discord." + "com/api/webhooks/" + "12" * 9 + "/" + "a1" * 34,
    "123456789" + ":AA" + "a1" * 16 + "b",
    "eyJ" + "hbGciOiJIUzI1" + ".eyJ" + "zdWIiOiIxMjM0" + ".SflKxwRJSMeKKF2QT4",
]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:6])
def test_a_secret_is_refused_in_request_and_answer(secret: str) -> None:
    assert refusal(pair(prompt=f"Use {secret} here.")) == SECRET
    assert refusal(pair(prompt=f"Ünï\n{secret}")) == SECRET
    assert refusal(pair(completion=f"```python\nx = {secret!r}\n```")) == SECRET


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:6])
def test_a_secret_cut_short_is_none(secret: str) -> None:
    assert refusal(pair(prompt=f"Use {secret[:9]} here.")) is None


def test_every_text_of_a_large_batch_is_judged_by_itself() -> None:
    texts = [f"row {number} of ordinary prose_and_identifiers_as_long_as_tokens " * 20 for number in range(3000)]
    for place, secret in enumerate(SECRETS):
        texts[place * 50] += secret
    assert [place for place, found in enumerate(holding_secrets(texts)) if found] == [
        place * 50 for place in range(len(SECRETS))
    ]
    assert holding_secrets([]) == []


@pytest.mark.parametrize("address", ["jane.doe@company.io", "x+y_z@mail.uni-a.ac.uk", "(a@b.co)", "ü a@b.de"])
def test_an_address_is_refused(address: str) -> None:
    assert refusal(pair(prompt=f"Ask {address}, please.")) == ADDRESS


@pytest.mark.parametrize(
    "harmless",
    ["a@example.com", "b@mail.example.org", "c@host.invalid", "@decorator.name", "x @ y.z", "m@n", "a@1.5", "é@b.de"],
)
def test_what_belongs_to_nobody_is_no_address(harmless: str) -> None:
    assert refusal(pair(prompt=f"Parse {harmless} please.")) is None
