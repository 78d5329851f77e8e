"""What a run says of its text before it starts."""

import re

import pytest
from runs import changed

from distil_ray.config import parse_config
from distil_ray.training.assembly import build_plan, build_tokenizer
from distil_ray.training.examination import describe_data


@pytest.mark.parametrize(
    ("num_files", "eval_fraction", "told"),
    [
        (8, 0.01, r"1 held out, 12\.5% of the text where data\.eval_fraction is 0\.01: units are not divided, so"),
        (8, 0.1, r"1 held out, 12\.5% of the text$"),  # as near as it can be
        (50, 0.01, r"1 held out, 2\.0% of the text$"),
        (8, 0.0, r"0 held out$"),
    ],
)
def test_more_text_held_out_than_asked_for_is_told(settings, words, tmp_path, num_files, eval_fraction, told):
    for number in range(num_files):
        (tmp_path / f"{number}.txt").write_text(" ".join(words[:100]))
    config = parse_config(changed(settings, data__sources=f"{tmp_path}/*.txt", data__eval_fraction=eval_fraction))
    (line,) = describe_data(config, build_plan(config, build_tokenizer(config)))
    assert re.search(told, line)
