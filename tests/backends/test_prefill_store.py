"""Prefills that are kept from run to run change no digit, and what is not sure to be right is computed anew."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session, prefill_store
from kvcheck.backends.transformers.prefill import _keys_of, _queries_of, _to_keys, _to_queries
from kvcheck.cache.kernels import PLAIN, Softmax
from kvcheck.cache.shape import Prefilled
from kvcheck.core.errors import MethodFailed, SpecError
from kvcheck.core.kept import KeptFiles
from kvcheck.core.record import MODES, CaseId, CaseRecord
from kvcheck.methods.snapkv import SnapKV
from kvcheck.runner.case import Runner
from kvcheck.store.run_file import dumps

SNAPKV = "snapkv:budget=16,window=4"
METHODS = ("fp16", "streaming_llm:window=12,sink=2", SNAPKV, "kivi:group=16,residual=16")
TWO = ("fp16", SNAPKV)
MakeSession = Callable[..., Session]
Case = Callable[..., CaseId]


@pytest.fixture
def make(make_session: MakeSession, tmp_path: Path) -> MakeSession:
    """Sessions as of several runs: nothing but the folder is the same."""
    return lambda **given: make_session(**{"prefill_cache": str(tmp_path / "kept"), "methods": METHODS, **given})


def measured(session: Session, case: Case, methods: tuple[str, ...] = METHODS, **given: Any) -> list[str]:
    """Every digit of the records of all modes."""
    runner = Runner(session, session.settings)
    return [dumps(runner.run_case(case(mode, **given), method)) for mode in MODES for method in methods]


def kept(session: Session) -> prefill_store.PrefillStore:
    """The store of a session."""
    assert session.prefiller.store is not None
    return session.prefiller.store


def test_a_run_with_kept_prefills_has_every_digit_of_one_without(
    make: MakeSession, make_session: MakeSession, case: Case
) -> None:
    wanted = measured(make_session(methods=METHODS), case)
    cold, warm = make(), make()
    assert measured(cold, case) == wanted
    assert measured(warm, case) == wanted
    assert (cold.prefiller.forwards, kept(cold).found) == (6, 0)
    assert (warm.prefiller.forwards, kept(warm).missed) == (0, 0)


def test_without_the_option_nothing_is_kept(make_session: MakeSession) -> None:
    assert make_session().prefiller.store is None


def test_queries_that_an_earlier_run_did_not_need_are_computed_once(
    make: MakeSession, make_session: MakeSession, case: Case
) -> None:
    measured(make(methods=("fp16",)), case, ("fp16",))
    first, second = make(methods=(SNAPKV,)), make(methods=(SNAPKV,))
    wanted = measured(make_session(methods=(SNAPKV,)), case, (SNAPKV,))
    assert measured(first, case, (SNAPKV,)) == wanted
    assert measured(second, case, (SNAPKV,)) == wanted
    assert (first.prefiller.forwards, second.prefiller.forwards) == (6, 0)


def damaged(path: Path) -> None:
    """One bit of the numbers."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def emptied(path: Path) -> None:
    """As after a power cut."""
    path.write_bytes(b"")


def forged(path: Path) -> None:
    """Another file under the digest of its own content: whole, but nothing that was kept under this name."""
    files = KeptFiles(path.parent, 10**9)
    files.write(path.name.partition(".")[0], b"\x08\0\0\0\0\0\0\0{}      ")
    files.keep()  # in the place of the other one


@pytest.mark.parametrize("damage", [damaged, emptied, forged])
def test_a_damaged_file_is_computed_anew_and_then_kept_again(
    damage: Callable[[Path], None], make: MakeSession, case: Case, tmp_path: Path
) -> None:
    wanted = measured(make(), case, TWO)
    found = sorted((tmp_path / "kept").glob("*.safetensors"))
    for path in found:
        damage(path)
    again, warm = make(), make()
    assert measured(again, case, TWO) == wanted
    assert kept(again).found == 0
    assert kept(again).files.damaged > len(MODES)
    assert measured(warm, case, TWO) == wanted
    assert (kept(warm).missed, kept(warm).files.damaged) == (0, 0)
    assert len(list((tmp_path / "kept").iterdir())) == len(found)


def test_other_contexts_questions_and_environments_find_nothing(
    make: MakeSession, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(make(), case, (SNAPKV,), n=2)
    for other in ({"seed": 1, "n": 2}, {"length": 48, "n": 2}, {"n": 1}):
        measured(session := make(), case, (SNAPKV,), **other)
        assert kept(session).found == 0, other
    measured(session := make(attention="math"), case, (SNAPKV,), n=2)
    assert kept(session).found == 0, "another kernel"
    environments = [
        (prefill_store.metadata, "version", lambda name: "9.9"),
        (prefill_store, "CODE", ("cache",)),
        (torch.__config__, "parallel_info", lambda: "16 threads"),
        (torch, "get_float32_matmul_precision", lambda: "medium"),
    ]
    for owner, name, changed in environments:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, changed)
            session = make()
        measured(session, case, (SNAPKV,), n=2)
        assert kept(session).found == 0, name
    measured(session := make(), case, (SNAPKV,), n=2)
    assert kept(session).missed == 0, "it is still there"


