"""Several texts after one prompt, alone and in a batch: each is what it is alone, and nothing of it is lost."""

import threading

import pytest
import torch
from pair import CLEAN


def test_samples_and_prompts_of_unequal_length_are_each_what_they_are_alone(lm4, tmp_path):
    prompts = ["The film was", CLEAN]
    settings = {"temperature": 1.0, "max_new_tokens": 5, "read": ["resid_post.9"], "write": {"z.3.1": 0.0}}
    many = lm4.generate(prompts, samples=2, seed=5, **settings, store=tmp_path)
    assert [len(one) for one in many] == [2, 2]
    for prompt, texts in zip(prompts, many, strict=True):
        for seed, text in zip((5, 6), texts, strict=True):
            alone = lm4.generate(prompt, seed=seed, **settings)
            assert text.record.ids == alone.record.ids
            assert torch.equal(text["resid_post.9"], alone["resid_post.9"])
            assert text.recipe["seed"] == seed
    with pytest.raises(ValueError, match="samples are the same text"):
        lm4.generate(CLEAN, samples=2)
    for name, given in (("samples", {"samples": 0}), ("batch", {"samples": 2, "batch": 0})):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            lm4.generate(CLEAN, **given)


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.8, "top_k": 20}, {"min_p": 0.05, "repetition_penalty": 1.3}])
def test_samples_of_a_batch_are_those_that_are_written_alone(lm32, cuts):
    settings = {"temperature": 1.3, "max_new_tokens": 6, "read": ["resid_post.9", "pattern.3", "k.2"], **cuts}
    settings |= {
        "read_at": "all",
        "write": {"z.3": lambda x, step: x * (0.5 if step % 2 else 1), "k.4": lambda x: x / 2},
    }
    seen: list = []
    together = lm32.generate(CLEAN, samples=3, batch=2, seed=5, **settings, on_token=lambda t: seen.append(t.id))
    alone = lm32.generate(CLEAN, samples=3, seed=5, **settings)
    assert len({tuple(one.record.ids) for one in alone}) > 1
    assert sorted(seen) == sorted(id for one in alone for id in one.record.ids)
    for one, other in zip(together, alone, strict=True):
        assert (one.record.ids, one.finish) == (other.record.ids, other.finish)
        assert one.record.rows["logprob"] == pytest.approx(other.record.rows["logprob"], abs=1e-3)
        for site in settings["read"]:
            off = (one[site] - other[site]).norm() / other[site].norm()
            assert one[site].shape == other[site].shape
            assert float(off) <= 1e-4


def test_texts_of_a_batch_end_each_in_its_own_way_and_code_repeats_them(lm32):
    settings = {"temperature": 1.0, "max_new_tokens": 12, "stop_strings": [",", "."], "read": ["embed"]}
    together = lm32.generate("The film was", samples=4, batch=4, seed=1, **settings)
    alone = lm32.generate("The film was", samples=4, seed=1, **settings)
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.finish for one in together] == [one.finish for one in alone]
    assert len({len(one.record) for one in together}) > 1
    for one in together:
        assert len(one["embed"]) == len(one.record)
        ids = torch.tensor(one.record.ids)
        assert torch.equal(one["embed"], lm32.embedding[ids].to(one["embed"].dtype))
    names: dict = {}
    exec(together[2].code(), names)
    assert names["generation"].record.ids == together[2].record.ids


def test_an_interrupt_or_an_error_keeps_every_text_of_a_batch(lm4):
    seen: list = []

    def fail(token):
        seen.append(token)
        if len(seen) == 8:  # of three texts: the third tokens of two
            raise error

    settings = {"samples": 5, "batch": 3, "seed": 1, "temperature": 1.0, "read": ["embed"], "on_token": fail}
    error: BaseException = KeyboardInterrupt()
    with pytest.warns(UserWarning, match="8 tokens written so far are kept"):
        found = lm4.generate(CLEAN, **settings)
    seen.clear()
    error = RuntimeError("mine")
    with pytest.raises(RuntimeError, match="mine") as caught:
        lm4.generate(CLEAN, **settings)
    for texts, finish in ((found, "stopped"), (caught.value.results, "failed")):
        assert [one.finish for one in texts] == [finish] * 3
        assert [len(one.record) for one in texts] == [3, 3, 2]
        assert [len(one["embed"]) for one in texts] == [2, 2, 2]


def test_a_stop_ends_the_samples_and_the_prompts_after_it(lm4):
    stop = threading.Event()
    many = lm4.generate(
        [CLEAN] * 3, samples=3, temperature=1.0, max_new_tokens=3, stop=stop, on_token=lambda _: stop.set()
    )
    assert [[one.finish for one in texts] for texts in many] == [["stopped"]]
