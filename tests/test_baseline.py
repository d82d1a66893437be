"""Stored baselines: what is written, what comes back, what is refused."""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import MODEL, fp16, memory, record

from kvcheck.core.errors import BaselineError, SpecError
from kvcheck.core.files import safe_name, write_atomically
from kvcheck.core.record import CaseId, CaseRecord, LatencyRecord, SampleRecord, TurnRecord, Weight, prompt_digest
from kvcheck.store import file_store
from kvcheck.store.baselines import FileStore, Layered, ModelId, open_place, open_store

MINI = ModelId("mini", MODEL)
ABOUT = {"kvcheck": "0.1.0", "packages": {"torch": "2.11"}}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "baselines")


def keep(store, *records: CaseRecord, verb: str = "all"):
    for one in records:
        changes = store.record(MINI, one.method, [one], verb, ABOUT)
    return changes


def path(store: FileStore, method: str = "snapkv") -> Path:
    return Path(store.path(MINI, method))


def rich(method: str, change: str = "") -> CaseRecord:
    """Everything that a record can hold, already rounded as documented."""
    turns = (
        TurnRecord(0.8333, "a line\nand «another»", "x", 0.25, 1.234, 0.5, 0.001, rank=2),
        TurnRecord(1.0, f"same start{change}", "", None, None, None, None),
    )
    whole = (TurnRecord(0.0, "", "", None), TurnRecord(1.0, '{"0": 1}', "", 0.3333, 0.1))
    samples = (
        SampleRecord(0, "0" * 12, turns, fed="a" * 12, graded="b" * 12),
        SampleRecord(1, "f" * 12, whole, fed="c" * 12, graded="b" * 12),
    )
    return CaseRecord(
        case=CaseId("qa_zh", 2, "multi_turn", 512, 1, 2),
        method=method,
        model=MODEL,
        capability="semantic_retrieval",
        query_aware=False,
        binary=False,
        chance=0.125,
        samples=samples,
        memory=replace(memory(), peak_bytes=123, kept=50.3, host_bytes=77),
        latency=(LatencyRecord("tpot", 512, 0.004, 0.002, 2.0, 1.9, 2.1, 7),),
        stopped="enough",
        not_measured=(("kl", "no: reason"),),
        inputs=(("beginning", "token 0"), ("tokenizers", "0.22.1")),
    )


def ending(record: CaseRecord, ended: list[list[bool | None]]) -> CaseRecord:
    """The record, with whether each answer of each context ended."""
    samples = [
        replace(one, turns=tuple(replace(turn, ended=now) for turn, now in zip(one.turns, how, strict=True)))
        for one, how in zip(record.samples, ended, strict=True)
    ]
    return replace(record, samples=tuple(samples))


