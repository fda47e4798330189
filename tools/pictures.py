"""The README's picture and the figure of ``docs/results.md``, drawn from the committed tables.

``python tools/pictures.py`` writes both. Text stays text, and each is on white, for dark pages too.
"""

import textwrap

import jinja2
import lessons
import pandas as pd

from helpers.plots import BLACK, BLUE, RED

RESULTS = lessons.ROOT / "data" / "results"


def ranked_list() -> list[dict]:
    """Return the LLM's ten movies with their place in the retriever's list, and that list."""
    ranked = pd.read_csv(RESULTS / "05_ranked_list_user_12.csv")
    saved = pd.read_csv(RESULTS / "03_candidates.csv")
    mine = saved.query("userId == 12 and list == 'implicit ALS'").sort_values("rank")
    before = mine.loc[mine["movieId"].isin(ranked["movieId"]), "movieId"].tolist()
    ranked["before"] = [before.index(movie) + 1 for movie in ranked["movieId"]]
    ranked["left"] = ranked.set_index("movieId")["title"].loc[before].to_numpy()
    ranked["lines"] = [textwrap.wrap(reason, 66) for reason in ranked["reason"]]
    return ranked.to_dict("records")


def evaluation() -> dict[str, list[dict]]:
    """Return groups of rows: NDCG@10 of retrievers and rankers in notebook 06's second question."""
    table = pd.read_csv(RESULTS / "06_evaluation.csv").query("metric == 'NDCG@10'")
    table = table.sort_values("value", ascending=False)
    groups = {"Retrievers by themselves": ("ranker", "its own order", "retriever")}
    for name in ("transitions", "implicit ALS", "explicit ALS"):
        groups[f"Rankers over {name}"] = ("retriever", name, "ranker")
    groups["As published"] = ("ranker", "as published", "retriever")
    return {
        group: table[table[by] == name].assign(label=table[label]).to_dict("records")
        for group, (by, name, label) in groups.items()
    }


PICTURES = {"ranked_list.svg": ranked_list, "evaluation.svg": evaluation}


def draw(name: str) -> str:
    look = jinja2.Environment(loader=jinja2.FileSystemLoader(lessons.ROOT / "tools" / "pictures"))
    look.globals |= {"BLACK": BLACK, "BLUE": BLUE, "RED": RED, "QUIET": "#6b6b6b"}
    return look.get_template(f"{name}.jinja").render(shown=PICTURES[name]())


if __name__ == "__main__":
    for name in PICTURES:
        (lessons.ROOT / "docs" / name).write_text(draw(name), encoding="utf-8", newline="\n")
