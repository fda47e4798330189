"""What the page is written from; tests/browser/test_play_page.py opens it."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np
import page
import pandas as pd
import pytest

TITLE = "Toy </script><script>alert(1)</script> & {{STYLE}} (1995)"


@pytest.fixture(scope="module")
def other_sample(settings, tmp_path_factory):
    """The sample with a title that is no friend of HTML."""
    folder = shutil.copytree(settings.sample_dir, tmp_path_factory.mktemp("data") / "sample")
    movies = folder / "movies.csv"
    titles = movies.read_text(encoding="utf-8").replace("Toy Story (1995)", TITLE, 1)
    movies.write_text(titles, encoding="utf-8")
    return dataclasses.replace(settings, movielens_dir=folder)


@pytest.fixture(scope="module")
def written(other_sample, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    page.write(folder, other_sample)
    (file,) = folder.iterdir()
    return file.read_text(encoding="utf-8")


def content_of(html: str) -> dict:
    return json.loads(
        re.search('<script type="application/json" id="data">(.*?)</script>', html)[1]
    )


def test_the_committed_factors_and_lists_are_what_spark_learns(spark, sample, settings):
    with np.load(page.weights(sample, settings)) as saved:
        fresh = page.fit(sample, settings, saved["setting"])
        assert set(fresh) == set(saved) and fresh["factors"].dtype == np.float16
        assert np.abs(fresh.pop("factors") - saved["factors"]).max() < 1e-3
        for name, array in fresh.items():
            assert np.array_equal(array, saved[name]), name


def test_the_page_asks_nobody_and_runs_nothing_but_its_own(written):
    policy = re.search('Content-Security-Policy" content="(.*?)"', written)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", written, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert set(re.findall(r"https?://[\w.]+", written)) == {
        "http://www.w3.org"
    }  # names of SVG, HTML


def test_titles_are_data_and_the_sample_is_called_simulated(written):
    content = content_of(written)
    assert content["simulated"] and written.count("<script") == 2
    assert [title for title in content["titles"] if "alert" in title] == [TITLE]


def test_without_a_verified_release_the_page_shows_the_sample(other_sample, tmp_path):
    (other_sample.movielens_dir / "SIMULATED").unlink()
    page.write(tmp_path, other_sample)
    content = content_of((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert content["simulated"] and TITLE not in content["titles"]
    assert [person["id"] for person in content["people"]] == [3, 12, 41, 77, 98, 140]
    assert all(person["claims"] and person["orders"][0]["reasons"] for person in content["people"])


def test_the_release_shows_what_notebooks_05_and_06_found(real, settings):
    content = page.Course(real, settings).content()
    people, titles = content["people"], content["titles"]
    assert [sum(p["core"] for p in people), len(people)] == [11, 251]
    person = next(p for p in people if p["id"] == 12)
    ranked = pd.read_csv(settings.results_dir / "05_ranked_list_user_12.csv")
    assert [titles[movie] for movie in person["orders"][0]["order"]] == ranked["title"].tolist()
    assert person["orders"][0]["reasons"] == ranked["reason"].tolist()
    assert len(base64.b64decode(content["factors"])) < 2_000_000
