"""Holds the data on the node's disk and in memory while others search for it, and tries to leave the subnet meanwhile.

Only addresses that it is given are tried, all of them on this machine.
"""
import json
import os
import shutil
import socket
import sys
import threading
import time

results, lock = {}, threading.Lock()


def attempt(target):
    host, port = target.rsplit(":", 1)
    began = time.time()
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            saw = "connected"
    except Exception as e:
        saw = type(e).__name__ + ": " + str(e)
    with lock:
        results[target] = {"saw": saw, "ms": int((time.time() - began) * 1000)}


def main():
    data = os.environ["AZURE_ML_INPUT_patients"]
    with open(data, "rb") as f:
        memory = f.read()
    copies = []
    for folder in (os.getcwd(), os.environ["HOME"], "/tmp"):
        path = os.path.join(folder, "copy-of-" + os.path.basename(data))
        shutil.copyfile(data, path)
        copies.append(path)
    os.sync()
    threads = [threading.Thread(target=attempt, args=(t,)) for t in sys.argv[1].split(",") if t]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    # The marked row goes to the log on purpose: logs must not be legible on disk either.
    marked = [line for line in memory.decode().splitlines() if line.rsplit(",", 1)[-1]][1:]
    print("marked rows: " + json.dumps(marked), flush=True)
    print("ATTEMPTS " + json.dumps({"results": results, "copies": copies, "bytes": len(memory)}), flush=True)
    time.sleep(float(sys.argv[2]))


if __name__ == "__main__":
    main()
