"""TransformerLens on the zoo: logits, cache and `resid_pre` patching. Usage: python peer_zoo.py OUT"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))
from importlib.metadata import version

from shrink import ZOO, tiny
from transformer_lens.model_bridge import TransformerBridge

IDS = torch.tensor([[11, 42, 7, 99, 3, 58, 120, 64, 33, 5, 77, 21]])
CORRUPT = IDS.clone()
CORRUPT[0, 5] = 140


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token="!", eos_token='"', pad_token="#", unk_token="$"
    )


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))


def attempt(name: str) -> str:
    """`yes`, or what failed first."""
    hf = tiny(name)
    with torch.no_grad():
        plain, corrupt = hf(IDS, use_cache=False).logits, hf(CORRUPT, use_cache=False).logits
        try:
            with tempfile.TemporaryDirectory() as folder:  # it asks for a name, and takes a folder for one
                hf.save_pretrained(folder)
                tokenizer().save_pretrained(folder)
                bridge = TransformerBridge.boot_transformers(
                    folder,
                    hf_model=hf,
                    tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
                    dtype=torch.float32,
                    device="cpu",
                )
        except Exception as error:
            return f"no model ({type(error).__name__})"
        try:
            if not close(bridge(IDS), plain):
                return "logits differ"
            _, cache = bridge.run_with_cache(IDS)
            clean = cache["blocks.1.hook_resid_pre"]
        except Exception as error:
            return f"no cache ({type(error).__name__})"

        def put(value: torch.Tensor, hook: object) -> torch.Tensor:
            value[:, 5:] = clean[:, 5:]
            return value

        try:
            patched = bridge.run_with_hooks(CORRUPT, fwd_hooks=[("blocks.1.hook_resid_pre", put)])
        except Exception as error:
            return f"no patching ({type(error).__name__})"
        # all positions of layer 1 that differ are clean: so are the logits where the patch reaches
        return "yes" if close(patched, plain) and not close(corrupt, plain) else "patching differs"


def main() -> None:
    transformers.logging.set_verbosity_error()
    types = {}
    for name in ZOO:
        try:
            types[name] = attempt(name)
        except Exception as error:
            types[name] = f"no ({type(error).__name__})"
        print(name, types[name], flush=True)
    good = sum(value == "yes" for value in types.values())
    result = {"peer": f"TransformerLens {version('transformer-lens')}", "good": good, "types": types}
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
