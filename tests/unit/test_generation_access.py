"""Sites read and written while a model writes: the same as in one pass over prompt and text, and nothing lost."""

import threading

import pytest
import torch
from loud import IDS, loud
from pair import CLEAN

import labkit as lk
from labkit.generation import readings

SITES = ["resid_post.5", "pattern.3", "z.5.3", "k.2", "mlp_act.7", "embed"]


def whole_run(lm, prompt, generation, **settings):
    """One pass over prompt and text."""
    return lm.run(torch.cat([lm.encode(prompt), torch.tensor([generation.record.ids])], 1), **settings)


def test_what_is_read_while_writing_is_what_one_pass_over_the_text_has(lm):
    alone = lm.generate(CLEAN, max_new_tokens=8)
    read = lm.generate(CLEAN, max_new_tokens=8, read=SITES, read_at="all")
    assert read.record.ids == alone.record.ids
    assert (read.record.rows["logprob"] == alone.record.rows["logprob"]).all()
    whole = whole_run(lm, CLEAN, read, read=SITES)
    for site in SITES:
        ours, theirs = read[site].float(), whole[site][0].float()
        assert ours.shape == theirs.shape
        axis = readings.token_axis(lk.Site.parse(site))
        off, other = (float((x - theirs).norm() / theirs.norm()) for x in (ours, ours.roll(1, axis)))
        # in NF4 bf16 rounds to 2 ** -9, in other places where one token is computed than where all are
        assert off <= (1e-4 if lm.bits == 32 else 0.03) < other / 3, site


def test_rows_are_those_of_the_written_tokens_of_the_prompt_or_of_both(lm32):
    every, written, prompt = (
        lm32.generate(CLEAN, max_new_tokens=4, read=["resid_post.5", "pattern.3"], read_at=at)
        for at in ("all", "written", "prompt")
    )
    n = len(every.prompt)
    assert [one["resid_post.5"].shape for one in (every, written, prompt)] == [(n + 4, 576), (4, 576), (n, 576)]
    assert torch.equal(every["resid_post.5"], torch.cat([prompt["resid_post.5"], written["resid_post.5"]]))
    assert written["pattern.3"].shape == (9, 4, n + 4)
    assert torch.equal(every["pattern.3.2"][n:], written["pattern.3.2"])
    assert not bool(written["pattern.3"][:, 0, n + 1 :].any())
    assert written.readings.positions == range(n, n + 4)
    assert written["resid_post.-25"].shape == (4, 576)
    with pytest.raises(KeyError, match=r"resid_post\.6 was not read in this generation \(it read resid_post\.5, p"):
        written["resid_post.6"]
    with pytest.raises(KeyError, match="it read nothing"):
        lm32.generate(CLEAN, max_new_tokens=1)["embed"]
    with pytest.raises(ValueError, match="head 9 is out of range; there are heads 0 to 8"):
        written["pattern.3.9"]


def test_a_kind_without_a_layer_stacks_all_layers(lm4):
    found = lm4.generate(CLEAN, max_new_tokens=2, read=["resid_post"])
    assert found["resid_post"].shape == (30, 2, 576)
    assert torch.equal(found["resid_post"][7], found["resid_post.7"])


@pytest.mark.parametrize("ending", ["length", "eos", "stop_string", "stopped"])
def test_however_the_text_ends_it_is_the_same_text_and_its_last_token_has_its_row(lm32, ending):
    stop, settings, prompt = threading.Event(), {}, CLEAN
    if ending == "eos":
        prompt = [{"role": "user", "content": "Say just: yes"}]
    elif ending == "stop_string":
        settings["stop_strings"] = [" and"]
    seen: list = []

    def on_token(token):
        seen.append(token.id)
        if ending == "stopped" and len(seen) == 2:
            stop.set()

    texts = []
    for read in ([], ["resid_post.29"]):
        stop.clear()
        seen.clear()
        most = 60 if ending == "eos" else 6
        texts.append(lm32.generate(prompt, max_new_tokens=most, read=read, stop=stop, on_token=on_token, **settings))
        assert texts[-1].record.ids == seen
    plain, read = texts
    assert plain.finish == read.finish == ending
    assert read.record.ids == plain.record.ids
    assert read["resid_post.29"].shape[0] == len(read.record)
    last = whole_run(lm32, prompt, read, read=["resid_post.29@-1"])["resid_post.29@-1"][0]
    assert torch.allclose(read["resid_post.29"][-1], last, rtol=1e-3, atol=1e-3)


