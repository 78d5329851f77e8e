"""What a comparison found about a student -> its model card, the README.md of its folder."""

from pathlib import Path

from distil_ray.errors import InputError
from distil_ray.evaluation.scoreboard import Scoreboard, tables_in_markdown
from distil_ray.reporting.files import writing
from distil_ray.training.storage import replace_file

_BEGIN, _END = "<!-- evaluation by distil_ray: begin -->", "<!-- evaluation by distil_ray: end -->"
CARD = "README.md"


def check_card(name: str, path: str) -> None:
    """Raise InputError unless the model at ``path`` is a local folder with a model card."""
    if not (Path(path) / CARD).is_file():
        raise InputError(
            f"--card: {name}, {path}, is no local folder with a {CARD}; expected one as distil_ray exports it"
        )


def add_to_card(path: str, board: Scoreboard) -> None:
    """Put the tables of a student and its teacher at the end of its card; those of an earlier comparison are replaced.

    (Not into the card's metadata: the scores are those of models fine-tuned from this one.)
    """
    file = Path(path) / CARD
    before, _, rest = file.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    own = board.of([board.teacher.name, *(standing.name for standing in board.standings if standing.path == path)])
    lines = [_BEGIN, "## Evaluation", "", *tables_in_markdown(own), "", own.footer, _END]
    with writing(file):
        replace_file(file, (before.rstrip("\n") + "\n\n" + "\n".join(lines) + (after or "\n")).encode())
