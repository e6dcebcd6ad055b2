"""Errors of the hub and transformers while a model is loaded, turned into advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labkit.models.cache import cache_folder
from labkit.models.catalog import nearest
from labkit.models.errors import GatedModel, LoadError, ModelNotFound, NoNetwork, UnsafeWeights


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what the hub and transformers raise into errors that say what to do."""
    from huggingface_hub import errors as hub

    try:
        yield
    except (LoadError, ValueError) as error:
        if isinstance(error, LoadError) or "trust_remote_code" not in str(error):
            raise
        raise LoadError(
            f"{name} comes with its own Python code, which labkit does not run unless asked. lk.scan({name!r}) names "
            "the files; read them, and if you trust them: lk.load(..., trust_remote_code=True)"
        ) from error
    except Exception as error:  # those of httpx, which the hub's client uses, are no OSErrors
        causes = list(_causes(error))
        if not isinstance(error, OSError) and not _offline(causes):
            raise
        kinds = tuple(type(cause) for cause in causes)
        text = " ".join(str(cause) for cause in causes)
        # of a model that it does not have the hub says that it may be "a private or gated repo"
        if hub.GatedRepoError in kinds or ("gated repo" in text and hub.RepositoryNotFoundError not in kinds):
            raise GatedModel(
                f"{name} is gated: its licence has to be accepted first. Accept it on the model's hub page while "
                "logged in, then log in here with `hf auth login` or set HF_TOKEN, and try again"
            ) from error
        if hub.RevisionNotFoundError in kinds:
            raise ModelNotFound(f"{name} has no such revision; its branches and tags are on its hub page") from error
        unknown = hub.RepositoryNotFoundError in kinds or hub.HFValidationError in kinds or "not a valid model" in text
        if unknown and not _offline(causes, text):
            near = nearest(name)
            hint = f" Did you mean {' or '.join(near)}?" if near else " `labkit models` lists some that work."
            raise ModelNotFound(f"there is no model {name!r} on the hub, or it is private.{hint}") from error
        if "pytorch_model.bin" in text or "safetensors" in text:
            raise UnsafeWeights(
                f"{name} has no safetensors weights. labkit does not read pickles, which can run code; look for a "
                "converted copy"
            ) from error
        if _offline(causes, text):
            near = nearest(name)
            hint = f" If the name is mistyped: did you mean {' or '.join(near)}?" if near and name not in near else ""
            raise NoNetwork(
                f"{name} is not on this machine and the hub cannot be reached. Offline, these work: the default model, "
                f"lk.load(), once it is in {cache_folder()}; a local folder; a .gguf file.{hint}"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _offline(causes: list[BaseException], text: str = "") -> bool:
    kinds = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
    known = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "TransportError", "ReadTimeout"}
    return bool(kinds & known) or "couldn't connect" in text or "offline" in text