def test_an_interrupt_or_an_error_keeps_tokens_and_activations(lm4):
    whole = lm4.generate(CLEAN, max_new_tokens=4, read=["resid_post.5"])

    def interrupt(token):
        if len(seen := [*range(len(tokens) + 1)]) == 3:
            raise (KeyboardInterrupt if kind == "interrupt" else RuntimeError("mine"))
        tokens.append(seen)

    tokens: list = []
    kind = "interrupt"
    with pytest.warns(UserWarning, match="3 tokens written so far are kept"):
        found = lm4.generate(CLEAN, max_new_tokens=4, read=["resid_post.5"], on_token=interrupt)
    tokens, kind = [], "error"
    with pytest.raises(RuntimeError, match="mine") as caught:
        lm4.generate(CLEAN, max_new_tokens=4, read=["resid_post.5"], on_token=interrupt)
    for one in (found, caught.value.generation):
        assert one.record.ids == whole.record.ids[:3]
        assert torch.equal(one["resid_post.5"], whole["resid_post.5"][:2])  # the third was not passed over


def test_an_error_between_two_layers_leaves_as_many_rows_of_each(lm4):
    def fail(x, step):
        if step == 2:
            raise RuntimeError("mine")
        return x

    with pytest.raises(RuntimeError, match="mine") as caught:
        lm4.generate(CLEAN, read=["resid_post.3", "resid_post.9"], write={"resid_post.5": fail})
    assert [caught.value.generation[f"resid_post.{n}"].shape for n in (3, 9)] == [(1, 576), (1, 576)]


def test_on_disk_are_the_same_activations_and_no_more_than_a_block_waits_in_memory(lm4, tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "BLOCK", 40_000)
    sites = ["resid_post.5", "resid_post.20", "pattern.3"]
    waits = []
    passed = readings.Readings.passed

    def watched(self, rows):
        passed(self, rows)
        waits.append(self._size)

    monkeypatch.setattr(readings.Readings, "passed", watched)
    kept = lm4.generate(CLEAN, max_new_tokens=24, read=sites, store=tmp_path / "store")
    assert len(kept.readings.shards) >= 2
    assert max(waits) < 40_000
    assert not kept.readings.blocks
    memory = lm4.generate(CLEAN, max_new_tokens=24, read=sites)
    again = lm4.generate(CLEAN, max_new_tokens=24, read=sites, store=tmp_path / "store")
    assert again.readings.folder != kept.readings.folder
    for site in (*sites, "pattern.3.4"):
        assert torch.equal(kept[site], memory[site])
        assert torch.equal(again[site], memory[site])


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_scores_and_numbers_of_experts_are_kept_and_saved_as_they_are(tmp_path, where):
    lm = loud("mixtral")
    settings = {"max_new_tokens": 5, "read": ["scores.1", "experts.1", "final_norm"], "read_at": "all"}
    found = lm.generate(IDS, **settings, store=tmp_path / "store" if where == "disk" else None)
    whole = lm.run(torch.cat([IDS, torch.tensor([found.record.ids])], 1), read=settings["read"])
    found.save(tmp_path / "one.npz")
    for one in (found, lk.open_generation(tmp_path / "one.npz")):
        assert torch.equal(one["experts.1"], whole["experts.1"][0])
        assert not one["experts.1"].is_floating_point()
        torch.testing.assert_close(one["scores.1"], whole["scores.1"][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one["final_norm"], whole["final_norm"][0], rtol=1e-4, atol=1e-4)


def test_a_saved_generation_opens_without_a_model_with_all_it_had(lm4, tmp_path):
    settings = {"max_new_tokens": 5, "read": ["resid_post.5", "pattern.3"]}
    memory = lm4.generate("Zoë said: 😀", **settings)
    stored = lm4.generate("Zoë said: 😀", **settings, store=tmp_path / "store")
    for n, one in enumerate((memory, stored, lm4.generate("Zoë", max_new_tokens=2))):
        opened = lk.open_generation(one.save(tmp_path / f"{n}.npz"))
        assert (opened.text, opened.tokens, opened.prompt) == (one.text, one.tokens, one.prompt)
        assert [t.token for t in opened.tokens] == [t.token for t in one.tokens]
        assert [t.alternatives for t in opened.tokens] == [t.alternatives for t in one.tokens]
        assert (opened.finish, opened.code(), repr(opened)) == (one.finish, one.code(), repr(one))
        for site in ("resid_post.5", "pattern.3.1") if n < 2 else ():
            assert torch.equal(opened[site], one[site])
            assert opened[site].dtype == one[site].dtype
    opened = lk.open_generation(tmp_path / "1.npz")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="put the folder back where it was"):
        opened["resid_post.5"]
    assert opened.text == stored.text


