"""Chat formats, regions and what is said of a tokenizer, on tokenizers of Llama 2's kind and of DeepSeek R1's."""

import json
import warnings

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedTokenizerFast

import labkit as lk

TEXT = ["You are terse. Who was the Tsar in 1812? Alexander the First was. [INST] <<SYS>> user and the answer"] * 4
SYSTEM, USER, ANSWER, AGAIN = "You are terse.", "Who was the Tsar in 1812?", "Alexander", "And in 1826?"
TALK = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": USER},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": AGAIN},
]


def model(tokenizer, name):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    return lk.LanguageModel(hf, tokenizer, name=name)


@pytest.fixture(scope="module")
def llama2():
    """Llama 2's kind of tokenizer: words begin with ▁, unknown characters fall back to bytes."""
    learned = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    state = json.loads(learned.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    return model(LlamaTokenizer(vocab=state["vocab"], merges=merges, add_bos_token=True), "Llama-2-7b-chat-hf")


def byte_level(bos, eos, *marks):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=bos, eos_token=eos)
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks])
    return tokenizer


@pytest.fixture(scope="module")
def r1():
    tokenizer = byte_level("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    return model(tokenizer, "DeepSeek-R1-Distill-Qwen-1.5B")


def shown(lm, prompt):
    return lm.tokenizer.decode(lm.encode(prompt)[0])


def said(lm, prompt):
    """Each region with the text of its tokens."""
    ids = lm.encode(prompt)[0].tolist()
    return [(r.kind, lm.tokenizer.decode(ids[r.start : r.stop]).strip()) for r in lm.regions(prompt)]


# -- Llama 2 ----------------------------------------------------------------------------------------------------------


def test_llama_2_chat_has_the_system_prompt_in_the_first_turn(llama2):
    expected = f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{USER} [/INST]"
    assert shown(llama2, TALK[:2]).replace("<s> ", "<s>") == expected
    alone = shown(llama2, [{"role": "user", "content": USER}]).replace("<s> ", "<s>")
    assert alone == f"<s>[INST] {USER} [/INST]"


def test_llama_2_has_one_bos_at_the_start_and_one_before_each_later_turn(llama2):
    bos = llama2.tokenizer.bos_token_id
    for prompt in (USER, f"<s>{USER}", TALK[:2]):
        ids = llama2.encode(prompt)[0].tolist()
        assert ids[0] == bos
        assert ids.count(bos) == 1
    assert llama2.encode(TALK)[0].tolist().count(bos) == 2
    assert shown(llama2, TALK).replace("<s> ", "<s>").endswith(f" {ANSWER} </s><s>[INST] {AGAIN} [/INST]")


def test_turns_out_of_order_are_named(llama2):
    with pytest.raises(ValueError, match="take turns"):
        llama2.encode([TALK[1], TALK[1]])
    with pytest.raises(ValueError, match="a message is"):
        llama2.encode([{"role": "user", "text": "Hi"}])


def test_sentencepiece_tokens_are_shown_with_their_spaces_and_bytes(llama2):
    tokens = llama2.tokens("Who was é the\nTsar")
    assert tokens[0].special
    assert tokens[1].text.startswith(" ")  # the space that the format puts before the first word is there and is shown
    assert "".join(t.text for t in tokens[1:] if not t.display.startswith("‹")).split() == ["Who", "was", "the", "Tsar"]
    assert [t.display for t in tokens if t.display.startswith("‹")] == ["‹C3›", "‹A9›"]
    assert any("⏎" in t.display for t in tokens)


def test_messages_are_found_in_the_llama_2_format(llama2):
    assert said(llama2, TALK) == [("system", SYSTEM), ("user", USER), ("assistant", ANSWER), ("user", AGAIN)]


# -- DeepSeek R1 ------------------------------------------------------------------------------------------------------


def test_r1_begins_to_think_and_forgets_what_it_thought_before(r1):
    talk = [TALK[1], {"role": "assistant", "content": "<think>\nNapoleon?\n</think>\n\nAlexander"}, TALK[3]]
    text = shown(r1, talk)
    assert text.startswith(f"<｜begin▁of▁sentence｜><｜User｜>{USER}<｜Assistant｜>")
    assert text.endswith(f"<｜end▁of▁sentence｜><｜User｜>{AGAIN}<｜Assistant｜><think>\n")
    assert "Napoleon" not in text
    assert said(r1, talk) == [("user", USER), ("assistant", ANSWER), ("user", AGAIN), ("thinking", "<think>")]


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        ("<think>so it is</think>Yes", "<think>so it is</think>"),
        ("<｜Assistant｜>so it is</think>Yes", "so it is</think>"),
        ("so it is</think>Yes", "so it is</think>"),
        ("Yes <think>or is it", "<think>or is it"),
    ],
)
def test_thinking_is_found_however_it_is_opened_and_closed(r1, text, thoughts):
    assert said(r1, text) == [("thinking", thoughts)]


