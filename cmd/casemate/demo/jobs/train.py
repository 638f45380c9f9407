"""Trains a classifier of breast tumours and registers it. What it needs comes in its environment; it holds no secret.

Data: a CSV with a header: patient, thirty measurements, malignant (0 or 1), note. Rows with a note are not patients.
"""
import csv
import hashlib
import json
import os
import pickle
import struct
import time
import urllib.parse
import urllib.request
import zlib

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

EPOCHS = 20
SEED = 7
RUN = os.environ["MLFLOW_RUN_ID"]
TRACKING = os.environ["MLFLOW_TRACKING_URI"].rstrip("/") + "/api/2.0/"
MODEL_NAME = os.environ["MODEL_NAME"]


def call(method, path, body=None, raw=None):
    """One request of MLflow's REST protocol."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(TRACKING + path, data=data, method=method)
    request.add_header("Authorization", "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"])
    request.add_header("Content-Type", "application/octet-stream" if raw is not None else "application/json")
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read()
    return json.loads(text) if text else {}


def log(metrics=None, step=0, params=None):
    now = int(time.time() * 1000)
    call("POST", "mlflow/runs/log-batch", {
        "run_id": RUN,
        "metrics": [{"key": k, "value": float(v), "timestamp": now, "step": step} for k, v in (metrics or {}).items()],
        "params": [{"key": k, "value": str(v)} for k, v in (params or {}).items()],
    })


def log_artifact(experiment, name, content):
    path = urllib.parse.quote("%s/%s/artifacts/%s" % (experiment, RUN, name))
    call("PUT", "mlflow-artifacts/artifacts/" + path, raw=content)


def read(path):
    with open(path, newline="") as f:
        rows = [r for r in csv.DictReader(f) if not r["note"]]
    features = [k for k in rows[0] if k not in ("patient", "malignant", "note")]
    x = np.array([[float(r[k]) for k in features] for r in rows])
    y = np.array([int(r["malignant"]) for r in rows])
    return np.array([int(r["patient"]) for r in rows]), x, y


def png(curves, width=480, height=300):
    """Draws curves with values from 0 to 1 as a PNG (ISO/IEC 15948)."""
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    image[10:height - 10, 30] = image[height - 10, 30:width - 10] = 0
    for colour, values in curves:
        at = np.linspace(0, len(values) - 1, width - 41)
        level = np.interp(at, np.arange(len(values)), np.clip(values, 0, 1))
        ys = (height - 11 - level * (height - 22)).astype(int)
        for x, (a, b) in enumerate(zip(ys, np.append(ys[1:], ys[-1]))):
            image[min(a, b):max(a, b) + 2, 31 + x] = colour

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def main():
    patients, x, y = read(os.environ["AZURE_ML_INPUT_patients"])
    train, held = train_test_split(np.arange(len(y)), test_size=0.25, stratify=y, random_state=SEED)
    print("patients: %d for training, %d held out" % (len(train), len(held)), flush=True)
    scaler = StandardScaler().fit(x[train])
    a, b = scaler.transform(x[train]), scaler.transform(x[held])
    # log_loss is called log before scikit-learn 1.1.
    losses = SGDClassifier._parameter_constraints["loss"][0].options if hasattr(SGDClassifier, "_parameter_constraints") else ["log"]
    classifier = SGDClassifier(loss="log_loss" if "log_loss" in losses else "log", alpha=1e-3, learning_rate="constant", eta0=0.01, random_state=SEED)
    log(params={"model": "logistic regression by SGD", "alpha": classifier.alpha, "eta0": classifier.eta0, "epochs": EPOCHS, "seed": SEED,
                "held_out": len(held)})
    order, history = np.random.RandomState(SEED), []
    for epoch in range(EPOCHS):
        shuffled = order.permutation(len(a))
        classifier.partial_fit(a[shuffled], y[train][shuffled], classes=[0, 1])
        p, q = classifier.predict_proba(a)[:, 1], classifier.predict_proba(b)[:, 1]
        history.append((log_loss(y[train], p), roc_auc_score(y[held], q)))
        log({"train_log_loss": history[-1][0], "held_out_log_loss": log_loss(y[held], q), "held_out_auc": history[-1][1],
             "held_out_accuracy": accuracy_score(y[held], q > 0.5)}, epoch)
        print("epoch %2d: log loss %.4f, held-out AUC %.4f" % (epoch, *history[-1]), flush=True)

    experiment = call("GET", "mlflow/runs/get?run_id=" + urllib.parse.quote(RUN))["run"]["info"]["experiment_id"]
    log_artifact(experiment, "training.png", png([((200, 60, 40), [h[0] for h in history]), ((40, 90, 200), [h[1] for h in history])]))
    log_artifact(experiment, "held_out.json", json.dumps(sorted(int(i) for i in patients[held])).encode())
    model = pickle.dumps(Pipeline([("scaler", scaler), ("classifier", classifier)]))
    with open(os.path.join(os.environ["AZURE_ML_OUTPUT_model"], "model.pkl"), "wb") as f:
        f.write(model)
    log_artifact(experiment, "model/model.pkl", model)
    call("POST", "mlflow/registered-models/create", {"name": MODEL_NAME})
    version = call("POST", "mlflow/model-versions/create", {"name": MODEL_NAME, "source": "runs:/%s/model" % RUN, "run_id": RUN})["model_version"]
    print("registered %s:%s, sha256 %s" % (version["name"], version["version"], hashlib.sha256(model).hexdigest()), flush=True)


if __name__ == "__main__":
    main()
