"""What the environment may hold: a variable that cannot be used is named without its value."""

import pytest

from conftest import ROOT
from helpers.settings import Settings, SettingsError

KEY = "sk-Se+cret/0123456789=="


def read(**env: str) -> Settings:
    return Settings.from_env({"HELPERS_HOME": str(ROOT)} | env)


@pytest.mark.parametrize("around", ["{}\n", '"{}"', " '{}'"])
def test_a_key_with_something_around_it_is_the_key(around):
    assert read(OPENAI_API_KEY=around.format(KEY)).llm_api_key == KEY
    assert read(OPENAI_API_KEY=around.format("")).llm_api_key is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("LLM_MODE", KEY), ("LLM_MAX_TOKENS", KEY), ("SPARK_PARTITIONS", "2.5"),
     ("LLM_TIMEOUT_S", "-7"), ("MOVIELENS_DOWNLOAD", "perhaps"), ("OPENAI_API_KEY", "sk—abc"),
     ("OPENAI_API_KEY", "sk-ab\nc"), ("OPENAI_BASE_URL", "localhost:8000"),
     ("OPENAI_BASE_URL", "https://me:cret@host/v1")],  # pragma: allowlist secret
)  # fmt: skip
def test_what_a_variable_cannot_hold_is_named_without_its_value(name, value):
    with pytest.raises(SettingsError, match=rf"^{name}: [^\n]+\.$") as caught:
        read(**{name: value})
    assert not any(part in str(caught.value) for part in ("cret", "2.5", "-7", "perhaps", "sk"))


def test_a_variable_is_read_as_its_type_and_has_a_default():
    settings = read(SPARK_PARTITIONS="3", LLM_PRICE_IN="0.5", MOVIELENS_DOWNLOAD="No", ROOT="/x")
    assert (settings.spark_partitions, settings.llm_price_in) == (3, 0.5)
    assert settings.movielens_download is False and settings.root == ROOT
    assert (read().llm_reply_tokens, read().spark_master) == (4000, "local[*]")
    assert "~" not in str(read(MOVIELENS_DIR="~/movies").movielens_dir)
    for address in ("http://localhost:8000/v1", "https://me.openai.azure.com/openai/v1/"):
        assert read(OPENAI_BASE_URL=address).llm_base_url == address
    hash(settings)


def test_secrets_leave_a_text_and_a_repr():
    settings = read(OPENAI_API_KEY=KEY, SPARK_REMOTE="sc://host:15002/;token=T0ken;use_ssl=true")
    assert settings.scrub(f"bad {KEY}, fine") == "bad [key], fine"
    assert not any(secret in repr(settings) for secret in (KEY, "T0ken"))
    for key in ("0", "none"):  # of a local server
        assert Settings(root=ROOT, llm_api_key=key).scrub(f'"index":{key},') == f'"index":{key},'
