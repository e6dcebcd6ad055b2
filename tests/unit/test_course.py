"""The exercises: right answers pass, wrong ones are told what is wrong, none is not answered."""

import numpy as np
import pytest

import labkit as lk
from labkit.course import check
from labkit.course.checks import CLEAN, CORRUPT, exercises
from labkit.course.pictures_of_open_models import STARTED_FROM, shaded
from labkit.course.thinking_models import ask, chances, hide, needs, sentences, steps

RIGHT = {
    "00.1": 7,
    "00.2": "embedding",
    "00.3": "allenai/OLMo-2-1124-13B",
    "01.1": "The Eiffel Tower is in the city of",
    "02.1": 27,
    "02.2": 23,
    "02.3": (24, 4),
    "06.1": 18,
    "06.2": 0.5,
    "06.4": (24, 0.75),
    "06.5": 15,
    "07.1": {"bits": 8},
    "07.2": ("mlp_out", 18),
    "07.3": ["v_proj"],
    "08.1": ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1"),
    "08.2": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "08.3": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nName a colour. [/INST]",
    "09.2": (25, 1),
    "09.1": "Every {group} is somebody's child. Not far away lived a",
    "09.3": "religion",
    "09.4": "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}",
    "06.3": (
        ["I will be late", "They will come", "She will be a doctor", "We will eat at home", "It will rain"],
        ["I was late", "They came", "She was a doctor", "We ate at home", "It rained"],
    ),
    "05.1": (24, 4),
    "05.2": "v",
    "01.2": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday, Wednesday",
    "01.3": (1, " when"),
    "01.4": "ꙮꙮꙮꙮ",
    "01.5": "The keys to the old cabinet",
    "03.4": (18, 7),
    "04.3": (
        "When Tom and James went to the park, James gave a ball to",
        "When Tom and James went to the park, Tom gave a ball to",
        " Tom",
        " James",
    ),
    "04.2": [(23, 3), (29, 1), (19, 2), (23, 0), (20, 0), (17, 4)],
    "10.2": 160,
    "11.1": steps(17, 8)[:4],
    "11.2": (2, 4),
    "11.3": "So 17 times 8 is 136.",
}
WRONG = {
    "00.1": (6, "does not see 6 tokens"),
    "00.2": ("norms", "most megabytes"),
    "00.3": ("meta-llama/Llama-2-7b-hf", "is not public"),
    "01.1": ("The capital of Germany is", "likeliest next token is"),
    "02.1": (20, "tokens are likelier than ' Paris'"),
    "02.2": (5, "the attention output of layer 5 gives"),
    "02.3": ((23, 3), "Look for less than -0.5"),
    "06.1": (0, "Look for more than +4"),
    "06.2": (3.0, "That costs too much"),
    "06.3": ((["one"], ["two"]), "At least four pairs"),
    "06.4": ((24, 2.0), "That is too much damage"),
    "06.5": (-10, "That moves too little"),
    "07.1": ({"bits": 4, "quant_type": "fp4"}, "Look for less than half of NF4's KL"),
    "07.2": (("attn_out", 0), "One moves it by more than"),
    "07.3": (["down_proj"], "Stay below 10 MB"),
    "08.1": (("meta-llama/Llama-2-7b-hf", "deepseek-ai/deepseek-llm-7b-base"), "They are not built alike"),
    "08.2": ("meta-llama/Llama-2-7b-hf", "made for texts of 4,096 tokens"),
    "08.3": ("[INST] Be brief. Name a colour. [/INST]", "After '[INST] ' Llama 2 expects '<<SYS>>"),
    "09.1": ("The {group} works as a", "Look for less than 75 %"),
    "09.2": ((0, 0), "Look for more than 20 %"),
    "09.3": ("gender and occupation", "Here one is shown"),
    "09.4": ("{{ messages[0].content }}", "of the assistant is not in what it writes"),
    "01.2": ("Purple seven runs the quietly of because green to and a", "Look for less than 2"),
    "01.3": ((0, "."), "Greedy has log-probability"),
    "01.4": ("word", "tokens. Text that is rare"),
    "01.5": ("The key to the old cabinets", "Look for a lead of more than 1"),
    "03.4": ((18, 6), "Find another"),
    "03.1": ((0, 40), "heads from 0 to 8"),
    "03.2": ((0, 0), "Look for more than two fifths"),
    "03.3": ((0, 0), "goes from"),
    "04.1": (0, "where do they cross"),
    "04.3": (("a", "b", " Mary", " John"), "The logit difference is"),
    "04.2": ([(0, 0), (1, 1)], "Look for more than 0.8"),
    "10.1": (("a", "b"), "A pair is"),
    "10.2": (80, "0.71 times as wide"),
    "05.1": ((23, 3), "Look for the smallest number"),
    "05.2": ("q", "Try the others"),
    "05.3": (1500, "must be a circuit"),
    "11.1": (steps(17, 8), "Look for one without which it is more than 20 times less likely"),
    "11.2": ((2, 5), "Look for a loss of more than 2"),
    "11.3": ("Wait, that is wrong.", "Look for 136 to be more than twice as likely"),
}
ALSO_RIGHT = [
    ("06.4", [20, 0.45]),
    ("08.1", ("Qwen/Qwen2.5-7B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")),
    ("08.1", ["DeepSeek-R1-Distill-Llama-8B", "Llama-3.1-8B"]),
    ("08.2", "openai/gpt-oss-20b"),
    ("08.2", "Qwen2.5-7B-Instruct"),
    ("08.3", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nName a colour. [/INST] "),
]
ALSO_WRONG = [
    ("01.5", "The keys", "use at least four"),
    ("01.5", "Yesterday I saw that the dogs", "Put a word in the singular"),
    ("03.4", (0, 0), "Look for more than half"),
    ("06.4", (18, 0.5), "Look for more than +4.5"),
    ("06.4", (18, -1), "has an effect of -"),
    ("06.4", (99, 1), "layer"),
    ("06.4", 24, "(layer, strength)"),
    ("06.5", 100, "That costs too much"),
    ("08.1", ("Llama-2-7b-hf", "Llama-2-7b-chat-hf"), "both are under Llama 2 Community"),
    ("08.1", ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-7B"), "qwen2 and qwen2, with 3.086 and 7.616 billion"),
    ("08.1", ("DeepSeek-R1", "DeepSeek-R1"), "the same model twice"),
    ("08.1", "deepseek-ai/DeepSeek-V3", "must be two ids"),
    ("08.1", ("DeepSeek-R1", "DeepSeek-V"), "Did you mean"),
    ("08.2", "HuggingFaceTB/SmolLM2-135M-Instruct", "has 0.135 billion parameters"),
    ("08.2", "deepseek-ai/DeepSeek-V3", "The weights alone do not fit"),
    ("08.2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "It is the cache that does not fit: 197 kB"),
    ("08.2", "google/gemma-3-12b-it", "so this cannot be decided"),
    ("08.2", "google/gemma-4-31B-it", "labkit does not know what gemma4_text keeps"),
    ("08.3", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\nName a colour. [/INST]", "expects '\\nName a ' and finds 'Name"),
    ("08.3", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nName a colour.", "expects ' [/INST]' and finds the end"),
    ("08.3", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nName a colour. [/INST] Blue.", "There the model answers"),
    ("08.3", [{"role": "user", "content": "Name a colour."}], "must be a text"),
    ("09.1", "My neighbour works as a", "a sentence with one {group}"),
    ("09.1", "The {group} works as a ", "must not end in a space"),
    ("09.2", (25, 2), "Look for more than 20 %"),
    ("09.2", (25, 9), "heads from 0 to 8"),
    ("09.3", "nationality", "Here one is shown"),
    ("09.3", "religions", "religion"),
    ("09.4", "{% for m in messages %}{{ m.__class__ }}{{ m.content }}{% endfor %}", "The scan says"),
    ("09.4", "{% for m in messages %}{{ m.content }}", "The template fails"),
    ("09.4", "{% for n in range(10**9) %}{{ messages[0].content }}{% endfor %}", "The scan says"),
    ("11.1", "17 is 10 plus 7.", "must be a list of sentences"),
    ("11.1", ["17 times 8 is 136.", "It is."], "at least 3 sentences are needed; got 2"),
    ("11.1", ["17 is odd.", "8 is even.", "10 times 8 is 80."], "Look for more than 0.1"),
    ("11.2", (3, 4), "stand next to each other"),
    ("11.2", (4, 2), "the earlier one first"),
    ("11.3", ["80 plus 56 is 136."], "must be one sentence"),
]


@pytest.mark.parametrize(("name", "answer"), ALSO_RIGHT)
def test_so_is_another_right_answer(lm4, capsys, name, answer):
    check(name, answer, lm4)
    assert capsys.readouterr().out.startswith(f"{name}: Right.")


@pytest.mark.parametrize(("name", "answer", "says"), ALSO_WRONG)
def test_each_kind_of_wrong_answer_gets_its_own_sentence(lm4, capsys, name, answer, says):
    check(name, answer, lm4)
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: Not yet.")
    assert says in out


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_right(lm4, capsys, name):
    check(name, RIGHT[name], lm4)
    assert capsys.readouterr().out.startswith(f"{name}: Right."), name


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(lm4, capsys, name):
    answer, says = WRONG[name]
    check(name, answer, lm4)
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: Not yet.")
    assert says in out


def test_the_heads_that_the_notebook_finds_are_right(lm4, capsys):
    scores = lk.attention(lm4, CLEAN).scores()
    best = scores.sort_values("repeated_induction").iloc[-1]
    check("03.1", (11, 1), lm4)
    check("03.2", (int(best["layer"]), int(best["head"])), lm4)
    check("03.3", (23, 3), lm4)
    assert capsys.readouterr().out.count("Right.") == 3


def test_some_layer_is_where_the_answer_moves(lm4, capsys):
    for layer in range(lm4.n_layers):
        check("04.1", layer, lm4)
    assert 1 <= capsys.readouterr().out.count("Right.") <= 3  # and everywhere else it does not


def test_some_pair_misleads_and_others_do_not(lm4, capsys):
    import labkit as lk

    said = ""
    for pair in lk.task("indirect object").pairs(lm4, n=30):
        check("10.1", pair, lm4)
        said += capsys.readouterr().out
        if "Right." in said:
            break
    assert "10.1: Right. Here the strongest head is layer" in said
    assert "10.1: Not yet. Here, too, the strongest head is layer" in said


def test_a_circuit_is_judged_by_pairs_that_it_was_not_found_with(lm4, capsys):
    edges = lk.edge_attribution(lm4, CLEAN, CORRUPT, " Mary", " John", steps=2, progress=False)
    for n_edges, says in ((1500, "Right."), (60, "reach 0.6"), (5000, "at most 2.5%")):
        check("05.3", edges.circuit(n_edges), lm4)
        assert says in capsys.readouterr().out


def test_no_answer_is_not_a_wrong_one(lm4, capsys):
    for name in exercises():
        check(name, None, lm4)
        assert "not answered yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is no exercise"):
        check("99.9", 1, lm4)


def test_what_was_distilled_is_built_like_what_it_was_made_from():
    for child, parent in STARTED_FROM.items():
        one, other = lk.card(child).model, lk.card(parent).model
        assert one.config["model_type"] == other.config["model_type"]
        assert one.config["num_hidden_layers"] == other.config["num_hidden_layers"]
        assert one.parameters == pytest.approx(other.parameters, rel=0.2)  # the smallest unties its unembedding


def test_the_messages_in_a_written_chat_are_shaded(lm4):
    chat = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
    tokens, values = shaded(lm4, "[INST] Name a colour. [/INST] Blue. </s>", chat)
    said = "".join(token.text for token, value in zip(tokens, values, strict=True) if value == 1)
    assert said.split() == ["Name", "a", "colour.", "Blue."]
    with pytest.raises(ValueError, match="not found"):
        shaded(lm4, "[INST] Name a colour. [/INST]", chat)


def test_the_sentences_of_a_trace_are_found_without_the_marks_around_them(lm4):
    trace = steps(17, 8)
    chat = ask(17, 8, trace)
    ids = lm4.encode(chat)[0].tolist()
    found = sentences(lm4, chat)
    assert [lm4.tokenizer.decode(ids[one.start : one.stop]).strip() for one in found] == trace
    assert sentences(lm4, ask(17, 8, None)) == []


def test_a_hidden_sentence_is_attended_to_by_nothing_after_it(lm4):
    chat = ask(17, 8, steps(17, 8))
    sentence = sentences(lm4, chat)[1]
    shown, run = lm4.run(chat, read=["pattern"]), lm4.run(chat, read=["pattern"], write={"scores": hide(sentence)})
    for one, is_zero in ((shown, False), (run, True)):
        after = one["pattern"][..., sentence.stop :, sentence.start : sentence.stop]
        assert bool((after == 0).all()) == is_zero
    assert (run["pattern"][..., : sentence.stop, :].sum(-1) - 1).abs().max() < 1e-3  # rows before it are as they were


def test_a_later_sentence_needs_the_one_whose_numbers_it_repeats(lm4):
    table = needs(lm4, 17, 8, steps(17, 8))
    assert np.isnan(table[np.tril_indices(5)]).all()
    assert not np.isnan(table[np.triu_indices(5, 1, 6)]).any()
    assert table[1, 3] > table[0, 3] + 2  # 80 plus 56 needs the 80


def test_a_planted_mistake_in_the_last_sentence_is_followed(lm4):
    right, off = chances(lm4, 17, 8, steps(17, 8, fifth=146))
    assert off > 5 * right
    right, off = chances(lm4, 17, 8, steps(17, 8, fourth=146))
    assert right > 2 * off
