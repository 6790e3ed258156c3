"""Secrets: text that looks like a credential, by the prefixes that issuers chose to be searchable."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WITH_SPACE = "PRIVATE KEY"

# (what every match holds, its shape), by issuer; but for the first, what every match holds stands in a run of
# LONG_RUN characters that tokens are made of.
# Sources: [G] GitHub docs, "Supported secret scanning patterns"; [L] the rules of gitleaks (config/gitleaks.toml);
# else as named.
_SHAPES = (
    (_WITH_SPACE, r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"),  # RFC 7468, RFC 9580
    ("PuTTY-User-Key-File-", r"PuTTY-User-Key-File-[23]: "),  # PuTTY manual, appendix C
    ("AGE-SECRET-KEY-1", r"\bAGE-SECRET-KEY-1[0-9A-Z]{58}\b"),  # age-encryption.org/v1
    ("AKIA", r"\bAKIA[0-9A-Z]{16}\b"),  # AWS IAM guide, "IAM identifiers": access keys
    ("ASIA", r"\bASIA[0-9A-Z]{16}\b"),  # the same: temporary ones
    ("ghp_", r"\bghp_[A-Za-z0-9]{36,}\b"),  # GitHub docs, "About authentication": personal
    ("gho_", r"\bgho_[A-Za-z0-9]{36,}\b"),  # OAuth
    ("ghu_", r"\bghu_[A-Za-z0-9]{36,}\b"),  # app, for a user
    ("ghs_", r"\bghs_[A-Za-z0-9]{36,}\b"),  # app, for an installation
    ("ghr_", r"\bghr_[A-Za-z0-9]{36,}\b"),  # refresh
    ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{60,}\b"),  # fine-grained
    ("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}\b"),  # GitLab docs, "Token prefixes": personal
    ("gldt-", r"\bgldt-[A-Za-z0-9_-]{20,}\b"),  # deploy
    ("glrt-", r"\bglrt-[A-Za-z0-9_-]{20,}\b"),  # runner
    ("glptt-", r"\bglptt-[A-Za-z0-9_-]{20,}\b"),  # trigger
    ("hf_", r"\bhf_[A-Za-z0-9]{30,}\b"),  # Hugging Face [L]
    ("sk-", r"\bsk-[A-Za-z0-9_-]{32,}\b"),  # OpenAI, Anthropic, OpenRouter [G]
    ("gsk_", r"\bgsk_[A-Za-z0-9]{40,}\b"),  # Groq [G]
    ("xai-", r"\bxai-[A-Za-z0-9]{60,}\b"),  # xAI [G]
    ("r8_", r"\br8_[A-Za-z0-9]{37}\b"),  # Replicate [G]
    ("pplx-", r"\bpplx-[A-Za-z0-9]{40,}\b"),  # Perplexity [L]
    ("xox", r"\bxox[abeprs]-[A-Za-z0-9-]{10,}\b"),  # Slack docs, "Tokens"
    ("xapp-", r"\bxapp-\d-[A-Za-z0-9-]{10,}\b"),  # the same: app-level
    ("hooks.slack.com", r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9+/]{40,}"),  # [L]
    ("AIza", r"\bAIza[A-Za-z0-9_-]{35}\b"),  # Google API key [G]
    ("GOCSPX-", r"\bGOCSPX-[A-Za-z0-9_-]{28}\b"),  # Google OAuth client secret [G]
    ("ya29.", r"\bya29\.[A-Za-z0-9_-]{20,}"),  # Google OAuth access token [G]
    ("1//0", r"(?<![\w/:])1//0[A-Za-z0-9_-]{40,}"),  # Google OAuth refresh token [G]
    ("_live_", r"\b[rs]k_live_[A-Za-z0-9]{16,}\b"),  # Stripe docs, "API keys": secret and restricted
    ("_test_", r"\b[rs]k_test_[A-Za-z0-9]{16,}\b"),  # the same, test mode
    ("whsec_", r"\bwhsec_[A-Za-z0-9+/=]{24,}"),  # Stripe docs, "Webhooks": signing secret
    ("sq0csp-", r"\bsq0csp-[A-Za-z0-9_-]{43}\b"),  # Square [L]
    ("npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),  # npm: GitHub blog 2021-09-23, "npm has a new access token format"
    ("pypi-AgE", r"\bpypi-AgE[A-Za-z0-9_-]{50,}"),  # PyPI help, "API tokens": a macaroon
    ("rubygems_", r"\brubygems_[a-f0-9]{48}\b"),  # [L]
    ("dckr_", r"\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{27,}"),  # Docker Hub [G]
    ("AccountKey=", r"\bAccountKey=[A-Za-z0-9+/]{86}=="),  # Azure Storage docs, "Configure connection strings"
    ("SharedAccessKey=", r"\bSharedAccessKey=[A-Za-z0-9+/]{43}="),  # Azure Service Bus and Event Hubs, the same
    ("Q~", r"(?<![\w~.-])[\w~.-]{3}\dQ~[\w~.-]{31,34}(?![\w~.-])"),  # Microsoft Entra client secret [L]
    ("SG.", r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),  # SendGrid [G]
    ("_v1_", r"\bdo[opr]_v1_[a-f0-9]{64}\b"),  # DigitalOcean [G]
    ("shp", r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}\b"),  # Shopify [G]
    ("dapi", r"\bdapi[a-f0-9]{32}\b"),  # Databricks [G]
    ("hvs.", r"\bhvs\.[A-Za-z0-9_-]{24,}"),  # HashiCorp Vault docs, "Tokens"
    (".atlasv1.", r"\b[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_-]{60,}"),  # Terraform Cloud [L]
    ("glsa_", r"\bglsa_[A-Za-z0-9]{32}_[a-f0-9]{8}\b"),  # Grafana [G]
    ("lin_api_", r"\blin_api_[A-Za-z0-9]{40}\b"),  # Linear [G]
    ("PMAK-", r"\bPMAK-[a-f0-9]{24}-[a-f0-9]{34}\b"),  # Postman [G]
    ("NRAK-", r"\bNRAK-[A-Z0-9]{27}\b"),  # New Relic [G]
    ("/api/webhooks/", r"discord(?:app)?\.com/api/webhooks/\d{17,}/[A-Za-z0-9_-]{60,}"),  # Discord [G]
    (":AA", r"(?<!\w)\d{8,10}:AA[A-Za-z0-9_-]{33}(?![\w-])"),  # Telegram bot [G]
    (".eyJ", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),  # JSON web token, RFC 7519
)
LONG_RUN = 15
_IN_TOKENS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=.:~"
_SECRETS = tuple((marker, re.compile(shape)) for marker, shape in _SHAPES)
_ADDRESS = re.compile(r"\b[A-Za-z0-9._%+-]+@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})\b")
_MAYBE_ADDRESS = re.compile(r"@(?<=[A-Za-z0-9._%+-]@)[A-Za-z0-9-]+\.")
# Names that RFC 2606 and RFC 6761 reserve for examples belong to nobody.
_RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.IGNORECASE)


def holding_secrets(texts: Sequence[str]) -> list[bool]:
    """For each text whether something in it has the shape of a credential."""
    from amigo_local.data.word_grams import chunks

    found: list[bool] = []
    for part in chunks(list(map(len, texts))):
        whole = "\n".join(texts[part])
        runs = _long_runs(whole)
        possible = [
            (marker, shape) for marker, shape in _SECRETS if marker in (runs if marker != _WITH_SPACE else whole)
        ]
        found.extend(any(marker in text and shape.search(text) for marker, shape in possible) for text in texts[part])
    return found


def _long_runs(text: str) -> str:
    """What could be a token: a tenth of ordinary text and code, which is then all that need be searched for markers."""
    import numpy as np

    content = b"\n" + text.encode("utf-8", "replace") + b"\n"
    between = np.ones(256, np.bool_)
    between[np.frombuffer(_IN_TOKENS, np.uint8)] = False
    gaps = np.flatnonzero(between[np.frombuffer(content, np.uint8)])
    long = np.flatnonzero(np.diff(gaps) > LONG_RUN)
    bounds = zip((gaps[long] + 1).tolist(), gaps[long + 1].tolist(), strict=True)
    return b" ".join([content[begin:end] for begin, end in bounds]).decode("ascii")


def holds_address(text: str) -> bool:
    """Whether there is an e-mail address in it that could be somebody's."""
    if not _MAYBE_ADDRESS.search(text):
        return False
    return any(not _RESERVED.search(match[1]) for match in _ADDRESS.finditer(text))