def test_thinking_is_found_where_its_marks_are_several_tokens(llama2):
    assert said(llama2, "<think>the answer</think> was") == [("thinking", "<think>the answer</think>")]


def test_text_without_thoughts_has_no_regions(r1):
    assert r1.regions("think") == []
    assert r1.regions(torch.tensor([[1, 2, 3]])) == []


def test_the_default_model_knows_its_messages(lm4):
    talk = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
    assert said(lm4, talk) == [("system", SYSTEM), ("user", USER)]


def test_a_base_model_says_that_it_has_no_chat_format_and_how_to_give_it_one(r1):
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    lm = lk.LanguageModel(r1.hf, plain, name="base")
    with pytest.raises(ValueError, match=r"no chat template.*lm\.tokenizer\.chat_template = "):
        lm.encode([TALK[1]])
    lm.tokenizer.chat_template = "{% for m in messages %}a{% endfor %}"
    assert lm.encode(TALK[1:2]).tolist() == [[0]]


def test_gemma_is_known_by_its_turns():
    tokenizer = byte_level("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    lm = model(tokenizer, "gemma-2-2b-it")
    assert shown(lm, TALK) == (
        f"<bos><start_of_turn>user\n{SYSTEM}\n\n{USER}<end_of_turn>\n<start_of_turn>model\n{ANSWER}<end_of_turn>\n"
        f"<start_of_turn>user\n{AGAIN}<end_of_turn>\n<start_of_turn>model\n"
    )
    assert shown(lm, TALK[:3]).endswith(f"<start_of_turn>model\n{ANSWER}")
    assert said(lm, TALK) == [("system", SYSTEM), ("user", USER), ("assistant", ANSWER), ("user", AGAIN)]


# -- what is worth a warning ------------------------------------------------------------------------------------------


def test_a_chat_without_the_bos_that_text_gets_is_said_once(llama2, monkeypatch):
    monkeypatch.setattr(llama2.tokenizer, "chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.warns(UserWarning, match=r"does not write '<s>' at the beginning") as caught:
        assert llama2.encode(TALK)[0, 0] != llama2.tokenizer.bos_token_id
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llama2.encode(TALK)
        llama2.encode(USER)


@pytest.mark.parametrize(
    ("normalizer", "text", "warns"),
    [
        (normalizers.StripAccents(), "naïve", True),
        (normalizers.Replace("\n", " "), "two\nlines", True),
        (normalizers.Replace(" ", ""), "two words", True),
        (normalizers.Strip(left=False), "so it ends ", True),
        (normalizers.Lowercase(), "Two Words", False),
        (normalizers.NFC(), "nai\u0308ve", False),
        (normalizers.NFKC(), "ﬁne", False),
        (normalizers.Strip(right=False), " begins", False),
        (None, " \n\tAll of it: naïve 😀 ", False),
    ],
)
def test_a_tokenizer_that_does_not_give_back_what_it_gets_is_warned_about_once(normalizer, text, warns):
    tokenizer = byte_level("<bos>", "<eos>")
    parts = [normalizers.NFD(), normalizer] if isinstance(normalizer, normalizers.StripAccents) else [normalizer]
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(parts)
    lm = model(tokenizer, "toy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lm.encode("plain")
        lm.encode(text)
        lm.encode(text)
    assert [("does not round-trip" in str(one.message)) for one in caught] == [True] * warns


def test_an_unknown_character_is_warned_about_with_what_comes_back():
    made = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    lm = model(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"), "words")
    with pytest.warns(UserWarning, match=r"'the dog' comes back as 'the <unk>'.*lm\.tokens"):
        lm.encode("the dog")
