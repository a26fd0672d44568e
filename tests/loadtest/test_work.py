"""Policies as the command line names them, and the requests made of them."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from app.loadtest.work import PolicyChoice, Work, deal, parse_policies
from app.schemas import RolloutBody
from worldcache.errors import InvalidInput


def test_policies_take_parameters() -> None:
    assert parse_policies("none, forecast:full_steps=7:correct=false") == [
        PolicyChoice("none", {"policy": "none"}),
        PolicyChoice(
            "forecast full_steps=7 correct=false",
            {"policy": "forecast", "full_steps": 7, "correct": False},
        ),
    ]


@pytest.mark.parametrize(
    ("text", "words"), [("", "at least one"), ("none,none", "twice"), ("interval:5", "not key=value")]
)
def test_broken_policies_are_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_policies(text)


def test_policies_are_dealt_equally_often() -> None:
    choices = parse_policies("none,worldcache,interval")
    dealt = list(islice(deal(choices, random.Random(0)), 30))
    assert all(dealt.count(choice) == 10 for choice in choices)
    assert len({tuple(c.label for c in dealt[i : i + 3]) for i in range(0, 30, 3)}) > 1


def test_requests_are_valid_and_differ_by_their_seed() -> None:
    description = {
        "id": "toy",
        "action_space": {"type": "discrete", "names": ["A", "B"]},
        "starts": ["x", "y"],
        "num_inference_steps": 20,
    }
    work = Work.of(description, frames=6, steps=None)
    (choice,) = parse_policies("interval:interval=3")
    first, second = (work.body(choice, seed) for seed in (0, 1))
    assert RolloutBody.model_validate(first).num_inference_steps == 20
    assert first["actions"] == ["A"] * 4 + ["B"] * 2
    assert second["actions"] == ["B"] * 4 + ["A"] * 2
    assert (first["observation"], second["observation"]) == ({"start": "x"}, {"start": "y"})
    assert len(work.body(choice, 0, frames=9)["actions"]) == 9


def test_a_model_without_named_actions_is_refused() -> None:
    description = {"id": "cam", "action_space": {"type": "camera_pose"}, "starts": []}
    with pytest.raises(InvalidInput, match="named actions"):
        Work.of(description, 4, None)
