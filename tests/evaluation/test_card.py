"""What was found is put into a student's model card, in the place of what an earlier comparison found."""

import pytest

from distil_ray.errors import InputError
from distil_ray.evaluation.kinds import summarize
from distil_ray.evaluation.scoreboard import ModelResult, Scoreboard, add_to_card, check_card
from distil_ray.evaluation.speed import Speed, Timing


def board(student, score):
    speeds = [Speed("1 thread", Timing(2.0, 1.0, 3.0), Timing(5.0, 4.0, 6.0))]
    results = [
        ModelResult(name, path, 10, 40, {"rte": summarize([value])}, speeds)
        for name, path, value in (("teacher", "t", 60.0), ("half", student, score), ("other", "o", 1.0))
    ]
    return Scoreboard(results, {}, "made here")


def test_a_card_is_added_to_and_the_rest_of_it_stays(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("# Half\n\nA model.\n")
    add_to_card(str(tmp_path), board(str(tmp_path), 54.0))
    first = file.read_text()
    assert first.startswith("# Half\n\nA model.\n\n<!-- evaluation")
    assert "| half | 54.0 | 90.0% | 54.0 |" in first
    assert "| teacher |" in first
    assert "other" not in first

    file.write_text(f"{first}More.\n")
    add_to_card(str(tmp_path), board(str(tmp_path), 57.0))
    second = file.read_text()
    assert "| half | 57.0 | 95.0% | 57.0 |" in second
    assert second == first.replace("54.0", "57.0").replace("90.0%", "95.0%") + "More.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_model_without_a_card(tmp_path):
    with pytest.raises(InputError, match=r"--card: half, .*, is not a local folder with a README.md"):
        check_card("half", str(tmp_path))
