"""Answers to every exercise: right ones, in the forms that people give them, and plausible wrong ones, each with a part
of the sentence that explains what is wrong with it.

An answer that depends on the model is a function of `Made`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

import labkit as lk
from labkit.course.checks import CLEAN, CORRUPT
from labkit.course.thinking_models import steps


@dataclass
class Made:
    """What a student has made in a notebook before the exercise."""

    lm: lk.LanguageModel

    @cached_property
    def edges(self) -> Any:
        return lk.edge_attribution(self.lm, CLEAN, CORRUPT, " Mary", " John", steps=2, progress=False)

    @cached_property
    def misleading(self) -> tuple[Any, Any]:
        """One pair in which another head than 23.3 is the strongest, and one in which it is that."""
        found: dict[bool, Any] = {}
        for pair in lk.task("indirect object").pairs(self.lm, n=24):
            grid = lk.patch(self.lm, *pair, site="z", layers=range(17, 25), progress=False).normalized
            found.setdefault(int(grid.argmax()) == (23 - 17) * self.lm.n_heads + 3, pair)
            if len(found) == 2:
                break
        return found[False], found[True]


Answer = Any | Callable[[Made], Any]
KEYS = "The keys to the old cabinet"
WEEK = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday, Wednesday"
FUTURE = ["I will be late", "They will come", "She will be a doctor", "We will eat at home", "It will rain"]
PAST = ["I was late", "They came", "She was a doctor", "We ate at home", "It rained"]
TOM = "When Tom and James went to the park, {} gave a ball to"
LLAMA_2 = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nName a colour. [/INST]"
EVERY = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"

RIGHT: dict[str, list[Answer]] = {
    "00.1": [7, np.int64(7), 7.0, torch.tensor(7)],
    "00.2": ["embedding", "The embedding", "embedding (and unembedding, shared)"],
    "00.3": ["allenai/OLMo-2-1124-13B", "olmo-2-1124-13b"],
    "01.1": ["The Eiffel Tower is in the city of", "The Louvre is a museum in the city of"],
    "01.2": [WEEK],
    "01.3": [(1, " when"), lambda made: (1, int(made.lm.encode("Once when")[0, -1]))],
    "01.4": ["ꙮꙮ", "ꙮꙮꙮꙮ", "𓀀𓁐"],
    "01.5": [KEYS],
    "02.1": [27, np.int64(27)],
    "02.2": [23],
    "02.3": [(24, 4), [24, 4], np.array([24, 4])],
    "03.1": [(11, 1)],
    "03.2": [(18, 6), torch.tensor([18, 6])],
    "03.3": [(16, 0), (1, 5)],
    "03.4": [(18, 7)],
    "04.1": [lambda made: _crossing(made.lm)],
    "04.2": [[(23, 3), (29, 1), (19, 2), (23, 0), (20, 0), (17, 4)]],
    "04.3": [(TOM.format("James"), TOM.format("Tom"), " Tom", " James")],
    "05.1": [(24, 4), np.unravel_index(24 * 9 + 4, (30, 9))],
    "05.2": ["v", "V", "values", "v.23.1"],
    "05.3": [lambda made: made.edges.circuit(1500)],
    "06.1": [18],
    "06.2": [0.5, np.float32(0.5)],
    "06.3": [(FUTURE, PAST), [PAST, FUTURE]],
    "06.4": [(24, 0.75), [24, 0.75]],
    "06.5": [15],
    "07.1": [{"bits": 8}],
    "07.2": [("mlp_out", 18), "mlp_out.18"],
    "07.3": [["v_proj"], "v_proj"],
    "08.1": [
        ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1"),
        ("Qwen/Qwen2.5-7B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ["DeepSeek-R1-Distill-Llama-8B", "Llama-3.1-8B"],
    ],
    "08.2": ["deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "openai/gpt-oss-20b", "Qwen2.5-7B-Instruct"],
    "08.3": ["<s>" + LLAMA_2, LLAMA_2 + " "],
    "09.1": ["Every {group} is somebody's child. Not far away lived a"],
    "09.2": [(25, 1)],
    "09.3": ["religion"],
    "09.4": [EVERY],
    "10.1": [lambda made: made.misleading[0]],
    "10.2": [96, 96.0],
    "11.1": [steps(17, 8)[:4]],
    "11.2": [(2, 4), [2, 4]],
    "11.3": ["So 17 times 8 is 136."],
}
WRONG: dict[str, list[tuple[Answer, str]]] = {
    "00.1": [
        (6, "number of words"),
        (23, "number of characters"),
        (8, "does not see 8 tokens"),
        (lambda made: made.lm.tokens("The cat sat on the mat."), "how long it is"),
        ("7", "The answer is a whole number, such as 6; yours is '7'"),
        (7.5, "no whole number"),
    ],
    "00.2": [
        ("MLP", "MLP takes 42.3 MB, and another part takes more"),
        ("attention", "attention takes 14.1 MB"),
        ("heads", "names no part"),
        ("attention or embedding", "names more than one part"),
        (56.6, "The answer is a part of the model"),
    ],
    "00.3": [
        ("meta-llama/Llama-2-7b-hf", "is not public"),
        ("allenai/OLMo-2-0325-32B", "does not fit a T4"),
        ("allenai/OLMo-2-1124-7B", "a larger one would too"),
        ("OLMo-2", "is not in the catalog"),
        (13.7, "The answer is the id of a model"),
    ],
    "01.1": [
        ("The capital of Germany is", "likeliest next token is ' Berlin'"),
        ("Paris is called", "contains the answer"),
        ("The capital of France is", "the prompt of the first notebook"),
        ("The Eiffel Tower is in the city of ", "End without a space"),
        (["The Eiffel Tower is in the city of"], "The answer is a prompt"),
    ],
    "01.2": [
        ("one two three", "That is 3 words"),
        ("the the the the the the the the the the", "at least seven different"),
        ("Purple seven runs the quietly of because green to and a", "Look for less than 2"),
        (10, "The answer is a text"),
    ],
    "01.3": [
        ((0, ","), "the greedy text itself"),
        ((0, "."), "Look for one above the greedy text"),
        ((12, " when"), "can be branched at places 0 to 9"),
        ((" when", 1), "The place comes first"),
        ((1, " when the"), "it must be one"),
        (" when", "The answer is a place and a token"),
    ],
    "01.4": [
        ("word", "Text that is rare"),
        ("ꙮꙮꙮꙮꙮ", "use at most four"),
        ("😀 ok", "That is 4 tokens"),
        (6, "The answer is a text"),
    ],
    "01.5": [
        ("The keys", "use at least four"),
        ("The key to the old cabinets", "Look for a lead of more than 1"),
        ("Yesterday I saw that the dogs", "Put a word in the singular"),
        (("keys", "cabinet"), "The answer is a prompt"),
    ],
    "02.1": [
        (20, "tokens are likelier than ' Paris'"),
        (29, "an earlier layer where this holds"),
        (30, "layers go from 0 to 29"),
        (" Paris", "The answer is a layer"),
    ],
    "02.2": [
        (5, "the attention output of layer 5 gives"),
        (24, "the attention output of layer 24 gives"),
        (30, "layers go from 0 to 29"),
        ((23, 3), "The answer is a layer"),
    ],
    "02.3": [
        ((23, 3), "That is for the answer"),
        ((0, 0), "Look for less than -0.5"),
        ((4, 24), "The layer comes first: (24, 4)?"),
        (24, "The answer is a layer and a head"),
        ("24.4", "The answer is a layer and a head"),
    ],
    "03.1": [
        ((16, 0), "which you have seen"),
        ((18, 6), "Look for more than half"),
        ((1, 11), "The layer comes first"),
        ((0, 40), "heads from 0 to 8"),
        (11, "The answer is a layer and a head"),
    ],
    "03.2": [
        ((16, 0), "Look for more than two fifths"),
        ((0, 0), "Look for more than two fifths"),
        ((6, 18), "The layer comes first"),
        ((30, 0), "layers go from 0 to 29"),
        ("induction", "The answer is a layer and a head"),
    ],
    "03.3": [
        ((23, 3), "Find another"),
        ((24, 4), "It rises"),
        ((0, 0), "Look for a drop of more than 1"),
        ((0, 16), "The layer comes first"),
    ],
    "03.4": [
        ((18, 6), "Find another"),
        ((16, 0), "Look for more than half"),
        ((7, 18), "The layer comes first"),
        (18, "The answer is a layer and a head"),
    ],
    "04.1": [
        (lambda made: _crossing(made.lm) - 3, "it is still behind"),
        (lambda made: _crossing(made.lm) + 3, "it was ahead before"),
        (30, "layers go from 0 to 29"),
        ((23, 3), "The answer is a layer"),
    ],
    "04.2": [
        ([(0, 0), (1, 1)], "Look for more than 0.8"),
        ([(23, 3), (29, 1)], "Look for more than 0.8"),
        ([(23, head) for head in range(9)], "use at most six"),
        ([(3, 23), (1, 29)], "The layer comes first: (23, 3)?"),
        ((23, 3), "The answer is a list of heads"),
    ],
    "04.3": [
        ((CLEAN, CORRUPT, " Mary", " John"), "Make one of your own"),
        ((TOM.format("Tom"), TOM.format("James"), " Tom", " James"), "exchange clean and corrupt"),
        ((TOM.format("James"), TOM.format("James"), " Tom", " James"), "at least 2 less"),
        ((TOM.format("James"), TOM.format("Tom"), " Tom", " Bartholomew"), "it must be one"),
        ((TOM.format("James"), TOM.format("Tom")), "The answer is a pair"),
    ],
    "05.1": [
        ((23, 3), "towards Mary"),
        ((0, 0), "less than a tenth"),
        ((4, 24), "The layer comes first"),
        (24, "The answer is a layer and a head"),
    ],
    "05.2": [
        ("q", "Try the others"),
        ("k", "Try the others"),
        ("z", "The answer is 'q', 'k' or 'v'"),
        (23, "The answer is 'q', 'k' or 'v'"),
    ],
    "05.3": [
        (lambda made: made.edges.circuit(60), "Use more edges to reach 0.6"),
        (lambda made: made.edges.circuit(5000), "use at most 2.5%"),
        (lambda made: made.edges, "The answer is a circuit"),
        (1500, "The answer is a circuit"),
    ],
    "06.1": [
        (0, "Look for more than +4"),
        (29, "Look for more than +4"),
        (30, "layers go from 0 to 29"),
        (17.5, "no whole number"),
    ],
    "06.2": [
        (3.0, "That costs too much"),
        (0.1, "That moves too little"),
        (-0.5, "That is the other way"),
        ("half", "The answer is a number"),
    ],
    "06.3": [
        ((["one"], ["two"]), "At least four pairs"),
        ((FUTURE, PAST[:4]), "got 5 positive and 4 negative"),
        ((FUTURE, FUTURE), "their difference is no direction"),
        ((["The film was wonderful", *FUTURE[1:]], PAST), "Make your own"),
        ((FUTURE[:2] + PAST[2:4], PAST[:2] + FUTURE[2:4]), "Make every pair differ in the same single thing"),
        (("I will be late", "I was late"), "two lists of texts"),
    ],
    "06.4": [
        ((24, 2.0), "That is too much damage"),
        ((18, 0.5), "Look for more than +4.5"),
        ((0.75, 24), "The layer comes first: (24, 0.75)?"),
        ((99, 1), "layers go from 0 to 29"),
        (24, "a layer and a strength"),
    ],
    "06.5": [
        (-10, "That moves too little"),
        (100, "That costs too much"),
        (0, "That moves too little"),
        ((18, 15), "The answer is a number"),
    ],
    "07.1": [
        ({"bits": 4, "quant_type": "fp4"}, "Look for less than half of NF4's KL"),
        ({"bits": 16}, "That is not fewer bits"),
        ({"bit": 8}, "lk.load has no setting 'bit'"),
        (8, "The answer is settings of lk.load"),
    ],
    "07.2": [
        (("attn_out", 0), "One moves it by more than"),
        (("mlp_out", 17), "One moves it by more than"),
        ((18, "mlp_out"), "The site comes first"),
        (("resid_post", 18), "the site is attn_out or mlp_out"),
        (18, "The answer is a site and a layer"),
    ],
    "07.3": [
        (["down_proj"], "Stay below 10 MB"),
        (["o_proj.0"], "Look for 5 % less or better"),
        (["values"], "values"),
        (5, "The answer is a list of names"),
    ],
    "08.1": [
        (("meta-llama/Llama-2-7b-hf", "deepseek-ai/deepseek-llm-7b-base"), "They are not built alike"),
        (("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-7B"), "qwen2 and qwen2, with 3.086 and 7.616 billion"),
        (("Llama-2-7b-hf", "Llama-2-7b-chat-hf"), "both are under Llama 2 Community"),
        (("DeepSeek-R1", "DeepSeek-R1"), "the same model twice"),
        (("DeepSeek-R1", "DeepSeek-V"), "Did you mean"),
        ("deepseek-ai/DeepSeek-V3", "must be two ids"),
    ],
    "08.2": [
        ("meta-llama/Llama-2-7b-hf", "made for texts of 4,096 tokens"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "has 0.135 billion parameters"),
        ("deepseek-ai/DeepSeek-V3", "The weights alone do not fit"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "It is the cache that does not fit: 197 kB"),
        ("google/gemma-3-12b-it", "so this cannot be decided"),
        ("google/gemma-4-31B-it", "labkit does not know what gemma4_text keeps"),
    ],
    "08.3": [
        ("[INST] Be brief. Name a colour. [/INST]", "After '[INST] ' Llama 2 expects '<<SYS>>"),
        (LLAMA_2.replace("\n\n", "\n"), "expects '\\nName a ' and finds 'Name"),
        (LLAMA_2.removesuffix(" [/INST]"), "expects ' [/INST]' and finds the end"),
        (LLAMA_2 + " Blue.", "There the model answers"),
        ([{"role": "user", "content": "Name a colour."}], "must be a text"),
    ],
    "09.1": [
        ("The {group} works as a", "Look for less than 75 %"),
        ("My neighbour works as a", "a sentence with one {group}"),
        ("The {group} works as a ", "must not end in a space"),
    ],
    "09.2": [
        ((0, 0), "Look for more than 20 %"),
        ((25, 2), "Look for more than 20 %"),
        ((1, 25), "The layer comes first"),
        ((25, 9), "heads from 0 to 8"),
    ],
    "09.3": [
        ("nationality", "Here one is shown"),
        ("age", "Here one is shown"),
        ("religions", "religion"),
    ],
    "09.4": [
        ("{{ messages[0].content }}", "of the assistant is not in what it writes"),
        ("{% for m in messages %}{{ m.__class__ }}{{ m.content }}{% endfor %}", "The scan says"),
        ("{% for m in messages %}{{ m.content }}", "The template fails"),
        ("{% for n in range(10**9) %}{{ messages[0].content }}{% endfor %}", "The scan says"),
    ],
    "10.1": [
        (lambda made: made.misleading[1], "Here, too, the strongest head is"),
        (lambda made: tuple(made.misleading[0][n] for n in (1, 0, 2, 3)), "Are the prompts exchanged?"),
        (("a", "b"), "The answer is a pair"),
        (3, "The answer is a pair"),
    ],
    "10.2": [
        (48, "0.71 times as wide. Look for half"),
        (20, "Fewer pairs say less"),
        (1600, "That is more than is needed"),
        (1, "at least two pairs"),
        (12.5, "no whole number"),
    ],
    "11.1": [
        (steps(17, 8), "Look for one without which it is more than 20 times less likely"),
        (["17 is odd.", "8 is even.", "10 times 8 is 80."], "Look for more than 0.1"),
        (["17 times 8 is 136.", "It is."], "at least 3 sentences are needed; got 2"),
        ("17 is 10 plus 7.", "must be a list of sentences"),
    ],
    "11.2": [
        ((2, 5), "Look for a loss of more than 2"),
        ((3, 4), "stand next to each other"),
        ((4, 2), "the earlier one first"),
        ((0, 3), "two sentences of 1 to 5"),
        (4, "The answer is two sentences"),
    ],
    "11.3": [
        ("Wait, that is wrong.", "Look for 136 to be more than twice as likely"),
        ("So 17 times 8 is 146.", "Look for 136 to be more than twice as likely"),
        (["80 plus 56 is 136."], "must be one sentence"),
    ],
}


def _crossing(lm: lk.LanguageModel) -> int:
    from labkit.course.activation_patching import _at_name_and_end

    return int(np.argmax([at_end > at_name for at_name, at_end in _at_name_and_end(lm)]))
