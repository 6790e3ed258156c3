"""Tells a licence by its text or its usual name, as an SPDX identifier."""

from __future__ import annotations

import re

_MIT = "permission is hereby granted free of charge to any person obtaining a copy of this software"
_ISC = "permission to use copy modify and or distribute this software for any purpose with or without fee is hereby"
_MIT_NOTICE = "shall be included in all copies or substantial portions of the software"

# How texts name themselves: the narrower come first.
_NAMED = (
    ("AGPL-3.0-only", "gnu affero general public license"),
    ("LGPL-2.1-only", "gnu lesser general public license version 2.1"),
    ("LGPL-3.0-only", "gnu lesser general public license"),
    ("GPL-3.0-only", "gnu general public license version 3"),
    ("GPL-2.0-only", "gnu general public license version 2"),
    ("Apache-2.0", "apache license version 2.0"),
    ("MPL-2.0", "mozilla public license version 2.0"),
)
# Phrases that only that licence's text has.
_TEXTS = (
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", "cc0 1.0 universal"),
    ("ISC", f"{_ISC} granted provided that"),
    ("0BSD", _ISC),
)
_REDISTRIBUTION = "redistribution and use in source and binary forms with or without modification are permitted"
_NO_ENDORSEMENT = re.compile(r"neither the names? of .{1,120}? nor the names")

# What metadata and classifiers call them.
_NAMES = (
    (r"apache(?: software)? ?(?:license)?,?(?: version)?[ -]?2(?:\.0)?|apache software license", "Apache-2.0"),
    (r"(?:the )?mit(?: license)?|expat", "MIT"),
    (r"(?:new |modified |revised )?bsd[ -]3[ -]clause(?: license)?|3-clause bsd(?: license)?|new bsd", "BSD-3-Clause"),
    (r"bsd[ -]2[ -]clause(?: license)?|2-clause bsd(?: license)?|simplified bsd(?: license)?", "BSD-2-Clause"),
    (r"isc(?: license)?(?: \(iscl\))?", "ISC"),
    (r"(?:mozilla public license 2\.0(?: \(mpl 2\.0\))?|mpl[ -]2(?:\.0)?)", "MPL-2.0"),
    (r"(?:python software foundation license|psf(?:-2\.0)?|psfl?)", "PSF-2.0"),
    (r"(?:the )?unlicense(?: \(unlicense\))?", "Unlicense"),
    (r"(?:gplv3|gpl-3\.0(?:-only)?|gnu general public license v3(?: \(gplv3\))?)", "GPL-3.0-only"),
    (r"(?:gplv2|gpl-2\.0(?:-only)?|gnu general public license v2(?: \(gplv2\))?)", "GPL-2.0-only"),
    (r"(?:lgplv3|lgpl-3\.0(?:-only)?|gnu lesser general public license v3(?: \(lgplv3\))?)", "LGPL-3.0-only"),
    (r"0bsd", "0BSD"),
)  # fmt: skip
_LONGEST_NAME = 80
_TITLE = 60
"""Characters within which a text that is one licence names it."""


def license_of(text: str) -> str:
    """SPDX identifier of a licence's text or name; empty when it isn't one of the common ones.

    The GPL's text doesn't say whether later versions may be chosen; the narrower reading is taken.
    """
    stated = " ".join(text.split()).lower()
    if len(stated) <= _LONGEST_NAME:
        return next((spdx for pattern, spdx in _NAMES if re.fullmatch(pattern, stated)), "")
    words = " ".join(re.findall(r"[a-z0-9]+(?:\.[0-9]+)*", stated))
    # A licence names itself at its head, before others that it mentions.
    head = words[:2500]
    named = [(head.find(phrase), order, spdx) for order, (spdx, phrase) in enumerate(_NAMED) if phrase in head]
    others = [phrase for phrase in (_MIT, _REDISTRIBUTION) if phrase in words]
    if named:
        place, _, spdx = min(named)
        return spdx if place < _TITLE or not others else ""  # of two licences in one text, which holds where isn't told
    for spdx, phrase in _TEXTS:
        if phrase in words:
            return spdx
    if _MIT in words:
        return "MIT" if _MIT_NOTICE in words else "MIT-0"
    if _REDISTRIBUTION in words:
        return (
            "BSD-3-Clause" if _NO_ENDORSEMENT.search(words) or "may not be used to endorse" in words else "BSD-2-Clause"
        )
    return ""
