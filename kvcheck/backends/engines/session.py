"""A run on a real engine: the backend that kvcheck/runner drives, over engines that were opened with settings.

The reference, "fp16" in records, is the same engine with its KV cache at full and everything else alike. It is asked
the same prompts in the same way, so that what differs is the KV cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.backends.engines import noise
from kvcheck.backends.engines.base import SCORES, WEIGHS, EngineInfo, Opening, Prompt, Reply, Served
from kvcheck.backends.engines.specs import FULL, Chosen, checked
from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.core.record import CaseId, LatencyRecord, MemoryRecord
from kvcheck.core.settings import Settings
from kvcheck.core.spec import Spec, Value
from kvcheck.judging.budget import Budget
from kvcheck.runner.prompts import Prompter
from kvcheck.runner.seam import Answer, Encoder
from kvcheck.tasks import TASKS

if TYPE_CHECKING:
    from kvcheck.backends.base import Timer

OPEN = 3
"""Engines that are open at a time: the reference, and methods in turns."""
DECODED = 33
"""Tokens that are decoded where a context is weighed: the last one is not fed, the others fill a block of 32."""
LEAST = 512
"""Tokens of a context that the task kv has room in, whatever the tokenizer."""
TIMED = 9
"""Tokens of an answer whose seconds are measured, the first one by itself."""


class Said(Exception):
    """What somebody who drives an engine has to say of it: no failure of the engine."""


@dataclass
class Shape:
    """What a full 16-bit KV cache of the model takes, from its config.json."""

    layers: int
    numbers: int
    """Of one token in one layer, keys and values together."""

    @classmethod
    def of(cls, folder: Path) -> Shape:
        """Raises MethodUnsupported where the configuration does not say it."""
        config = json.loads((folder / "config.json").read_text("utf-8"))
        try:
            heads = config.get("num_key_value_heads") or config["num_attention_heads"]
            dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            return cls(int(config["num_hidden_layers"]), 2 * int(heads) * int(dim))
        except KeyError as error:
            raise MethodUnsupported(f"{folder}/config.json has no {error}, from which KV bytes follow") from None

    def bytes(self, tokens: int) -> int:
        """Of a context with so many tokens."""
        return 2 * self.layers * self.numbers * tokens


@dataclass
class EngineSession:
    """One model in one engine, see kvcheck.backends.base.AnsweringBackend.

    gguf: the file that the model came in, if any. opened: engines by the spec of their settings, the one that was used
    last at the end. weighed: by (method, length).
    """

    chosen: Chosen
    settings: Settings
    folder: Path
    model_print: str
    encoder: Encoder
    max_length: int | None
    gguf: Path | None = None
    opened: dict[Spec, Served] = field(default_factory=dict)
    weighed: dict[tuple[str, int], MemoryRecord | MethodUnsupported] = field(default_factory=dict)
    _noise: noise.Noise | None = None

    @classmethod
    def open(cls, chosen: Chosen, settings: Settings) -> EngineSession:
        """Find the model and its tokenizer. Raises SpecError for what an engine cannot be given."""
        from kvcheck.models import Loading, names
        from kvcheck.models.fingerprint import fingerprint
        from kvcheck.models.loading import encoder_of, located

        _expect_plain(chosen.info, settings)
        source = located(settings.model)
        if not source.local:
            raise SpecError(
                f"{option('model')}: {chosen.info.name} opens a folder, and {settings.model} is a name on the hub",
                f"hf download {settings.model} --local-dir model, then {option('model', 'model')}",
            )
        encoder, limit = encoder_of(settings.model, Loading())
        folder, gguf = Path(source.path), names.find(settings.model).gguf
        chosen = chosen.met(folder)
        longest = min((one for one in (limit, chosen.info.longest) if one is not None), default=None)
        return cls(chosen, settings, folder, fingerprint(folder), encoder, longest, gguf)

    @property
    def info(self) -> EngineInfo:
        """What the engine declares."""
        return self.chosen.info

    @property
    def model_name(self) -> str:
        """The model in this engine: its records are its own."""
        return model_id(self.chosen, self.settings, self.model_print)[0]

    @property
    def dtype(self) -> str:
        """What the engine computes in, where its own settings do not say it."""
        return dtype_of(self.info, self.settings)

    @property
    def fingerprint(self) -> str:
        """Identifies what is alike in a method and its reference."""
        return model_id(self.chosen, self.settings, self.model_print)[1]

    @property
    def decoding(self) -> str:
        """How answers are made."""
        return f"greedy {self.dtype} {self.info.name} {self.info.version}"

    @property
    def lacks(self) -> Mapping[str, str]:
        """What the engine cannot do, with the reasons."""
        name = self.info.name
        found = {"fork": f"{name} is sent whole prompts: it reads their beginning again, or from its prefix cache"}
        if SCORES not in self.info.can:
            found["log_probs"] = f"{name} gives no log-probabilities of a prompt"
        if WEIGHS not in self.info.can:
            found["memory"] = f"{name} does not tell what a context takes"
        return found

    # -- cases ---------------------------------------------------------------------------------------------------------

    def answer(self, method_spec: str, prompts: Sequence[tuple[list[int], int]]) -> list[Answer]:
        """Answer prompts greedily, one at a time: what an engine does to a prompt may depend on its company, and sparse
        attention that is left out of mixed batches would be measured as dense."""
        self.expect_reference(method_spec)
        self.expect_quiet()
        asked = [Prompt(ids, limit, self.encoder.eos) for ids, limit in prompts]
        return [_answer(self.replies(method_spec, [one])[0]) for one in asked]

    def replies(self, method: str, prompts: Sequence[Prompt]) -> list[Reply]:
        """What an engine says to prompts, together. Raises MethodFailed for one that is not answered."""
        with self.serving(method, "answering") as served:
            found = served.answer(prompts)
        short = [one for one in found if not one.tokens or len(one.tokens) != len(one.log_probs)]
        if short or len(found) != len(prompts):
            raise MethodFailed(f"{method}: {len(prompts)} prompts, {len(found) - len(short)} whole answers")
        return found

    def log_probs(self, method_spec: str, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Log-probabilities of continuations, each read as a part of the prompt, one at a time likewise."""
        with self.serving(method_spec, "scoring") as served:
            return [served.score([([*prompt, *more], len(prompt))])[0] for prompt, more in pairs]

    @contextmanager
    def serving(self, method: str, doing: str) -> Iterator[Served]:
        """The engine with a method's settings. What it raises becomes MethodFailed; it is not used again then."""
        spec = self.chosen.settings_of(method)
        served = self.opened.pop(spec, None) or self._opened(spec)
        try:
            yield served
        except MethodUnsupported:
            self.opened[spec] = served
            raise
        except Exception as error:
            _closed(served)
            if isinstance(error, KvcheckError):
                raise
            raise MethodFailed(f"{method} failed while {doing}: {_reason(error)}") from error
        except BaseException:  # a time limit, in the middle of a request
            _closed(served)
            raise
        self.opened[spec] = served

    @contextmanager
    def fresh(self, method: str, changed: Mapping[str, Value]) -> Iterator[Served]:
        """An engine of its own with a method's settings, some of them changed. Raises MethodFailed."""
        given = {**dict(self.chosen.settings_of(method).params), **changed}
        served = self._new(Spec(self.info.name, tuple(given.items())))
        try:
            yield served
        except (KvcheckError, Said):
            raise
        except Exception as error:
            how = ", ".join(f"{name}={value}" for name, value in changed.items())
            raise MethodFailed(f"{method} failed with {how or 'nothing changed'}: {_reason(error)}") from error
        finally:
            served.close()

    def _opened(self, spec: Spec) -> Served:
        while len(self.opened) >= OPEN:
            oldest = next((one for one in self.opened if one != self.chosen.full), next(iter(self.opened)))
            _closed(self.opened.pop(oldest))
        return self._new(spec)

    def _new(self, spec: Spec) -> Served:
        try:
            return self.info.open(Opening(self.folder, self.model_print, self.dtype, dict(spec.params), self.gguf))
        except KvcheckError:
            raise
        except Exception as error:
            raise MethodUnsupported(
                f"{self.info.name} {self.info.version} does not open {self.settings.model} with {spec}: "
                f"{_reason(error)}",
                f"settings that go together: {self.info.name} alone is {self.chosen.full}",
            ) from error

    # -- noise ---------------------------------------------------------------------------------------------------------

    @property
    def noise(self) -> noise.Noise:
        """How much the reference differs from itself, measured once."""
        if self._noise is None:
            prompts = [Prompt(ids, noise.TOKENS) for ids in self.texts(noise.LENGTH, noise.PROMPTS)]
            self._noise = noise.measure(partial(self.replies, FULL), prompts)
        return self._noise

    def expect_reference(self, method: str) -> None:
        """Raise MethodUnsupported where the reference is one that no loss could be seen against."""
        named = [dict(checked(text).params) for text in self.settings.methods if text != FULL]
        why = next(filter(None, map(self.info.alone, named)), "")
        if method == FULL and why:
            raise MethodUnsupported(f"it cannot be told what the KV cache loses: {why}", f"{option('against', 'self')}")

    def expect_quiet(self) -> None:
        """Raise MethodUnsupported where the engine differs from itself by more than the budget surely."""
        limit = self.settings.budget.get("drop", Budget().drop)
        if limit is not None and self.noise.least > limit:
            raise MethodUnsupported(
                f"it cannot be told what the KV cache loses: {self.info.name} {self.noise}, the limit is a loss of "
                f"{limit:g} points",
                f"{option('budget')}=drop={self.noise.least + 1:.0f}, or other settings of the engine",
            )

    def texts(self, length: int, n: int) -> list[list[int]]:
        """Contexts of the task kv of so many tokens, as every model is shown them, or their beginnings."""
        task, whole = TASKS.get("kv"), max(length, LEAST)
        case = CaseId("kv", task.info.version, "single", whole, self.settings.seed, n)
        asking = Prompter(self.encoder, case, None)
        samples = [task.generate(case.seed, at, whole, self.encoder) for at in range(n)]
        return [asking.context(sample)[:length] for sample in samples]

    # -- cost ----------------------------------------------------------------------------------------------------------

    def measure_memory(self, method_spec: str, length: int) -> MemoryRecord:
        """Bytes of one context in whole blocks, and how far its answer's log-probabilities are from the reference's.

        Raises MethodUnsupported where the engine's count is wrong or nothing is counted.
        """
        key = (method_spec, length)
        if key not in self.weighed:
            try:
                self.weighed[key] = self._weighed(method_spec, length)
            except MethodUnsupported as error:
                self.weighed[key] = error
        found = self.weighed[key]
        if isinstance(found, MethodUnsupported):
            raise found
        return found

    def _weighed(self, method: str, length: int) -> MemoryRecord:
        settings, shape = dict(self.chosen.settings_of(method).params), Shape.of(self.folder)
        block = self.info.block_of(settings)
        tokens = max(1, length // block) * block
        prompt = Prompt(self.texts(tokens, 1)[0], DECODED)
        with self.serving(method, "being weighed") as served:
            held = served.weigh(prompt)
        behind = tokens + DECODED - 1
        return MemoryRecord(
            kv_bytes=held.prompt_bytes,
            dense_bytes=shape.bytes(tokens),
            meta_bytes=0,
            kept=held.prompt_slots,
            seen=tokens,
            layers=shape.layers,
            touched=shape.layers,
            end_kv_bytes=held.end_bytes,
            end_dense_bytes=shape.bytes(-(-behind // block) * block),
            end_host_bytes=0,
            end_seen=behind,
            apart=self._apart(method, prompt),
            claims=self.info.claims(settings),
        )

    def _apart(self, method: str, prompt: Prompt) -> float:
        """How far a method's log-probabilities are from the reference's; 0 within the engine's noise."""
        if method == FULL:
            return 0.0
        (mine,), (full,) = self.replies(method, [prompt]), self.replies(FULL, [prompt])
        apart = noise.apart(mine, full)
        return apart if apart > self.noise.log_prob else 0.0

    def measure_latency(self, method_spec: str, length: int, timer: Timer | None = None) -> tuple[LatencyRecord, ...]:
        """Time to the first token and per output token, in turns with the reference.

        Each round has a context of its own, that no prefix cache has seen.
        """
        from kvcheck.core import env
        from kvcheck.core.settings import ROUNDS
        from kvcheck.measure import latency

        env.alone()
        texts = iter(self.texts(length, 2 * (ROUNDS + latency.WARMUP)))

        def side(method: str) -> dict[str, float]:
            (found,) = self.replies(method, [Prompt(next(texts), TIMED)])
            return {"ttft": found.first, "tpot": (found.seconds - found.first) / (TIMED - 1)}

        return latency.interleave(length, partial(side, method_spec), partial(side, FULL), timer)


def model_id(chosen: Chosen, settings: Settings, model_print: str) -> tuple[str, str]:
    """(name, fingerprint) that records are kept under: model, engine, version, dtype, settings beside the KV cache."""
    info = chosen.info
    parts = (model_print, info.name, info.version, dtype_of(info, settings), str(chosen.alike))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"{settings.model}@{info.name}", digest


def dtype_of(info: EngineInfo, settings: Settings) -> str:
    """What an engine computes in, where its own settings do not say it."""
    return info.dtypes[0] if settings.dtype == "auto" else settings.dtype


def _answer(reply: Reply) -> Answer:
    """Without the end token."""
    return Answer(reply.tokens[:-1] if reply.ended else reply.tokens, reply.ended)


def _expect_plain(info: EngineInfo, settings: Settings) -> None:
    """Refuse settings of a process of torch. Raises SpecError."""
    from kvcheck.models import synthetic

    usual = Settings()
    for name in ("rope", "attention", "trust_remote_code"):
        if getattr(settings, name) != getattr(usual, name):
            raise SpecError(f"{option(name)} is not for {info.name}, which has its own", f"leave {option(name)} out")
    if settings.device not in ("auto", "cpu"):
        raise SpecError(f"{info.name} is run on the CPU here, not on {settings.device}", option("device", "cpu"))
    if settings.dtype not in ("auto", *info.dtypes):
        raise SpecError(f"{info.name} does not compute in {settings.dtype}", option("dtype", info.dtypes[0]))
    if synthetic.is_random(settings.model):
        raise SpecError(
            f"{settings.model} has random weights, which have no file", f"name a model: {option('model', 'mini')}"
        )


def _reason(error: BaseException) -> str:
    """What an engine says went wrong: the last line that says something; those before name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception from")]
    return (said or lines or [type(error).__name__])[-1]


def _closed(served: Served) -> None:
    """Close an engine, whatever state it is in."""
    try:
        served.close()
    except Exception as error:  # it is given up either way; the first error is the one to tell
        raise MethodFailed(f"it cannot be closed: {_reason(error)}") from error