class TestRoundTrip:
    def test_fp16_comes_back_equal(self, store: FileStore) -> None:
        keep(store, rich("fp16"))
        assert store.get(MINI, "fp16", rich("fp16").case) == rich("fp16")

    def test_a_method_written_against_fp16_comes_back_equal(self, store: FileStore) -> None:
        keep(store, rich("fp16"), rich("snapkv", " and other end"))
        assert store.get(MINI, "snapkv", rich("fp16").case) == rich("snapkv", " and other end")

    def test_other_packages_that_gave_the_same_token_ids_are_no_change(self, store: FileStore) -> None:
        keep(store, rich("fp16"))
        newer = replace(rich("fp16"), inputs=(("beginning", "token 0"), ("tokenizers", "0.23.1")))
        assert keep(store, newer, verb="changed").written == 0
        samples = tuple(replace(sample, fed="d" * 12) for sample in newer.samples)
        changes = keep(store, replace(newer, samples=samples), verb="changed")
        assert changes.written == 1
        assert any(line.endswith("fed changed") for line in changes.lines)

    def test_a_method_without_fp16_comes_back_equal(self, store: FileStore) -> None:
        keep(store, rich("snapkv"))
        assert store.get(MINI, "snapkv", rich("fp16").case) == rich("snapkv")

    def test_memory_that_was_not_used_or_measured_is_not_written(self, store: FileStore) -> None:
        keep(store, replace(rich("fp16"), memory=memory()))
        assert "host_bytes" not in path(store, "fp16").read_text()
        assert "peak_bytes" not in path(store, "fp16").read_text()
        assert store.get(MINI, "fp16", rich("fp16").case).memory == memory()

    @pytest.mark.parametrize("declared", [True, False])
    @pytest.mark.parametrize("method", ["fp16", "snapkv"])
    def test_what_each_context_held_is_kept_with_and_without_a_formula(
        self, store: FileStore, method: str, declared: bool
    ) -> None:
        keep(store, rich("fp16"))
        weights = (Weight(480, 49.5), Weight(1040, 102.2, 0, 0, 0, 0, 2, 1100, end_seen=230, ends=2))
        mine = rich(method, " and more")
        samples = tuple(replace(one, weight=weight) for one, weight in zip(mine.samples, weights, strict=True))
        ends = {"end_kv_bytes": 550, "end_dense_bytes": 1150, "end_host_bytes": 0, "end_seen": 115}
        held = replace(mine.memory, kv_bytes=507, kept=50.57, claims="frees", **ends)
        mine = replace(mine, samples=samples, memory=replace(held, declared=declared))
        keep(store, mine)
        assert store.get(MINI, method, mine.case) == mine
        assert '"held":[480,49.5]' in path(store, method).read_text()

    @pytest.mark.parametrize("method", ["fp16", "snapkv"])
    def test_whether_each_answer_ended_is_kept(self, store: FileStore, method: str) -> None:
        keep(store, rich("fp16"))
        mine = ending(rich(method), [[True, False], [True, True]])
        keep(store, mine)
        assert store.get(MINI, method, mine.case) == mine
        assert path(store, method).read_text().count('"cut":[1]') == 1

    def test_where_it_is_not_known_of_one_answer_it_is_kept_of_none(self, store: FileStore) -> None:
        keep(store, ending(rich("fp16"), [[True, None], [True, False]]))
        assert store.get(MINI, "fp16", rich("fp16").case) == rich("fp16")

    def test_an_answer_with_half_a_character_comes_back_equal(self, store: FileStore) -> None:
        keep(store, rich("fp16", " \ud800 \u2028"), rich("snapkv", " \udfff other"))
        for method, end in (("fp16", " \ud800 \u2028"), ("snapkv", " \udfff other")):
            assert store.get(MINI, method, rich("fp16").case) == rich(method, end)
        assert store.verify() == []

    def test_answers_like_fp16s_are_not_written_again(self, store: FileStore) -> None:
        keep(store, rich("fp16"), rich("snapkv"))
        assert "same start" not in path(store).read_text()

    def test_numbers_are_rounded_as_documented(self, store: FileStore) -> None:
        keep(store, record([1 / 3], nll=1.23456))
        turn = store.get(MINI, "snapkv", record([0.5]).case).samples[0].turns[0]
        assert (turn.score, turn.nll) == (0.3333, 1.235)

    def test_another_n_of_the_case_is_found(self, store: FileStore) -> None:
        keep(store, record([1.0] * 4))
        assert store.get(MINI, "snapkv", record([1.0] * 2).case) is not None

    def test_what_is_not_there_is_none(self, store: FileStore) -> None:
        assert store.get(MINI, "snapkv", record([1.0]).case) is None

    def test_the_same_records_give_the_same_bytes(self, store: FileStore, tmp_path: Path) -> None:
        other = FileStore(tmp_path / "other")
        for one, tasks in ((store, "ab"), (other, "ba")):
            keep(one, *(record([1.0], task=task) for task in tasks))
        assert path(store).read_bytes() == path(other).read_bytes()

    def test_six_thousand_turns_take_less_than_180_kb(self, store: FileStore) -> None:
        rng = random.Random(0)
        words = [str(rng.randrange(10**7)) for _ in range(6000)]

        def case(method: str, task: int) -> CaseRecord:
            samples = []
            for i in range(60):
                wrong = method != "fp16" and rng.random() < 0.4
                answer = words[60 * task + i] + " and more"
                answer = str(rng.randrange(10**7)) if wrong else answer
                drift = (rng.expovariate(1), rng.random(), rng.expovariate(1))
                turn = TurnRecord(float(not wrong), answer, "sub", 0.5, *drift)
                samples.append(SampleRecord(i, prompt_digest(f"{task} {i}"), (turn,)))
            return replace(
                record([1.0], method), case=CaseId(f"t{task}", 1, "single", 512, 0, 60), samples=tuple(samples)
            )

        for method in ("fp16", "snapkv"):
            store.record(MINI, method, [case(method, task) for task in range(100)], "all", ABOUT)
        assert path(store).stat().st_size < 180_000


