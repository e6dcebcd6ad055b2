"""Branches: what would have come had another token been taken."""

import json

import pytest
import torch
from pair import CLEAN

import labkit as lk
from labkit.generation.tree import Tree

STORY = "Once upon a time"


@pytest.fixture(scope="module")
def grown(lm4):
    """A: the greedy text. B leaves it at 0 with ' John', C leaves B at 3."""
    tree = lm4.tree(CLEAN, max_new_tokens=8)
    tree.branch("A", 0, " John")
    tree.branch("B", 3, " but")
    return tree


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3, "top_p": 0.95, "repetition_penalty": 1.1}])
@pytest.mark.parametrize("place", [0, 7, 19])
def test_branching_and_taking_the_original_token_gives_the_original_text(lm32, place, settings):
    tree = lm32.tree(STORY, max_new_tokens=20, **settings)
    again = tree.branch("A", place, tree.root.record.ids[place])
    assert again.text == tree.root.text
    assert again.record.ids == tree.root.record.ids
    assert again.logprob == pytest.approx(tree.root.logprob, abs=1e-3)


def test_a_branch_keeps_what_came_before_and_writes_what_generate_writes_after(lm32):
    tree = lm32.tree(CLEAN, max_new_tokens=10)
    branch = tree.branch("A", 4, " and")
    ids = [*tree.root.record.ids[:4], lm32.tokenizer(" and").input_ids[0]]
    assert branch.record.ids[:5] == ids
    plain = lm32.generate(torch.cat([tree.ids, torch.tensor([ids])], 1), max_new_tokens=5)
    assert branch.record.ids[5:] == plain.record.ids
    assert len(branch) == len(tree.root) == 10


def test_a_taken_token_has_the_probability_the_model_gave_it_there(lm32):
    tree = lm32.tree(CLEAN, max_new_tokens=3)
    logprob = lm32.run(tree.prefix("A", 1)).logits[0, -1].float().log_softmax(-1)
    second = tree.root.tokens[1].alternatives[1][0]
    far = int(logprob.argsort()[200])  # not among those that were kept
    for token in (second, far):
        taken = tree.branch("A", 1, token).taken
        assert taken.probability == pytest.approx(float(logprob[token].exp()), rel=1e-3)
        assert taken.rank == int((logprob > logprob[token]).sum()) + 1
        assert taken.entropy == pytest.approx(tree.root.tokens[1].entropy, rel=1e-3)


def test_a_stopped_branch_goes_on_as_if_it_had_not_been_stopped(lm32):
    whole = lm32.generate(STORY, max_new_tokens=18, temperature=1.0, seed=5)
    tree = lm32.tree(STORY, max_new_tokens=7, temperature=1.0, seed=5)
    tree.extend("A", 11)
    assert tree.root.text == whole.text
    assert tree.root.finish == whole.finish == "length"


def test_branches_are_named_compared_and_pruned(grown):
    tree = Tree.from_dict(grown.lm, grown.to_dict())
    assert [one.name for one in tree] == ["A", "B", "C"]
    assert tree.shared("A", "B") == 0
    assert tree.shared("B", "C") == 3
    table = tree.compare("B", "C")
    assert table.loc["C", "text from there"].startswith(" but")
    assert table.loc["B", "logprob"] == pytest.approx(tree["B"].record.part(3).total)
    tree.rename("C", "and so on")
    with pytest.raises(ValueError, match="no other branch has"):
        tree.rename("B", "A")
    assert [one.name for one in tree.prune("B")] == ["B", "and so on"]
    assert [one.name for one in tree] == ["A"]
    with pytest.raises(ValueError, match="first branch"):
        tree.prune("A")
    assert tree.branch("A", 0, " John").name not in ("A", "B", "C")  # a name is not used twice


def test_a_tree_comes_back_from_json_as_it_was(grown):
    back = Tree.from_dict(grown.lm, json.loads(json.dumps(grown.to_dict())))
    assert back.to_frame().equals(grown.to_frame())
    assert back.code("C") == grown.code("C")
    assert back.branch("C", 5, " the").record.ids[:5] == grown["C"].record.ids[:5]


def test_a_changed_file_is_noticed(grown):
    saved = grown.to_dict()
    saved["branches"][0]["record"]["ids"][0] += 1
    with pytest.raises(ValueError, match="the file has been changed"):
        Tree.from_dict(grown.lm, saved)


def test_the_code_of_a_tree_grows_its_branches_again(grown):
    names: dict = {"lm": grown.lm}
    exec(grown.code("C").split("bits=4)\n")[1], names)
    assert names["tree"]["C"].text == grown["C"].text


def test_what_was_written_before_a_failure_stays_in_the_tree(lm4):
    def fail(token):
        if len(tree.branches[-1].own) == 4:
            raise RuntimeError("the disk is full")

    tree = lm4.tree(CLEAN, max_new_tokens=3)
    with pytest.raises(RuntimeError, match="disk"):
        tree.branch("A", 1, " and", on_token=fail, max_new_tokens=20)
    assert tree["B"].finish == "failed"
    assert len(tree["B"].own) == 4
    tree.extend("B", 2)
    assert tree["B"].finish == "length"
    assert len(tree["B"].own) == 6


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: t.branch("A", 99, " a"), "places 0 to 7"),
        (lambda t: t.branch("Z", 0, " a"), "no branch 'Z' in this tree; there are: A, B, C"),
        (lambda t: t.branch("A", 0, " Maryanne"), "it must be one"),
        (lambda t: t.branch("A", 0, " John", top_p=0.5), "temperature 0 always takes"),
        (lambda t: t.branch("A", 0, " John", name="B"), "choose another name"),
        (lambda t: t.extend("A", 9000), "more than the 8192"),
        (lambda t: t.start(), "already has its first branch"),
    ],
)
def test_what_cannot_be_grown_is_told_and_leaves_the_tree_alone(grown, call, says):
    before = grown.to_dict()
    with pytest.raises(ValueError, match=says):
        call(grown)
    assert [one["name"] for one in grown.to_dict()["branches"]] == [one["name"] for one in before["branches"]]


def test_a_text_that_the_model_ended_is_not_written_on(lm4):
    tree = lm4.tree([{"role": "user", "content": "Say: yes"}], max_new_tokens=40)
    assert tree.root.finish == "eos"
    with pytest.raises(ValueError, match="ended branch A"):
        tree.extend("A")
    ended = tree.branch("A", 0, lm4.tokenizer.eos_token_id)
    assert (ended.finish, len(ended)) == ("eos", 1)


def test_the_public_names_are_there():
    assert lk.Tree is Tree
