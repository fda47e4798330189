"""What the environment may hold: keys and addresses are repaired, or named without their value."""

from __future__ import annotations

import dataclasses
import html
import json
from urllib.parse import quote

import pytest

from conftest import ROOT
from helpers import llm
from helpers.settings import Settings, SettingsError

KEY = "sk-Se+cret/0123456789=="
USER = "me:S3cret"
HOME = {"HELPERS_HOME": str(ROOT)}


def read(**env: str) -> Settings:
    return Settings.from_env(HOME | env)


@pytest.mark.parametrize(
    "text",
    [f"{KEY}\n", f" {KEY}\r\n", f'"{KEY}"', f"'{KEY}' ", f"“{KEY}”", f"Bearer {KEY}",
     f"bearer '{KEY}'", f"Authorization: Bearer {KEY}", f"\ufeff{KEY}"],
)  # fmt: skip
def test_a_key_with_something_around_it_is_the_key(text):
    assert read(OPENAI_API_KEY=text).llm_api_key == KEY


@pytest.mark.parametrize("text", ["", " ", '""', "k", "none", "sk-no-key-required", "token-abc123"])
def test_short_and_made_up_keys_of_local_servers_pass(text):
    assert read(OPENAI_API_KEY=text).llm_api_key == (text.strip(' "') or None)


