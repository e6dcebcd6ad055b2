"""Results go through pickle, and are copied, without the weights of the model that they came from."""

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from pair import CLEAN, CORRUPT

import labkit as lk
from labkit.models import reference

PAIR = (CLEAN, CORRUPT, " Mary", " John")


@pytest.fixture(scope="module")
def results(lm4):
    edges = lk.edge_attribution(lm4, *PAIR, steps=1, progress=False)
    patterns = lk.attention(lm4, CLEAN)
    patterns.survey()
    return {
        "run": lm4.run(CLEAN, read=["resid_pre.3"]),
        "generation": lm4.generate(CLEAN, max_new_tokens=3),
        "score": lk.score(lm4, CLEAN),
        "tree": lm4.tree(CLEAN, max_new_tokens=3),
        "grid": lk.patch(lm4, *PAIR, layers=[3], progress=False),
        "own metric": lk.patch(lm4, *PAIR, layers=[3], metric=lambda x: x[:, 5], progress=False),
        "path": lk.path_patch(lm4, *PAIR, senders=["z.3.1"], progress=False),
        "sweep": lk.sweep(lm4, [PAIR], layers=[3], progress=False),
        "lens": lk.logit_lens(lm4, CLEAN, positions=[-1], follow=" Mary"),
        "attention": patterns,
        "attribution": lk.direct_logit_attribution(lm4, CLEAN, " Mary"),
        "contribution": patterns.contribution(" Mary"),
        "knock out": lk.knock_out(lm4, CLEAN, heads=[(3, 2)]),
        "vector": lk.steering_vector(lm4, ["I love"], ["I hate"], 3),
        "edges": edges,
        "circuit": edges.circuit(30),
        "faithfulness": edges.circuit(30).faithfulness(lm4, [PAIR]),
        "pairs": lk.task("indirect object").pairs(lm4, n=2),
        "memory": lm4.memory(),
    }


def test_every_result_comes_back_and_holds_no_weights(results):
    for name, result in results.items():
        packed = pickle.dumps(result)
        assert len(packed) < 4e6, name
        assert repr(pickle.loads(packed)) == repr(result), name
        assert repr(copy.deepcopy(result)) == repr(result), name


def test_where_the_model_is_still_there_a_result_goes_on_with_it(results, lm4):
    for go_on in (lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy, copy.copy):
        again = {name: go_on(results[name]) for name in ("run", "tree", "lens", "attention", "knock out")}
        assert all(one.lm is lm4 for one in again.values())
        assert again["run"]["resid_pre.3"].shape == (1, 14, 576)
        assert (again["lens"].rank(" John") > 1).any()
        np.testing.assert_array_equal(again["attention"].pattern(3, 2), results["attention"].pattern(3, 2))
        assert len(again["tree"].branch("A", 1, " the")) == 3


def test_copied_together_with_its_model_a_result_is_of_the_copy(results, lm4):
    lm, run = copy.deepcopy((lm4, results["run"]))
    assert run.lm is lm
    assert lm is not lm4
    assert isinstance(lm.lock, type(threading.RLock()))


def test_elsewhere_it_says_how_to_get_the_model(results, lm4, monkeypatch):
    packed = pickle.dumps(results)
    reference._alive.clear()
    elsewhere = pickle.loads(pickle.dumps(pickle.loads(packed)))
    assert elsewhere["run"].logits.equal(results["run"].logits)
    assert elsewhere["lens"].top(29) == results["lens"].top(29)
    np.testing.assert_array_equal(elsewhere["attention"].thumbnails(), results["attention"].thumbnails())
    for ask in (
        lambda: elsewhere["run"]["resid_pre.3"],
        lambda: elsewhere["lens"].rank(" John"),
        lambda: elsewhere["attention"].pattern(3),
        lambda: elsewhere["tree"].extend("A", 3),
    ):
        with pytest.raises(AttributeError, match=r"result\.lm = lm:\n\nimport labkit as lk\n\nlm = lk\.load"):
            ask()
    elsewhere["run"].lm = lm4
    assert elsewhere["run"]["resid_pre.3"].equal(results["run"]["resid_pre.3"])


def test_another_process_reads_a_result_without_loading_a_model(results, tmp_path):
    (tmp_path / "lens.pickle").write_bytes(pickle.dumps(results["lens"]))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'lens.pickle')!r}, 'rb')).top(29)[0][0])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == results["lens"].top(29)[0][0]