def halved(x, step):
    return x * 0.5 if step == 2 else x


def test_code_repeats_what_was_read_and_written(lm4):
    vector = lk.steering_vector(lm4, ["I love this"], ["I hate this"], 10)
    write = {"resid_post.10": 2 * vector, "resid_post.12": vector.random(1), "z.3.1": 0.0, "mlp_out.4": halved}
    write["z.2.0"] = torch.tensor([0.5])
    settings = {"max_new_tokens": 5, "temperature": 1.0, "seed": 3, "read": ["resid_post.11"]}
    first = lm4.generate(CLEAN, **settings, write=write, write_at="written")
    names: dict = {}
    exec(first.code(), names)
    assert names["generation"].record.ids == first.record.ids
    assert torch.equal(names["generation"]["resid_post.11"], first["resid_post.11"])
    assert "write_at='written'" in first.code()
    long = lm4.generate(CLEAN, max_new_tokens=1, write={"embed": torch.zeros(576), "z.1": lambda x: x}).code()
    assert "# value: a tensor (576,), written at embed\n" in long
    assert "'embed': value, 'z.1': function}" in long


def test_writing_what_is_there_changes_nothing(lm):
    plain = lm.generate(CLEAN, max_new_tokens=6, read=["resid_post"], read_at="all")
    same = lm.generate(CLEAN, max_new_tokens=6, write={"resid_post": plain["resid_post"]})
    assert same.record.ids == plain.record.ids
    assert (same.record.rows["logprob"] == plain.record.rows["logprob"]).all()
    function = lm.generate(CLEAN, max_new_tokens=6, write={site: lambda x: x for site in ("resid_post", "k", "z")})
    assert function.record.ids == plain.record.ids


def test_a_function_is_called_for_the_prompt_and_then_for_each_token_with_its_step(lm4):
    called: list = []

    def note(x, step):
        called.append((step, tuple(x.shape)))
        return x

    n = len(lm4.tokens(CLEAN))
    for at, expected in (("all", [0, 1, 2]), ("prompt", [0]), ("written", [1, 2])):
        called.clear()
        lm4.generate(CLEAN, max_new_tokens=3, write={"resid_post.5": note}, write_at=at)
        assert called == [(step, (1, 1 if step else n, 576)) for step in expected]


