"""Sheets for human raters, without a server: pairs of answers or single ones, written for raters and read again.

sheet = export_pair_sheet(["mine.jsonl", "base.jsonl"], "sheets", seed=0, raters=3, overlap=2)
# Each rater gets rater-1.html or rater-1.csv and sends a csv file back; key.json stays here.
ratings = import_pair_ratings(sheet.key, ["anna.csv", "ben.csv", "carla.csv"])
write_preferences("preferences.jsonl", ratings)
"""

from jaxalign.evaluation.human_sheet.export import Sheet, export_pair_sheet, export_rating_sheet
from jaxalign.evaluation.human_sheet.pairs import (
    PairRatings,
    Preferences,
    import_pair_ratings,
    preferences,
    write_preferences,
)
from jaxalign.evaluation.human_sheet.singles import Ratings, import_ratings

__all__ = [
    "PairRatings",
    "Preferences",
    "Ratings",
    "Sheet",
    "export_pair_sheet",
    "export_rating_sheet",
    "import_pair_ratings",
    "import_ratings",
    "preferences",
    "write_preferences",
]