def test_the_source_of_a_record_is_the_file_that_holds_it_through_every_layer(store: FileStore, tmp_path: Path) -> None:
    keep(store, fp16(4))
    layered = Layered(Layered(FileStore(tmp_path / "mine"), store), FileStore(tmp_path / "more"))
    assert layered.source(MINI, "fp16", fp16(4).case) == store.path(MINI, "fp16")


class TestRecording:
    def test_fewer_contexts_do_not_replace_more_unless_all_is_asked_for(self, store: FileStore) -> None:
        keep(store, record([1.0, 1.0, 1.0]))
        before = path(store).read_bytes()
        changes = keep(store, record([0.0]), verb="changed")
        assert changes.written == 0
        assert "--kv-record=all" in changes.lines[0]
        assert path(store).read_bytes() == before
        assert keep(store, record([0.0]), verb="all").written == 1

    def test_new_leaves_what_is_stored(self, store: FileStore) -> None:
        keep(store, record([1.0]))
        assert keep(store, record([0.0]), verb="new").written == 0

    def test_changed_replaces_what_differs(self, store: FileStore) -> None:
        keep(store, record([1.0]))
        keep(store, record([0.0]), verb="changed")
        assert store.get(MINI, "snapkv", record([1.0]).case).accuracy == 0.0

    def test_changed_writes_nothing_when_nothing_changed(self, store: FileStore) -> None:
        keep(store, record([1.0]))
        before = path(store).stat().st_mtime_ns
        changes = keep(store, record([1.0]), verb="changed")
        assert (changes.written, path(store).stat().st_mtime_ns) == (0, before)

    def test_latency_alone_is_no_change(self, store: FileStore) -> None:
        keep(store, rich("snapkv"))
        slower = replace(rich("snapkv"), latency=(LatencyRecord("tpot", 512, 9.0, 9.0, 1.0, 1.0, 1.0, 7),))
        assert keep(store, slower, verb="changed").written == 0

    def test_other_cases_stay(self, store: FileStore) -> None:
        keep(store, record([1.0], task="a"), record([1.0], task="b"))
        assert store.get(MINI, "snapkv", record([1.0], task="a").case) is not None

    def test_every_number_that_changed_is_shown(self, store: FileStore) -> None:
        keep(store, record([1.0, 1.0], nll=0.1))
        lines = keep(store, record([1.0, 0.0], nll=[0.1, 2.5], held=memory(480, 48.0)), verb="changed").lines
        shown = "\n".join(lines)
        assert all(
            part in shown for part in ("memory.kv_bytes 500 -> 480", "memory.kept 50.0 -> 48.0", "context 1 ", "2500")
        )

    def test_a_record_that_stopped_early_is_not_written(self, store: FileStore) -> None:
        changes = keep(store, record([1.0], n=8))
        assert changes.written == 0
        assert "not recorded" in changes.lines[0]

    def test_an_unknown_verb_is_refused(self, store: FileStore) -> None:
        with pytest.raises(SpecError, match="did you mean changed"):
            keep(store, record([1.0]), verb="change")

    def test_a_new_fp16_names_the_methods_that_are_stale_now(self, store: FileStore) -> None:
        keep(store, fp16(2), record([1.0, 0.0]))
        lines = keep(store, record([0.5, 1.0], "fp16"), verb="changed").lines
        assert any("stale now: 1 cases" in line and "--kv-method=snapkv" in line for line in lines)

    def test_a_method_against_an_fp16_that_changed_is_refused(self, store: FileStore) -> None:
        keep(store, fp16(2), record([1.0, 0.0]), record([0.5, 1.0], "fp16"))
        with pytest.raises(BaselineError, match=r"fp16 record that has changed[\s\S]*--kv-record=changed"):
            store.get(MINI, "snapkv", fp16(2).case)