@pytest.mark.parametrize("at", ["prompt", "written", "all"])
@pytest.mark.parametrize("site", ["resid_post.5", "z.4.2", "k.3", "pattern.6"])
def test_a_write_does_what_it_does_in_one_pass_that_writes_the_same_positions(lm32, site, at):
    n, kind = len(lm32.tokens(CLEAN)), site.partition(".")[0]
    turned = lambda x: x.flip(-1) if kind != "pattern" else x * 0.5  # noqa: E731
    positions = {"prompt": slice(0, n), "written": slice(n, None), "all": slice(None)}[at]

    def in_one_pass(x):
        new = x.clone()
        part = (slice(None), slice(None), positions) if kind == "pattern" else (slice(None), positions)
        new[part] = turned(x[part])
        return new

    ours = lm32.generate(CLEAN, max_new_tokens=5, write={site: turned}, write_at=at)
    logits = whole_run(lm32, CLEAN, ours, write={site: in_one_pass}).logits[0, n - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ours.record.ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(ours.record.rows["logprob"].copy()), expected, atol=1e-3)
    assert logits.argmax(-1).tolist() == ours.record.ids


def test_a_steering_vector_is_added_as_steer_adds_it(lm4):
    vector = lk.steering_vector(lm4, ["I love this"], ["I hate this"], 10)
    ours = lm4.generate("The film was", max_new_tokens=8, write={"resid_post.10": 4 * vector})
    with lm4.steer(vector, 4):
        theirs = lm4.generate("The film was", max_new_tokens=8)
    assert ours.record.ids == theirs.record.ids
    assert ours.record.ids != lm4.generate("The film was", max_new_tokens=8).record.ids
    only = lm4.generate("The film was", max_new_tokens=8, write={"resid_post.10": 4 * vector}, write_at="prompt")
    assert (only.record.rows["logprob"][1:] != ours.record.rows["logprob"][1:]).any()


def test_a_slice_writes_from_a_position_on(lm4):
    n = len(lm4.tokens(CLEAN))
    parts = {"written": slice(n, None), "prompt": slice(n), "all": slice(0, None)}
    for name, part in parts.items():
        one, other = (
            lm4.generate(CLEAN, max_new_tokens=4, write={"resid_post.20": lambda x: -x}, write_at=at)
            for at in (name, part)
        )
        assert one.record.ids == other.record.ids
        assert (one.record.rows["logprob"] == other.record.rows["logprob"]).all()
    apart = lm4.generate(CLEAN, max_new_tokens=4, write={"resid_post.20": lambda x: -x}, write_at=list(range(n + 4)))
    assert (apart.record.rows["logprob"] == one.record.rows["logprob"]).all()
    read = lm4.generate(CLEAN, max_new_tokens=2, read=["embed"], read_at="all")["embed"]
    some = [1, 2, 5, n]
    value = torch.arange(4.0)[:, None].expand(4, 576)
    found = lm4.generate(
        CLEAN, max_new_tokens=2, read=["embed"], read_at="all", write={"embed": value}, write_at=some
    )  # fmt: skip
    assert torch.equal(found["embed"][some].float(), value)
    rest = [position for position in range(n) if position not in some]
    assert torch.equal(found["embed"][rest], read[rest])
    seen: list = []
    note = lambda x, step: seen.append((step, x.shape[1])) or x  # noqa: E731
    found = lm4.generate(CLEAN, max_new_tokens=4, write={"embed": note}, write_at=slice(n - 2, n + 1))
    assert seen == [(0, 2), (1, 1)]
    assert "write_at=slice(12, 15)" in found.code()


def test_steering_in_any_manner_is_written_like_any_function(lm4):
    vector, other = (lk.steering_vector(lm4, [text], ["I hate this"], 10) for text in ("I love this", "It is"))
    edit = vector.edit("clamp", high=0.5, when=(other, 0.0))
    settings = {"max_new_tokens": 6, "read": ["resid_post.10"], "read_at": "all"}
    plain = lm4.generate("The film was", **settings)["resid_post.10"]
    found = lm4.generate("The film was", **settings, write={"resid_post.10": edit, "resid_post.12": 2 * vector})
    n = 3
    holds = other.along(plain[:n]) > 0
    assert int(holds.sum()) > 0
    assert torch.equal(found["resid_post.10"][:n], torch.where(holds[:, None], edit(plain[:n]), plain[:n]))
    assert float(vector.along(found["resid_post.10"])[other.along(found["resid_post.10"]) > 0.1].max()) <= 0.6
    names: dict = {}
    exec(found.code(), names)
    assert names["generation"].record.ids == found.record.ids
    assert torch.equal(names["generation"]["resid_post.10"], found["resid_post.10"])


