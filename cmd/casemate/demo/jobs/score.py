"""Scores tumours: {"measurements": [[thirty numbers], …]} gives {"malignant": [probability, …]}."""
import json
import os
import pickle

model = None


def init():
    global model
    for folder, _, files in os.walk(os.environ["AZUREML_MODEL_DIR"]):
        if "model.pkl" in files:
            with open(os.path.join(folder, "model.pkl"), "rb") as f:
                model = pickle.load(f)
            return
    raise SystemExit("the model directory holds no model.pkl")


def run(raw_data):
    rows = json.loads(raw_data)["measurements"]
    return {"malignant": [float(p) for p in model.predict_proba(rows)[:, 1]]}