class TestDamage:
    @pytest.fixture
    def file(self, store: FileStore) -> Path:
        keep(store, record([1.0, 0.0, 1.0], nll=0.5))
        return path(store)

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda text: text[:-80], "truncated"),
            (lambda text: text[: len(text) // 2], "truncated"),
            (lambda text: text.replace("\n1 ", "\n2 ", 1), "edited by hand or damaged"),
            (lambda text: text.replace("schema=1", "schema=7"), "has schema 7; this kvcheck reads schema 1"),
            (lambda text: "hello\n", "not a kvcheck baseline"),
            (lambda text: "", "not a kvcheck baseline"),
            (lambda text: text.replace("\n", "\r\n"), "baseline|schema|truncated|edited"),
        ],
    )
    def test_a_damaged_file_is_refused_by_name(self, store: FileStore, file: Path, damage, words: str) -> None:
        file.write_bytes(damage(file.read_text()).encode())
        with pytest.raises(BaselineError, match=words) as caught:
            store.get(MINI, "snapkv", record([1.0]).case)
        assert str(file) in caught.value.message

    def test_recording_leaves_a_damaged_file_as_it_is(self, store: FileStore, file: Path) -> None:
        file.write_text(file.read_text()[:-80])
        before = file.read_bytes()
        with pytest.raises(BaselineError, match="truncated"):
            keep(store, record([1.0]))
        assert file.read_bytes() == before

    def test_a_file_of_another_model_is_refused_by_name(self, store: FileStore, file: Path) -> None:
        with pytest.raises(BaselineError, match=r"snapkv\.txt is of another model: f00d there, beef here"):
            store.get(ModelId("mini", "beef"), "snapkv", record([1.0]).case)

    def test_bytes_that_are_no_text_are_refused(self, store: FileStore, file: Path) -> None:
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(BaselineError, match="cannot be read"):
            store.get(MINI, "snapkv", record([1.0]).case)

    def test_a_full_disk_leaves_the_old_file(
        self, store: FileStore, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = file.read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(BaselineError, match="No space left"):
            keep(store, record([0.0] * 3))
        assert [(one.name, one.read_bytes()) for one in file.parent.iterdir()] == [(file.name, before)]

    def test_a_place_that_cannot_be_written_is_a_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BaselineError, match="cannot write"):
            keep(FileStore(tmp_path / "file"), record([1.0]))

    def test_two_that_record_at_once_lose_nothing(self, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:

        def slowly(path: str, text: str, *rest: Any) -> None:
            time.sleep(0.2)
            write_atomically(path, text, *rest)

        monkeypatch.setattr(file_store, "write_atomically", slowly)
        cases = [replace(record([1.0]).case, length=length) for length in (512, 1024)]
        both = [
            threading.Thread(target=keep, args=(FileStore(store.root), replace(record([1.0]), case=case)))
            for case in cases
        ]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert [store.get(MINI, "snapkv", case) is not None for case in cases] == [True, True]

    def test_nothing_to_record_leaves_no_folder(self, store: FileStore) -> None:
        assert store.record(MINI, "snapkv", [], "new", ABOUT).written == 0
        assert not Path(store.root).exists()

    def test_verify_names_each_problem(self, store: FileStore, file: Path) -> None:
        file.write_text(file.read_text()[:-80])
        ((name, problem),) = store.verify()
        assert (name, "truncated" in problem) == (str(file), True)

    def test_verify_finds_a_file_under_another_name(self, store: FileStore, file: Path) -> None:
        file.rename(file.with_name("kivi.txt"))
        assert "its name says otherwise" in store.verify()[0][1]


class TestStores:
    def test_good_files_verify(self, store: FileStore) -> None:
        keep(store, fp16(2), record([1.0, 0.0]))
        assert store.verify() == []

    def test_entries_list_what_is_there(self, store: FileStore) -> None:
        keep(store, fp16(2), record([1.0, 0.0]))
        assert [(entry.method, len(entry.cases)) for entry in store.entries()] == [("fp16", 1), ("snapkv", 1)]

    def test_layers_read_the_first_that_has_the_case(self, store: FileStore, tmp_path: Path) -> None:
        mine = FileStore(tmp_path / "mine")
        keep(store, record([1.0]))
        keep(mine, record([0.0]))
        assert Layered(mine, store).get(MINI, "snapkv", record([1.0]).case).accuracy == 0.0

    def test_layers_record_into_the_first(self, store: FileStore, tmp_path: Path) -> None:
        mine = FileStore(tmp_path / "mine")
        keep(Layered(mine, store), record([0.0]))
        assert (path(mine).exists(), path(store).exists()) == (True, False)

    def test_a_method_in_one_layer_is_read_against_fp16_in_another(self, store: FileStore, tmp_path: Path) -> None:
        keep(store, fp16(2))
        layers = Layered(FileStore(tmp_path / "mine"), store)
        keep(layers, record([1.0, 0.0]))
        assert layers.get(MINI, "snapkv", fp16(2).case) == record([1.0, 0.0])
        assert layers.verify() == []

    def test_what_a_lower_layer_has_is_not_new(self, store: FileStore, tmp_path: Path) -> None:
        keep(store, record([1.0]))
        assert keep(Layered(FileStore(tmp_path / "mine"), store), record([0.0]), verb="new").written == 0

    def test_a_file_uri_is_a_folder(self, tmp_path: Path) -> None:
        assert open_place(f"file://{tmp_path}").writable

    def test_places_are_layers_in_the_order_in_which_they_are_named(self, store: FileStore, tmp_path: Path) -> None:
        keep(store, record([1.0]))
        keep(store, record([1.0], task="needle"))
        keep(FileStore(tmp_path / "own"), record([0.0]))
        both = open_store(f"{tmp_path}/own, {store.root}")
        assert both.get(MINI, "snapkv", record([1.0]).case).accuracy == 0.0
        assert both.get(MINI, "snapkv", record([1.0], task="needle").case).accuracy == 1.0
        assert both.path(MINI, "snapkv").startswith(f"{tmp_path}/own/")

    def test_an_empty_place_is_refused(self) -> None:
        with pytest.raises(BaselineError, match="a place of baselines is empty"):
            open_store("own,,shared")

    def test_any_other_uri_is_read_through_fsspec(self, store: FileStore) -> None:
        import fsspec

        keep(store, record([1.0]))
        fsspec.filesystem("memory").pipe("/kv/mini/snapkv.txt", path(store).read_bytes())
        assert open_place("memory://kv").get(MINI, "snapkv", record([1.0]).case) == record([1.0])

    def test_without_a_place_recording_goes_under_the_users_root(self, tmp_path: Path) -> None:
        assert open_store(None, tmp_path).path(MINI, "fp16") == f"{tmp_path}/.kvcheck/baselines/mini/fp16.txt"


class TestNames:
    @pytest.mark.parametrize(
        ("text", "name"),
        [("fp16", "fp16"), ("snapkv:budget=0.25,window=32", "snapkv__budget=0.25,window=32")],
    )
    def test_a_spec_is_readable_as_a_file_name(self, text: str, name: str) -> None:
        assert safe_name(text) == name

    @pytest.mark.parametrize("typed", ["/data/tiny", "~/models/tiny/", "./tiny", "a/b/tiny", "C:\\models\\tiny"])
    def test_a_model_in_a_folder_has_the_same_name_wherever_it_lies(self, typed: str) -> None:
        assert ModelId.of(typed, "3f2a1b9c00112233").name == "tiny-3f2a1b9c"

    @pytest.mark.parametrize("typed", ["mini", "Qwen/Qwen2.5-0.5B", "models/tiny"])
    def test_a_hub_id_is_a_name_as_it_stands(self, typed: str) -> None:
        assert ModelId.of(typed, "3f2a1b9c00112233").name == typed

    def test_different_texts_have_different_names(self) -> None:
        texts = ["a:b", "a__b", "A:b", "a/b", "a--b", "..", "x" * 200, "x" * 201, "a b", "a_b", "my.Cls", "my.cls"]
        assert len({safe_name(text).lower() for text in texts}) == len(texts)
