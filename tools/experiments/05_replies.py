"""python tools/experiments/05_replies.py asks what notebooks 04 and 05 ask, for several users.

Needs the tables of notebooks 02 and 03. With a server it records live replies; without one each
request without a reply is noted for ``python tools/course.py batch export``. The improved ranking
holds the profile: export, import, and run again. The notebooks' own cells are run for each user.
"""

from experiment import cells_of, run

from helpers import data

REAL_USERS = (12, 9, 30, 55, 285, 343, 430, 450, 460, 519, 546)
"""User 12 and ten more with 25 to 90 ratings, fixed before any reply was seen."""
SAMPLE_USERS = (12, 3, 41, 77, 98, 140)
VARIANTS = ("no dislikes", "terse", "reasons first", "wish")
FOR_EACH = {"04": "dataset = data.locate()", "05": "def best_of("}  # from here; models are fitted


def ask(simulated: bool) -> None:
    """Run the notebooks for each user; the workshops are asked on the real data only."""
    for number, first in FOR_EACH.items():
        before, own, workshop = cells_of(number, first, "variants = {")
        run(before, space := {})
        for user in SAMPLE_USERS if simulated else REAL_USERS:
            space["USER_ID"] = user
            run(own, space)
            for variant in () if simulated else VARIANTS:
                space["WORKSHOP"] = variant
                run(workshop[:2], space)


if __name__ == "__main__":
    ask(data.locate().simulated)