@pytest.mark.parametrize(
    "text",
    ["sk—abc", "sk-abc”", "sk-ab\nc", "sk-ab\r\nX-Evil: 1", "sk-ab\u2028c", "sk ab", "sk-ab\u200bc",
     '"sk-abc', "sk-ab'c", "sk-...", "sk-…", "your-key", "sk-your_key_here", "<key>", "$KEY",
     "${KEY}", "sk-xxxx", "sk-a***z", "OPENAI_API_KEY", "https://api.openai.com/v1", "ключ"],
)  # fmt: skip
def test_a_key_that_cannot_be_one_is_named_and_never_shown(text):
    with pytest.raises(SettingsError, match=r"^OPENAI_API_KEY holds ") as caught:
        read(OPENAI_API_KEY=text, OPENAI_BASE_URL="http://localhost/v1", LLM_MODEL="m")
    message = str(caught.value)
    assert "\n" not in message and message.isascii()
    assert text not in message.removeprefix("OPENAI_API_KEY") and "sk" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("LLM_MODEL", "gpt\n4"), ("LLM_MODEL", KEY), ("EMBEDDING_MODEL", "server:a\nb"),
     ("SPARK_REMOTE", "sc://host/;token=S3cret\nx"), ("SPARK_REMOTE", "sc://host/;token=S3—cret"),
     ("SPARK_MASTER", "spark://a\nb"), ("OPENAI_ORG_ID", "org—1"), ("OPENAI_PROJECT_ID", "p\n"),
     ("LLM_MODE", KEY), ("LLM_MAX_TOKENS", KEY), ("LLM_REPLY_TOKENS", KEY),
     ("SPARK_PARTITIONS", "2.5"), ("LLM_TIMEOUT_S", "-7"), ("OPENAI_BASE_URL", KEY),
     ("OPENAI_BASE_URL", f"https://{USER}@"), ("OPENAI_BASE_URL", f"ftp://{USER}@host")],
)  # fmt: skip
def test_what_a_variable_cannot_hold_is_named_without_its_value(name, value):
    with pytest.raises(SettingsError, match=f"^{name} ") as caught:
        read(**{name: value})
    assert not any(part in str(caught.value) for part in ("S3", "cret", "2.5", "-7", "org", "4"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://localhost:11434/v1/", "http://localhost:11434/v1"),
        ("  'http://localhost:11434/v1'\n", "http://localhost:11434/v1"),
        ("http://localhost:11434", "http://localhost:11434/v1"),
        ("HTTP://LocalHost:11434/", "http://localhost:11434/v1"),
        ("http:/127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("localhost:11434", "http://localhost:11434/v1"),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("[::1]:8080", "http://[::1]:8080/v1"),
        ("192.168.0.7:1234/v1", "http://192.168.0.7:1234/v1"),
        ("gpu-box:8000", "http://gpu-box:8000/v1"),
        ("host.docker.internal:11434", "http://host.docker.internal:11434/v1"),
        ("api.openai.com", "https://api.openai.com/v1"),
        ("8.8.8.8:8000/v1", "https://8.8.8.8:8000/v1"),
        ("https//api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/chat/completions/#top", "https://api.openai.com/v1"),
        ("http://localhost:8000/v1/embeddings", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1//models/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/completions", "http://localhost:8000/v1"),
        ("http://localhost:11434/api/generate", "http://localhost:11434/v1"),
        ("http://localhost:8000/chat/completions", "http://localhost:8000/v1"),
        ("https://api.deepseek.com/chat/completions", "https://api.deepseek.com"),
        ("https://ark.example.com/api/v3", "https://ark.example.com/api/v3"),
        ("https://x.example.com/openai", "https://x.example.com/openai"),
        ("https://u:p@host.example:8443/v1", "https://u:p@host.example:8443/v1"),
        ("https://me.openai.azure.com", "https://me.openai.azure.com/openai/v1"),
        ("me.services.ai.azure.com/", "https://me.services.ai.azure.com/openai/v1"),
        ("https://me.services.ai.azure.com/models", "https://me.services.ai.azure.com/models"),
    ],
)
def test_an_address_is_repaired(text, address):
    settings = read(OPENAI_BASE_URL=text)
    assert (settings.llm_base_url, settings.llm_query) == (address, {})


def test_a_query_is_kept_apart():
    address = "https://me.openai.azure.com/openai/deployments/mini"
    settings = read(OPENAI_BASE_URL=f"{address}/chat/completions?api-version=2024-10-21&to=a%2Fb#x")
    assert settings.llm_base_url == address
    assert settings.llm_query == {"api-version": "2024-10-21", "to": "a/b"}
    hash(settings)


@pytest.mark.parametrize(
    "text",
    ["http://", "/v1", ":8000/v1", "http://:8000/v1", "http://local host:1/v1", "http://[::1/v1",
     "http://localhost:99999/v1", "http://localhost:0", "localhost:port", "http://localhost:11434v1",
     "http://<host>:8000/v1", "http://a..b/v1", "ftp://host/v1", "ws://localhost:1",
     "http://user:S3/cret@host/v1", "http://localhost:8000/v1”", "http://lo\ncalhost"],
)  # fmt: skip
def test_an_address_that_cannot_be_one_is_a_sentence(text):
    with pytest.raises(SettingsError, match=r"^OPENAI_BASE_URL [^\n]+\.$") as caught:
        read(OPENAI_BASE_URL=text)
    assert "cret" not in str(caught.value)
    assert ("ftp" in str(caught.value)) == ("ftp" in text)


def test_the_limit_of_a_reply_is_read():
    assert (read().llm_reply_tokens, read(LLM_REPLY_TOKENS="50").llm_reply_tokens) == (4000, 50)


@pytest.mark.parametrize(
    "form",
    [KEY, f"Bearer {KEY}", quote(KEY), quote(KEY, safe=""), quote(quote(KEY, safe=""), safe=""),
     KEY.replace("+", "%2b").replace("/", "%2f"),
     json.dumps(KEY), KEY.replace("/", "\\/"), KEY.replace("+", "\\u002B"), html.escape(KEY),
     repr(f"Bearer {KEY}".encode())],
)  # fmt: skip
def test_the_key_leaves_a_text_in_every_form(form):
    settings = Settings(root=ROOT, llm_api_key=KEY)
    text = settings.scrub(f"Incorrect API key: {form}; see https://a.example/k.")
    assert "[key]" in text and "cret" not in text and "0123" not in text
    assert text.startswith("Incorrect API key: ") and text.endswith("; see https://a.example/k.")


@pytest.mark.parametrize("key", ["sk—S3cret0", "sk-S3\ncret0", 'sk"S3\\cret0', "sk&S3<cret0"])
@pytest.mark.parametrize("form", [str, repr, ascii, json.dumps, quote, html.escape])
def test_a_strange_key_leaves_too(key, form):
    text = Settings(root=ROOT, llm_api_key=key).scrub(f"bad {form(key)}!")
    assert "S3" not in text and "cret" not in text and text.startswith("bad ")


def test_a_short_key_does_not_take_words_apart():
    settings = Settings(root=ROOT, llm_api_key="k")
    assert settings.scrub("ok, key k (Bearer k)") == "ok, key [key] (Bearer [key])"
    assert Settings(root=ROOT).scrub("none") == "none"


def test_passwords_and_tokens_of_addresses_leave_too():
    settings = read(
        OPENAI_BASE_URL=f"https://{USER}%21pass@host.example/v1?subscription-key=T0ken-one&v=2024",
        SPARK_REMOTE="sc://host:15002/;token=T0ken-two;use_ssl=true",
    )
    text = settings.scrub(
        f"https://{USER}%21pass@host.example/v1 http:\\/\\/a:b@proxy:1 S3cret!pass "
        "?subscription-key=T0ken-one&v=2024 token=T0ken-two mail me@host.example"
    )
    assert text == (
        "https://host.example/v1 http:\\/\\/proxy:1 [key] "
        "?subscription-key=[key]&v=2024 token=[key] mail me@host.example"
    )
    assert "S3cret" not in repr(settings) and "T0ken" not in repr(settings)


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        ({"OPENAI_BASE_URL": "http://localhost:1"}, "LLM_MODEL"),
        ({"OPENAI_API_KEY": KEY}, "LLM_MODEL"),
        ({"LLM_MODEL": "m"}, "OPENAI_BASE_URL"),
        ({"LLM_MODEL": "m", "OPENAI_API_KEY": KEY}, ""),
        ({"LLM_MODEL": "m", "LLM_MODE": "recorded"}, ""),
        ({}, ""),
    ],
)
def test_half_a_configuration_says_what_is_missing_and_goes_on(env, missing):
    settings = read(**env)
    assert llm.missing(settings) == missing
    line = llm.describe(settings)
    assert bool(missing) == ("is not set" in line) and missing in line
    if missing:
        assert not llm.is_live(settings) and "recorded" in line
        with pytest.raises(SettingsError, match=missing):
            llm.is_live(dataclasses.replace(settings, llm_mode="live"))
