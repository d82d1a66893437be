"""A model at the Hugging Face hub: its folder in the local cache, and what is said where it cannot be loaded."""

from __future__ import annotations

from pathlib import Path

from kvcheck.core import hub
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option

FILES = ("config.json", "tokenizer*", "vocab*", "merges.txt", "*processor_config.json")
COPIES = "consolidated*"
"""The same weights once more, in another layout, which transformers does not read."""


def snapshot(hub_id: str, trusted: bool, fetched: bool) -> Path:
    """The folder of a hub model in the local cache, with all that its fingerprint is taken from. Raises SpecError.

    fetched: from_pretrained has had all of its files.
    """
    wanted = [*FILES, *["*.py"] * trusted]
    try:
        folder = _folder(hub_id, [*wanted, "*.safetensors"], fetched)
        return folder if any(folder.glob("*.safetensors")) else _folder(hub_id, [*wanted, "*.bin"], fetched)
    except Exception as error:
        raise unreadable(hub_id, False, error) from error


def _folder(hub_id: str, patterns: list[str], fetched: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=COPIES, local_files_only=fetched)
        )
    except Exception:  # an incomplete snapshot counts as missing there: from_pretrained fetches only what it needs
        return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=COPIES))


def unreadable(name: str, local: bool, error: Exception) -> SpecError:
    """The error for what transformers could not load, of a folder (local) or a hub id."""
    text = str(error)
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "does not recognize this architecture" in text or "trust_remote_code" in text:
        runs = option("trust_remote_code", name)
        hint = f"a newer transformers may know it; code that comes with it runs by {runs} only"
    elif "backend tokenizer" in text:
        return wordless(name)
    elif "ignore_mismatched_sizes" in text:
        reason = "its weights have other shapes than its config.json says"
        hint = "is config.json the one that came with the weights?"
    elif "a `model_type` key" in text:
        reason = "it has no config.json that names an architecture"
        hint = (
            "adapters (LoRA) alone are none: give the model that save_pretrained wrote, adapters merged; of GGUF, name "
            "the file"
        )
    elif isinstance(error, ImportError):
        hint = "install what it names"
    elif local:
        hint = "is the folder complete and undamaged?"
    else:
        return _not_fetched(name, reason, hub.trouble(error))
    return SpecError(f"model {name!r} cannot be loaded: {reason}", hint)


def wordless(name: str) -> SpecError:
    """The error for a model without a tokenizer."""
    return SpecError(
        f"model {name!r} has no tokenizer that transformers can read",
        "save the one that it was trained with beside it: AutoTokenizer.from_pretrained(ID).save_pretrained(FOLDER)",
    )


def _not_fetched(name: str, reason: str, trouble: str) -> SpecError:
    page = f"https://huggingface.co/{name}"
    if trouble == hub.GATED:
        return SpecError(
            f"model {name!r} is gated: its owners ask who uses it", f"accept its terms at {page}, then: hf auth login"
        )
    if trouble == hub.OFFLINE:
        return SpecError(
            f"model {name!r}: the Hugging Face hub cannot be reached: {reason}",
            f"check the network and HF_HUB_OFFLINE, or give the folder of a copy: {option('model')} PATH",
        )
    if trouble == hub.GONE:
        return SpecError(
            f"model {name!r} is no folder here, and was not found on the Hugging Face hub: {reason}",
            f"is the name right? look at {page}; a private one needs: hf auth login",
        )
    return SpecError(
        f"model {name!r} cannot be loaded from the Hugging Face hub: {reason}",
        "is the id right, is there a network (HF_HUB_OFFLINE=0), does the model need a token (hf auth login)?",
    )