def test_a_model_with_other_weights_finds_nothing(make: MakeSession, case: Case) -> None:
    first = make()
    weight = first.loaded.model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 3] += 1e-3
        second = make()
        weight[3, 3] -= 1e-3
    assert kept(first).of != kept(second).of, "although the fingerprint, of the files, is the same"


def test_what_a_method_had_a_hand_in_is_not_kept(
    make: MakeSession, case: Case, methods: dict[str, Any], tmp_path: Path
) -> None:
    session = make()

    class Vandal(SnapKV):
        def layer(self, shape: Any, index: int) -> Any:
            for prefill in session.prefiller.used:
                prefill.layers[0].keys.mul_(0.5)
            return super().layer(shape, index)

    methods["vandal"] = Vandal
    with pytest.raises(MethodFailed, match="shared prefills"):
        measured(session, case, ("vandal",))
    assert list((tmp_path / "kept").iterdir()) == []
    measured(session, case, (SNAPKV,))
    assert list((tmp_path / "kept").iterdir())


def test_a_case_that_failed_by_itself_leaves_its_prefills(
    make: MakeSession, case: Case, methods: dict[str, Any], tmp_path: Path
) -> None:
    class Failing(SnapKV):
        def layer(self, shape: Any, index: int) -> Any:
            raise ValueError("not here")

    methods["failing"] = Failing
    with pytest.raises(MethodFailed, match="not here"):
        measured(make(), case, ("failing",))
    warm = make()
    measured(warm, case, (SNAPKV,))
    assert kept(warm).found > 0


def test_a_disk_that_takes_no_more_is_told_once_and_costs_no_case(
    make: MakeSession, make_session: MakeSession, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    wanted = measured(make_session(methods=METHODS), case, TWO)
    session = make()
    monkeypatch.setattr(KeptFiles, "write", full)
    with pytest.warns(RuntimeWarning, match="keeps no more prefills in .*kept: No space left on device") as told:
        assert measured(session, case, TWO) == wanted
    assert len(told) == 1


def test_a_folder_that_cannot_be_made_is_refused(make: MakeSession, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(SpecError, match=r"prefills cannot be kept in .*kept"):
        make()


def test_a_small_store_holds_what_fits_and_changes_no_digit(
    make: MakeSession, make_session: MakeSession, case: Case
) -> None:
    wanted = measured(make_session(methods=METHODS), case, TWO)
    for _ in range(2):
        session = make(prefill_cache_size=1e-4)
        assert measured(session, case, TWO) == wanted
        assert 0 < kept(session).files.size()[1] <= 100_000


def laid_out(heads: int) -> torch.Tensor:
    """(2, heads, 5, 4), as a projection leaves it: heads and tokens are swapped."""
    return torch.randn(2, 5, heads, 4).to(torch.float16).transpose(1, 2)


@pytest.mark.parametrize("softmax", [PLAIN, Softmax(cap=50.0), Softmax(sinks=torch.randn(4))])
def test_a_prefill_comes_back_bit_for_bit_as_it_lay_in_memory(softmax: Softmax, tmp_path: Path) -> None:
    layers = [Prefilled(laid_out(2), laid_out(2), laid_out(4), 0.1 + at, softmax) for at in range(3)]
    files = KeptFiles(tmp_path, 10**9)
    store = prefill_store.PrefillStore(files, "a model")
    store.put("a" * 32, *_keys_of(layers))
    store.put("b" * 32, *_queries_of(layers))
    store.settle(good=True)
    keys, queries = store.get("a" * 32, _to_keys), store.get("b" * 32, _to_queries)
    assert keys is not None
    assert queries is not None
    for before, after, (asked, its) in zip(layers, keys, queries, strict=True):
        pairs = ((before.keys, after.keys), (before.values, after.values), (before.queries, asked))
        for old, new in pairs:
            assert old is not None
            assert torch.equal(old, new)
            assert (old.stride(), old.dtype) == (new.stride(), new.dtype)
        assert (before.scaling, softmax.cap) == (after.scaling, its.cap)
        assert its.sinks is softmax.sinks or torch.equal(its.sinks, softmax.sinks)


def test_a_record_names_no_store(make: MakeSession, case: Case, tmp_path: Path) -> None:
    record: CaseRecord = Runner(session := make(), session.settings).run_case(case(), "fp16")
    assert "kept" not in dumps(record).replace('"kept":', "")
