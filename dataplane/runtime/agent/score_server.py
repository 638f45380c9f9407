"""Scoring server of a Casemate node.

Loads an entry script with init() and run(raw_data) and answers POST /score with the JSON of what run returns.
GET / and /health answer 200 once init() has returned. It listens in the node's own network only; TLS and
authentication happen in front of it. Errors of user code go to the log, never to the caller.
"""
import argparse
import importlib.util
import json
import os
import socket
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 64 * 1024 * 1024


def load(path):
    sys.path.insert(0, os.path.dirname(path))
    spec = importlib.util.spec_from_file_location("entry_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["entry_script"] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "run", None)):
        raise SystemExit("entry script has no function run(raw_data)")
    if callable(getattr(module, "init", None)):
        module.init()
    return module.run


def plain(value):
    """Arrays and scalars of numerical libraries know how to become lists and numbers."""
    for method in ("tolist", "to_dict", "item"):
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    raise TypeError("%s is not JSON serializable" % type(value).__name__)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120
    run = None

    def answer(self, status, value):
        self.answer_text(status, json.dumps(value))

    def answer_text(self, status, text):
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.split("?")[0] in ("/", "/health", "/liveness"):
            self.answer(200, "Healthy")
        elif self.path.split("?")[0] == "/score":
            self.answer(405, {"message": "use POST"})
        else:
            self.answer(404, {"message": "not found"})

    def do_POST(self):
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if length < 0 or length > MAX_BODY:
            self.close_connection = True
            self.answer(411 if length < 0 else 413, {"message": "a body with Content-Length of at most %d bytes is needed" % MAX_BODY})
            return
        body = self.rfile.read(length)
        if self.path.split("?")[0] != "/score":
            self.answer(404, {"message": "not found"})
            return
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            self.answer(400, {"message": "the body is not UTF-8"})
            return
        try:
            result = json.dumps(type(self).run(text), default=plain)
        except Exception:
            traceback.print_exc()
            self.answer(500, {"message": "the scoring script raised an exception; see the deployment's log"})
            return
        self.answer_text(200, result)

    def log_message(self, *args):
        """Requests hold data; telemetry is the front's to keep."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().server_bind()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--entry", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--address", default="0.0.0.0")
    args = parser.parse_args()
    Handler.run = staticmethod(load(args.entry))
    Server((args.address, args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
