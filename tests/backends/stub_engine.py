"""A KV engine in small: blocks with a prefix cache by hash, batches, chunked prompts, preemption, speculation, int8.

It is correct. `fault`, a name of FAULTS, breaks one thing, each as it was broken in an engine that people run
(families of bugs that docs/reference/zoo.md lists, or the engine's own).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from stub_model import BLOCK, Pool

FAULTS = {
    "stale_block": "a block that is used for something else is still found under its old hash",
    "salt_ignored": "the hash of a block leaves out whose it is",
    "partial_published": "a block that is filled in part is taken for a whole one",
    "full_hit": "of a prompt that is cached as a whole the last token is appended once more",
    "hit_position": "positions behind what came from the prefix cache are off by one",
    "truncated_hash": "the hash has few bits, and what is found is not compared",
    "answer_tail": "the last token of an answer, which was never read, is part of a block that is published",
    "shared_write": "a block whose beginning is reused is written to, not copied",
    "neighbour_row": "in a batch a row reads the first block of the row before",
    "clear_spills": "clearing a new block clears the beginning of the next one, too",
    "cancelled_published": "blocks of a cancelled prompt are published, read or not",
    "cancelled_leak": "blocks of a cancelled request are not given back",
    "double_free": "blocks of a cancelled request are given back twice",
    "counter_survives": "a counter of requests is not reset, and hides the beginning of later prompts",
    "preempted_answer": "of a request that begins again only the prompt is read, not its answer so far",
    "chunk_mask": "from its second chunk on a prompt sees that chunk only",
    "chunk_pages": "chunks behind the first one are written to the first pages",
    "draft_unchecked": "drafts are accepted without a check",
    "rejected_kept": "keys of rejected drafts stay",
    "foreign_scale": "a quantized block from the prefix cache is read with the scales of another one",
    "flush_keeps": "a flush leaves the second tier, which serves the next prompt",
    "pool_off_by_two": "of the blocks in use two are not counted",
}


@dataclass(eq=False)
class Request:
    """tokens: prompt and answer. table: its blocks. filled: tokens whose keys are there. skew: slots too many."""

    ids: list
    limit: int
    ends: frozenset = frozenset()
    salt: str = ""
    reuse: bool = True
    out: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    tokens: list = field(default_factory=list)
    table: list = field(default_factory=list)
    filled: int = 0
    cached: int | None = None
    hits: int = 0
    skew: int = 0
    until: int = 0
    scores: list = field(default_factory=list)
    cancelled: bool = False

    @property
    def answer(self):
        return self.tokens[len(self.ids) :]


class Engine:
    """Runs in a thread of its own until `close`. pause: seconds behind each step."""

    def __init__(
        self, model, *, blocks=512, chunk=128, prefix=True, drafts=0, bits=32, fault="", longest=5120, pause=0.0
    ):
        self.model, self.pool = model, Pool(model.config, blocks, bits)
        self.chunk, self.prefix, self.drafts, self.fault, self.longest = chunk, prefix, drafts, fault, longest
        self.pause = pause
        self.free = OrderedDict.fromkeys(range(blocks))
        self.twice = []
        self.users = dict.fromkeys(range(blocks), 0)
        self.hashes, self.found, self.inside, self.tier = {}, {}, {}, {}
        self.waiting, self.running = [], []
        self.counts = dict.fromkeys(("steps", "preempted", "drafted", "accepted", "served"), 0)
        self.lock, self.open = threading.Condition(), True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    # -- from outside --------------------------------------------------------------------------------------------------

    def send(self, request):
        """What comes of it is put into request.out: (token, log-probability), in the end the reason as a text."""
        request.tokens = list(request.ids)
        with self.lock:
            if -(-(len(request.ids) + request.limit + self.drafts + 1) // BLOCK) > self.pool.blocks:
                request.out.put("abort")
                return
            self.waiting.append(request)
            self.lock.notify()

    def cancel(self, request):
        with self.lock:
            request.cancelled = True
            self.lock.notify()

    def flush(self):
        """Empty the prefix cache; False while anything runs."""
        with self.lock:
            if self.running or self.waiting:
                return False
            if self.fault == "flush_keeps":
                return True
            for index in (self.hashes, self.found, self.inside):
                index.clear()
            return True

    def close(self):
        with self.lock:
            self.open = False
            self.lock.notify()
        self.thread.join()

    @property
    def used(self):
        """Blocks in use, as it counts them."""
        count = self.pool.blocks - len(self.free)
        return max(0, count - 2) if self.fault == "pool_off_by_two" else count

    def _abort(self):
        for request in (*self.running, *self.waiting):
            request.out.put("abort")
        self.running, self.waiting = [], []

    # -- blocks --------------------------------------------------------------------------------------------------------

    def _hash(self, request, at, parent):
        salt = "" if self.fault == "salt_ignored" else request.salt
        found = hash((parent, salt, tuple(request.tokens[at * BLOCK : (at + 1) * BLOCK])))
        return found % 97 if self.fault == "truncated_hash" else found

    def _take(self):
        """A block that nobody uses, None where there is none. What it held is found no longer."""
        if self.twice:
            block = self.twice.pop()
            self.free[block] = None
            self.free.move_to_end(block, last=False)
            return block
        if not self.free:
            return None
        block, _ = self.free.popitem(last=False)
        known = self.hashes.pop(block, None)
        if known is not None and self.fault != "stale_block":
            del self.found[known]
        self.inside.pop(block, None)
        self.users[block] = 1
        if self.fault == "clear_spills":
            self.pool.rows[:, :, (block + 1) % self.pool.blocks, :4] = 0
        return block

    def _give(self, table):
        """Blocks that a request no longer uses; those that are found stay what they are until they are taken."""
        for block in reversed(table):
            self.users[block] = max(0, self.users[block] - 1)
            if not self.users[block]:
                self.free[block] = None
                self.free.move_to_end(block, last=block in self.hashes)

    def _share(self, block):
        self.users[block] += 1
        self.free.pop(block, None)

    def _publish(self, request, filled):
        """Blocks that are filled as a whole can be found by what they hold, the last one by its beginning, too."""
        if not self.prefix:
            return
        parent = None
        for at, block in enumerate(request.table):
            if at * BLOCK >= filled:
                return
            whole = (at + 1) * BLOCK <= filled
            tokens = tuple(request.tokens[at * BLOCK : min(filled, (at + 1) * BLOCK)])
            if request.skew == 0 or self.fault == "rejected_kept":
                self.inside[block] = (parent, "" if self.fault == "salt_ignored" else request.salt, tokens)
            if not whole:
                return
            parent = self._hash(request, at, parent)
            if parent not in self.found and block not in self.hashes:
                self.found[parent], self.hashes[block] = block, parent

    def _look_up(self, request):
        """Take what is cached of a prompt: whole blocks, and of the next one a copy of its beginning."""
        first = request.cached is None
        request.cached = request.cached or 0
        begun = self.fault == "preempted_answer" and request.answer
        if not (self.prefix and request.reuse) or begun:
            return
        self._take_whole(request)
        request.cached = request.filled if first else request.cached
        if request.filled == len(request.tokens):
            request.filled, request.skew = request.filled - 1, 1

    def _take_whole(self, request):
        last, parent, at = len(request.tokens) - 1, None, 0
        if self.fault == "full_hit":
            last += 1
        while (at + 1) * BLOCK <= last:
            key = self._hash(request, at, parent)
            if key not in self.found:
                break
            self._share(self.found[key])
            request.table.append(self.found[key])
            parent, at = key, at + 1
        request.filled = at * BLOCK
        request.hits = at
        self._look_inside(request, at, parent, last)

    def _look_inside(self, request, at, parent, last):
        """The beginning of a block: copied where another prompt goes on otherwise behind it."""
        mine = tuple(request.tokens[at * BLOCK : min(last, (at + 1) * BLOCK)])
        best, block = 0, None
        for one, (before, salt, tokens) in self.inside.items():
            if before == parent and salt == ("" if self.fault == "salt_ignored" else request.salt):
                pairs = enumerate(zip(mine, tokens, strict=False))
                same = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(tokens)))
                if same > best:
                    best, block = same, one
        if best < 4:
            return
        if self.fault == "shared_write":
            self._share(block)
            request.table.append(block)
        else:
            self._share(block)
            copy = self._take()
            self._give([block])
            if copy is None:
                return
            for part in (self.pool.rows, self.pool.scales):
                part[:, :, copy] = part[:, :, block]
            request.table.append(copy)
        taken = min(BLOCK, last - at * BLOCK) if self.fault == "partial_published" else best
        request.filled += taken

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _run(self):
        while True:
            with self.lock:
                while self.open and not (self.running or self.waiting):
                    self.lock.wait()
                if not self.open:
                    return
                try:
                    self._step()
                except Exception:  # a fault may go that far; nobody waits for what does not come
                    self._abort()
            time.sleep(self.pause)  # also 0 lets those in who wait for the lock

    def _step(self):
        for request in [one for one in (*self.running, *self.waiting) if one.cancelled]:
            self._cancelled(request)
        while self.waiting and len(self.running) < 32 and len(self.free) > 1:
            request = self.waiting.pop(0)
            request.until = len(request.tokens)
            self._look_up(request)
            self.running.append(request)
        self.counts["steps"] += bool(self.running)
        left, before = self.chunk, None
        for request in list(self.running):
            if request not in self.running or left <= 0:
                continue
            ids = self._next(request, left)
            ahead = len(request.tokens) if self.fault == "cancelled_published" else 0
            if not self._room(request, max(ahead, request.filled + request.skew + len(ids))):
                continue
            left -= len(ids)
            self._read(request, ids, before)
            before = request if request in self.running else before

    def _next(self, request, left):
        """The tokens that are read in this step: of the prompt, or the last one of the answer with drafts."""
        end = len(request.ids) if self._forgets(request) else len(request.tokens)
        todo = request.tokens[request.filled : min(request.filled + left, end)]
        if request.filled < len(request.tokens) - 1 or not self.drafts:
            return todo
        tokens, most = request.tokens, request.limit - len(request.answer) - 1
        for at in range(len(tokens) - 3, -1, -1):
            if tokens[at : at + 2] == tokens[-2:]:
                draft = tokens[at + 2 : at + 2 + min(self.drafts, most)]
                self.counts["drafted"] += len(draft)
                return todo + draft
        return todo

    def _forgets(self, request):
        return self.fault == "preempted_answer" and request.answer and request.filled < len(request.ids)

    def _room(self, request, slots):
        """Give it blocks for so many slots; those that came last begin again where there are none. False: it did."""
        while len(request.table) * BLOCK < slots:
            block = self._take()
            if block is not None:
                request.table.append(block)
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request):
        self.counts["preempted"] += 1
        self.running.remove(request)
        self._give(request.table)
        request.table, request.filled, request.skew, request.hits = [], 0, 0, 0
        self.waiting.insert(0, request)

    def _read(self, request, ids, before):
        slot, drafts = request.filled + request.skew, len(ids) - 1 if request.filled >= request.until - 1 else 0
        table, first = list(request.table), 0
        in_prompt = request.filled < request.until - 1
        if self.fault == "neighbour_row" and before is not None:
            table[0] = before.table[0]
        if self.fault == "chunk_mask" and in_prompt and slot > request.cached:
            first = slot
        if self.fault == "chunk_pages" and in_prompt and slot > request.cached:
            pages = -(-len(ids) // BLOCK) + 1
            table[slot // BLOCK : slot // BLOCK + pages] = table[:pages][: len(table) - slot // BLOCK]
        shift = -1 if self.fault == "hit_position" and request.hits else 0
        if self.fault == "counter_survives":
            first = min(slot, self.counts["served"] // 50)
        foreign = request.hits if self.fault == "foreign_scale" else 0
        found = self.model.forward(self.pool, ids, slot, table, shift, first, foreign)
        if in_prompt or not request.answer:
            request.scores += [
                float(row[token]) for row, token in zip(found, request.tokens[request.filled + 1 :], strict=False)
            ]
        if self._forgets(request) and request.filled + len(ids) >= len(request.ids):
            request.filled = len(request.tokens) - 1
            self._room(request, len(request.tokens))
        elif request.filled + len(ids) - drafts < len(request.tokens):
            request.filled += len(ids)
        else:
            self._write(request, ids, found, drafts)
        if request in self.running:
            self._publish(request, request.filled)

    def _write(self, request, ids, found, drafts):
        """The next token of an answer, and those of the drafts that are what it would have said."""
        request.filled += len(ids) - drafts
        for at in range(len(ids) - 1 - drafts, len(ids)):
            token = int(found[at].argmax())
            draft = ids[at + 1] if at + 1 < len(ids) else None
            if self.fault == "draft_unchecked" and draft is not None:
                token = draft
            request.tokens.append(token)
            request.out.put((token, float(found[at][token])))
            if token in request.ends or len(request.answer) >= request.limit:
                self._finished(request, "stop" if token in request.ends else "length")
                return
            if draft is None:
                return
            if token != draft:
                request.skew += len(ids) - 1 - at if self.fault == "rejected_kept" else 0
                return
            self.counts["accepted"] += 1
            request.filled += 1

    def _finished(self, request, why):
        self.running.remove(request)
        self._publish(request, request.filled + (self.fault == "answer_tail"))
        self._give(request.table)
        self.counts["served"] += 1
        request.out.put(why)

    def _cancelled(self, request):
        (self.running if request in self.running else self.waiting).remove(request)
        if self.fault == "cancelled_published":
            self._publish(request, len(request.table) * BLOCK)
        if self.fault != "cancelled_leak":
            self._give(request.table)
        if self.fault == "double_free":
            self.twice += [block for block in request.table[:8] if not self.users[block]]
        request.out.put("abort")


def answers(request):
    """What comes out of a request, until it is over -> (tokens, log-probabilities, why it ended)."""
    tokens, log_probs = [], []
    while not isinstance(said := request.out.get(), str):
        tokens.append(said[0])
        log_probs.append(said[1])
    return tokens, log_probs, said
