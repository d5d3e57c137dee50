"""Secrets: what a key, token or password looks like, and text without it.

Settings, messages and attempts are kept and shown, so none of them may hold a secret. A setting that would is refused
unshown (`check_no_secret`); texts that come from elsewhere, such as an error's, are masked.

    masked("https://me:pw1@host/rows.jsonl")     # "https://(hidden)@host/rows.jsonl"
"""

import os
import re

HIDDEN = "(hidden)"
SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PAT)$")
"""How environment variables that hold secrets end."""
LEAST = 8
"""Characters below which the value of such a variable is no secret: it would be found in any text."""

_NAME = (
    r"(?:api|access|auth|hf|wandb|secret|private)?[-_]?(?:key|token|secret|password|passwd|credential|signature|sig)"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # a user and a password in front of a host
    (re.compile(r"(?<=://)[^\s/@'\"]+@"), f"{HIDDEN}@"),
    # a flag of a command, with = or a space; and a variable that is set in front of one
    (re.compile(rf"(--?{_NAME}(?:=|\s+))(?![$\s-])(\"[^\"]*\"|'[^']*'|[^\s'\",;]+)", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(\b[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|SECRET|PASSWORD)\s*=\s*)(?!\$)(\"[^\"$]*\"|'[^'$]*'|[^\s'\",;$]+)"
        ),
        rf"\1{HIDDEN}",
    ),
    # a value in the query of an address
    (re.compile(rf"([?&][\w.-]*{_NAME}=)[^&\s'\"#]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\bBearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # forms of keys that services have: Hugging Face, OpenAI and its likes, GitHub, AWS, Slack, JSON web tokens
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{12,}"), HIDDEN),
    (re.compile(r"\b(?:ghp|gho|ghs|github_pat|glpat|xox[abp])[-_][A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"\bAKIA[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
)


def masked(text: str) -> str:
    """The text without what looks like a secret, and without the values of variables whose names say they are one."""
    for name, value in os.environ.items():
        if len(value) >= LEAST and value in text and SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def holds_secret(text: str) -> bool:
    """Whether `masked` would change the text."""
    return masked(text) != text


def token_in_path(path: str) -> bool:
    """Whether a part of an address's path looks like a token: 16 characters or more, letters and digits mixed."""
    parts = re.split(r"[/;]", path)
    return holds_secret(path) or any(
        len(part) >= 16 and re.search(r"\d", part) and re.search(r"[A-Za-z]", part) and not re.search(r"[.]", part)
        for part in parts
    )