def test_nothing_is_hooked_where_nothing_is_asked(lm4):
    def hooks(token):
        modules = list(lm4.hf.modules())
        found = [h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        counts.append(sum(getattr(h, "__module__", "").startswith("labkit") for h in found))
        assert lm4.hf.config._attn_implementation == "sdpa"

    counts: list = []
    lm4.generate(CLEAN, max_new_tokens=2, on_token=hooks)
    assert counts == [0, 0]
    counts.clear()
    lm4.generate(CLEAN, max_new_tokens=2, on_token=hooks, read=["resid_post"])
    assert counts == [30, 30]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"read": ["resid_posd.5"]}, "did you mean 'resid_post'"),
        ({"read": ["resid_post.30"]}, "layer 30 is out of range; .* has layers 0 to 29"),
        ({"read": ["router"]}, "has no router: it is not a mixture of experts"),
        ({"read": ["resid_post.5@3"]}, "is said by read_at and write_at; leave out @3"),
        ({"write": {"resid_post.5@-1": 0.0}}, "leave out @-1"),
        ({"read_at": "prompt"}, "read_at='prompt' has no effect without read=; name the sites there"),
        ({"write_at": "prompt"}, "write_at='prompt' has no effect without write="),
        ({"read": ["embed"], "read_at": "both"}, "read_at must be 'written', 'prompt' or 'all'; got 'both'"),
        ({"write": {"resid_post.5": torch.zeros(5)}}, r"has shape \(1, 22, 576\), for 22 .* has \(5,\), which cannot"),
        ({"write": {"resid_post": torch.zeros(3, 576)}}, r"in 30 layers, so its value needs a first axis of 30"),
        ({"write": {"pattern.3": torch.zeros(4, 4)}}, r"has shape \(1, 9, 22, 22\), for 22 positions"),
        ({"write": {"z.3.1": "zero"}}, "must be a tensor, a number, a function or a steering vector; got str"),
        ({"write": {"embed": 0.0}, "write_at": slice(-3, None)}, "must count from the first token of the prompt"),
        (
            {"write": {"embed": 0.0}, "write_at": slice(22, None)},
            "is not among the positions 0 to 21 of prompt and text",
        ),
        ({"write": {"embed": 0.0}, "write_at": [3, 22]}, "is not among the positions 0 to 21"),
        ({"store": "somewhere"}, "nothing is; name sites in read="),
        ({"read": ["embed"], "store": __file__}, "is a file; name a folder"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused_before_anything_runs(lm4, settings, says):
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        lm4.generate(CLEAN, max_new_tokens=8, **settings)
    assert not hasattr(caught.value, "generation")


def test_a_function_that_gives_another_shape_is_refused_before_a_token_is_written(lm4):
    with pytest.raises(ValueError, match=r"resid_post\.3 has shape \(1, 14, 576\) in step 0; .* has \(7,\)") as caught:
        lm4.generate(CLEAN, write={"resid_post.3": lambda x: torch.zeros(7)})
    assert caught.value.generation.record.ids == []


def test_a_state_space_model_reads_its_stream_and_refuses_patterns():
    lm = loud("falcon_mamba")
    assert lm.generate(IDS, max_new_tokens=3, read=["resid_post.1"])["resid_post.1"].shape == (3, lm.d_model)
    with pytest.raises(ValueError, match="has no pattern: it has no attention"):
        lm.generate(IDS, read=["pattern.1"])
