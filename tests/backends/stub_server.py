"""An engine (stub_engine.py) behind HTTP, in five dialects: the standard library only.

    python stub_server.py --port 8000 --kind vllm --fault hit_position

serves the embedded model until it is stopped. `trouble` is what can go wrong with a server itself, see TROUBLES.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty

sys.path.insert(0, str(Path(__file__).parent))
from stub_engine import FAULTS, Engine, Request
from stub_model import BLOCK, Model
from tokenizers import Tokenizer

from kvcheck.core import paths

OWNERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "tensorrt_llm": "tensorrt_llm",
    "transformers": "",
}
PATHS = {"sglang": "/generate", "llamacpp": "/completion"}
TROUBLES = {
    "loading": "/health says 503",
    "dies": "the connection is closed after the first token",
    "mute": "no log-probabilities",
    "cuts": "reads the last 64 tokens of a prompt",
    "bos": "puts a token in front",
    "tokenizer": "reads texts as other ids",
    "busy": "says 429 to every request",
    "busy once": "says 429 to the first request",
    "broken": "says 500 to every request",
    "garbage": "says HTML to every request",
    "locked": "wants a key",
    "slow": "says nothing for two seconds",
    "halts": "ends an answer after the first token, without a reason",
}


class Stub(ThreadingHTTPServer):
    """A server and its engine. requests: what it was sent. left: prompts that it answers before it dies, None: all."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model, kind="vllm", trouble="", port=0, key="", **settings):
        super().__init__(("127.0.0.1", port), Handler)
        self.engine, self.kind, self.trouble, self.key = Engine(model, **settings), kind, trouble, key
        self.tokenizer = Tokenizer.from_file(str(paths.bundle("fixtures") / "mini" / "tokenizer.json"))
        self.requests, self.left = [], None
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def close(self):
        self.shutdown()
        self.server_close()
        self.engine.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Stub

    def log_message(self, *args):
        pass

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    # -- what is asked -------------------------------------------------------------------------------------------------

    def do_GET(self):
        found = {
            "/health": self._health,
            "/v1/models": self._models,
            "/metrics": self._metrics,
            "/version": lambda: {"version": "1.2.3"},
            "/get_server_info": lambda: {"version": "1.2.3"},
            "/props": lambda: {
                "build_info": "b1",
                "default_generation_settings": {"n_ctx": self.server.engine.longest},
            },
            "/openapi.json": lambda: {"paths": {"/load_model": {}} if self.server.kind == "transformers" else {}},
        }.get(self.path)
        self._say({"error": "not found"}, 404) if found is None else self._say(found())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server, trouble = self.server, self.server.trouble
        server.requests.append((self.path, body))
        if self.path == "/tokenize":
            text = body.get("prompt", body.get("content"))
            ids = server.tokenizer.encode(text, add_special_tokens=False).ids
            return self._say({"tokens": ids[::-1] if trouble == "tokenizer" else ids})
        if self.path in ("/reset_prefix_cache", "/flush_cache"):
            flushed = server.engine.flush()
            return self._say({"success": flushed}, 200 if flushed or server.kind == "vllm" else 400)
        if self.path != PATHS.get(server.kind, "/v1/completions"):
            return self._say({"error": "not found"}, 404)
        if server.left is not None:
            server.left -= 1
            if server.left < 0:
                self.connection.shutdown(socket.SHUT_RDWR)
                return server.close() if server.left == -1 else None
        if self._refused(trouble):
            return None
        return self._serve(body)

    def _refused(self, trouble):
        server = self.server
        if trouble == "locked" and self.headers.get("authorization") != f"Bearer {server.key}":
            return not self._say({"error": "no key"}, 401)
        if trouble == "busy" or (
            trouble == "busy once" and sum("token" not in path for path, _ in server.requests) == 1
        ):
            return not self._say({"error": "too many requests"}, 429)
        if trouble == "broken":
            return not self._say({"error": "CUDA error: an illegal memory access"}, 500)
        if trouble == "garbage":
            self._begin("text/html", 200)
            return not self._piece(b"<html>gateway</html>", last=True)
        if trouble == "slow":
            threading.Event().wait(2)
        return False

    def _health(self):
        return {"status": "ok"} if self.server.trouble != "loading" else None

    def _models(self):
        card = {"id": "mini", "owned_by": OWNERS[self.server.kind], "max_model_len": self.server.engine.longest}
        return {"object": "list", "data": [card]}

    def _metrics(self):
        engine, counts = self.server.engine, self.server.engine.counts
        blocks, used = engine.pool.blocks, engine.used
        if self.server.kind == "vllm":
            return (
                f'vllm:iteration_tokens_total_count{{engine="0"}} {counts["steps"]}\n'
                f"vllm:num_preemptions_total {counts['preempted']}\n"
                f"vllm:spec_decode_num_draft_tokens_total {counts['drafted']}\n"
                f"vllm:spec_decode_num_accepted_tokens_total {counts['accepted']}\n"
                f"vllm:kv_cache_usage_perc {used / blocks}\n"
                f'vllm:cache_config_info{{block_size="{BLOCK}",num_gpu_blocks="{blocks + 1}"}} 1.0\n'
            )
        if self.server.kind == "sglang":
            return (
                f"sglang:num_retracted_requests_total {counts['preempted']}\n"
                f"sglang:num_used_tokens {used * BLOCK}\nsglang:max_total_num_tokens {blocks * BLOCK}\n"
            )
        if self.server.kind == "llamacpp":
            return f"llamacpp:n_decode_total {counts['steps']}\n"
        if self.server.kind == "tensorrt_llm":
            return [{"kvCacheStats": {"usedNumBlocks": used, "maxNumBlocks": blocks, "tokensPerBlock": BLOCK}}]
        return None

    # -- what is answered ----------------------------------------------------------------------------------------------

    def _request(self, body):
        """A prompt as the engine takes it, from the fields of the dialect."""
        kind, more = self.server.kind, body.get("sampling_params", body)
        prompt = body.get("input_ids", body.get("prompt"))
        if kind == "transformers":
            prompt = self.server.tokenizer.encode(prompt).ids
        if self.server.trouble == "cuts":
            prompt = prompt[-64:]
        if self.server.trouble == "bos":
            prompt = [0, *prompt]
        limit = more.get("max_tokens", more.get("max_new_tokens", body.get("n_predict", 16)))
        ends = [] if more.get("ignore_eos") else [*more.get("stop_token_ids", []), 1]
        reuse = body.get("cache_prompt", True) and "prompt_logprobs" not in body and "logprob_start_len" not in body
        salt = str(body.get("cache_salt", body.get("extra_key", "")))
        return Request(list(prompt), limit, frozenset(ends), salt, reuse)

    def _serve(self, body):
        request = self._request(body)
        if len(request.ids) + request.limit > self.server.engine.longest:
            return self._say({"error": f"maximum context length is {self.server.engine.longest} tokens"}, 400)
        self.server.engine.send(request)
        if not body.get("stream"):
            while not isinstance(request.out.get(), str):
                pass
            return self._say(self._scored(request))
        self._begin("text/event-stream", 200)
        told = []
        while True:
            try:
                said = request.out.get(timeout=0.005)
            except Empty:
                if self._dropped():
                    return self.server.engine.cancel(request)
                continue
            try:
                if isinstance(said, str):
                    break
                told.append(said)
                self._event(self._token(request, told))
                if self.server.trouble in ("dies", "halts"):
                    self.server.engine.cancel(request)
                    if self.server.trouble == "dies":
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return None
                    return self._piece(b"data: [DONE]\n\n", last=True)
            except OSError:
                self.close_connection = True
                return self.server.engine.cancel(request)
        for event in self._last(request, told, said):
            self._event(event)
        return self._piece(b"data: [DONE]\n\n", last=True)

    def _token(self, request, told):
        (token, log_prob), kind = told[-1], self.server.kind
        mute = self.server.trouble == "mute"
        if kind == "sglang":
            meta = {"output_token_logprobs": [[lp, one, None] for one, lp in told], "prompt_tokens": len(request.ids)}
            return {"output_ids": [one for one, _ in told], "meta_info": {} if mute else meta}
        if kind == "llamacpp":
            return {"tokens": [token], "stop": False} | (
                {} if mute else {"completion_probabilities": [{"id": token, "logprob": log_prob}]}
            )
        if kind == "transformers":
            return {"choices": [{"text": self._text(request, [one for one, _ in told]), "finish_reason": None}]}
        log_probs = None if mute else {"token_logprobs": [log_prob]}
        return {"choices": [{"token_ids": [token], "logprobs": log_probs, "finish_reason": None}]}

    def _text(self, request, tokens):
        """What the last token adds."""
        decode = self.server.tokenizer.decode
        return decode(tokens)[len(decode(tokens[:-1])) :]

    def _last(self, request, told, why):
        kind, read = self.server.kind, len(request.ids)
        if kind == "sglang":
            meta = {"finish_reason": {"type": why}, "prompt_tokens": read, "cached_tokens": request.cached or 0}
            event = self._token(request, told)
            return [{**event, "meta_info": {**event["meta_info"], **meta}}]
        if kind == "llamacpp":
            stop = {"stop": "eos", "length": "limit"}.get(why, why)
            timings = {"cache_n": request.cached or 0, "prompt_n": read - (request.cached or 0)}
            return [{"tokens": [], "stop": True, "stop_type": stop, "tokens_evaluated": read, "timings": timings}]
        usage = {"prompt_tokens": read, "completion_tokens": len(told)}
        if kind != "transformers":
            usage["prompt_tokens_details"] = {"cached_tokens": request.cached or 0}
        return [{"choices": [{"text": "", "finish_reason": why}]}, {"choices": [], "usage": usage}]

    def _scored(self, request):
        """Of a prompt, with its log-probabilities."""
        scored = list(zip(request.scores, request.ids[1:], strict=False))
        if self.server.kind == "sglang":
            return {"meta_info": {"input_token_logprobs": [[one, token, None] for one, token in scored]}}
        return {"choices": [{"prompt_logprobs": [None, *({str(token): {"logprob": one}} for one, token in scored)]}]}

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _say(self, what, status=200):
        if what is None:
            what, status = {"error": "not ready"}, 503
        text = what if isinstance(what, str) else json.dumps(what)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text.encode())))
        if status == 429:
            self.send_header("retry-after", "0.01")
        self.end_headers()
        self.wfile.write(text.encode())

    def _begin(self, kind, status):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _event(self, event):
        self._piece(f"data: {json.dumps(event)}\n\n".encode())

    def _piece(self, data, last=False):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" + (b"0\r\n\r\n" if last else b""))

    def _dropped(self):
        """The other side has closed the connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--kind", choices=OWNERS, default="vllm")
    parser.add_argument("--fault", choices=FAULTS, default="")
    parser.add_argument("--bits", type=int, choices=(8, 32), default=32)
    given = vars(parser.parse_args())
    stub = Stub(Model.mini(), **given, chunk=512)
    print(f"serving mini at {stub.url}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
