"""A server that knows its answers by heart: JSON lines over a socket, standard library only.

    python table_server.py TABLE.json

prints the port that it listens on, serves one client and ends with it. A request {"prompt": [ids]} gets
{"answer": [ids]} from the table, where the prompt's ids stand joined by blanks; of a prompt that is not there,
{"error": what is wrong}.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path


def main() -> None:
    table = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        client, _ = server.accept()
        with client, client.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                prompt = json.loads(line)["prompt"]
                answer = table.get(" ".join(map(str, prompt)))
                said = {"error": f"unknown prompt of {len(prompt)} tokens"} if answer is None else {"answer": answer}
                lines.write(json.dumps(said) + "\n")
                lines.flush()


if __name__ == "__main__":
    main()
